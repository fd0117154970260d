package forward

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/portgate/caddy-portgate/modules/forward/relay"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// settings are what the options of a handler come to.
type settings struct {
	relay.Limits
	datagrams     time.Duration // idle
	maxReplies    int
	maxReplyRatio float64
	keepAlive     time.Duration
	retries       int
	drainTimeout  time.Duration
	gracePeriod   time.Duration
	policy        upstream.Policy
	stale         time.Duration
}

func (h *Handler) settings() settings {
	return settings{
		h.limits, h.datagramLimits.Idle, h.maxReplies, h.maxReplyRatio,
		h.keepAlive, h.retries, h.scope.DrainTimeout, h.scope.GracePeriod, h.policy, h.stale,
	}
}

func TestDefaultsAndPresets(t *testing.T) {
	t.Parallel()
	defaults := settings{
		Limits: relay.Limits{Connect: 3 * time.Second, Idle: 10 * time.Minute}, datagrams: time.Minute,
		keepAlive: time.Minute, retries: 2, gracePeriod: 10 * time.Second, policy: upstream.Policy{MaxFails: 3, FailDuration: 10 * time.Second},
		stale: 24 * time.Hour,
	}
	strict := defaults
	strict.Limits = relay.Limits{Connect: 3 * time.Second, Idle: time.Minute, HalfClose: 15 * time.Second, Lifetime: 5 * time.Minute}
	with := func(s settings, change func(*settings)) settings {
		change(&s)
		return s
	}
	for options, want := range map[string]settings{
		``:                           defaults,
		`"timeouts": ""`:             defaults,
		`"timeouts": "strict"`:       strict,
		`"connect_timeout": "5s"`:    with(defaults, func(s *settings) { s.Connect = 5 * time.Second }),
		`"connect_timeout": 1`:       with(defaults, func(s *settings) { s.Connect = 1 }),
		`"idle_timeout": "1d"`:       with(defaults, func(s *settings) { s.Idle, s.datagrams = 24*time.Hour, 24*time.Hour }),
		`"idle_timeout": "0"`:        with(defaults, func(s *settings) { s.Idle, s.datagrams = 0, 0 }),
		`"idle_timeout": null`:       defaults,
		`"half_close_timeout": "5s"`: with(defaults, func(s *settings) { s.HalfClose = 5 * time.Second }),
		`"max_lifetime": "1h"`:       with(defaults, func(s *settings) { s.Lifetime = time.Hour }),
		`"retries": 0`:               with(defaults, func(s *settings) { s.retries = 0 }),
		`"retries": 100`:             with(defaults, func(s *settings) { s.retries = 100 }),
		`"max_fails": 0`:             with(defaults, func(s *settings) { s.policy.MaxFails = 0 }),
		`"fail_duration": "1m"`:      with(defaults, func(s *settings) { s.policy.FailDuration = time.Minute }),
		`"stale": "1h"`:              with(defaults, func(s *settings) { s.stale = time.Hour }),
		`"stale": 0`:                 with(defaults, func(s *settings) { s.stale = 0 }),
		`"max_replies": 1`:           with(defaults, func(s *settings) { s.maxReplies = 1 }),
		`"max_reply_ratio": 2.5`:     with(defaults, func(s *settings) { s.maxReplyRatio = 2.5 }),
		`"keepalive": "15s"`:         with(defaults, func(s *settings) { s.keepAlive = 15 * time.Second }),
		`"keepalive": 0`:             with(defaults, func(s *settings) { s.keepAlive = 0 }),
		`"drain_timeout": "1m"`:      with(defaults, func(s *settings) { s.drainTimeout = time.Minute }),
		`"grace_period": "0s"`:       with(defaults, func(s *settings) { s.gracePeriod = 0 }),
		`"timeouts": "strict", "connect_timeout": "1s"`:    with(strict, func(s *settings) { s.Connect = time.Second }),
		`"timeouts": "strict", "idle_timeout": "5m"`:       with(strict, func(s *settings) { s.Idle, s.datagrams = 5*time.Minute, 5*time.Minute }),
		`"timeouts": "strict", "idle_timeout": 0`:          with(strict, func(s *settings) { s.Idle, s.datagrams = 0, 0 }),
		`"timeouts": "strict", "half_close_timeout": "1s"`: with(strict, func(s *settings) { s.HalfClose = time.Second }),
		`"timeouts": "strict", "half_close_timeout": 0`:    with(strict, func(s *settings) { s.HalfClose = 0 }),
		`"max_lifetime": "2h", "timeouts": "strict"`:       with(strict, func(s *settings) { s.Lifetime = 2 * time.Hour }),
		`"timeouts": "strict", "max_lifetime": 0`:          with(strict, func(s *settings) { s.Lifetime = 0 }),
	} {
		config := `{"to": ["127.0.0.1:9"]}`
		if options != "" {
			config = `{"to": ["127.0.0.1:9"], ` + options + `}`
		}
		h, _, _ := provision(t, config)
		if got := h.settings(); got != want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", options, got, want)
		}
	}
}

// One handler's options are not another's: presets are copied.
func TestPresetsStayAsTheyAre(t *testing.T) {
	t.Parallel()
	provision(t, `{"to": ["127.0.0.1:9"], "timeouts": "strict", "idle_timeout": "1s", "max_lifetime": "1s"}`)
	h, _, _ := provision(t, `{"to": ["127.0.0.1:9"], "timeouts": "strict"}`)
	if got := h.settings(); got.Idle != time.Minute || got.Lifetime != 5*time.Minute {
		t.Errorf("%+v", got)
	}
}

// optionNames are those of the handler, in their order.
var optionNames = func() string {
	var names []string
	for _, field := range reflect.VisibleFields(reflect.TypeFor[Handler]()) {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}()

func TestJSONErrors(t *testing.T) {
	t.Parallel()
	cases := map[string]string{
		`[]`:                                           `"[]": expected an object`,
		`{}`:                                           "to: expected at least one upstream, such as 127.0.0.1:9000",
		`{"to": []}`:                                   "to: expected at least one upstream, such as 127.0.0.1:9000",
		`{"to": null}`:                                 "to: expected at least one upstream, such as 127.0.0.1:9000",
		`{"to": "a:1"}`:                                `to: "a:1": expected a list of strings`,
		`{"to": [1]}`:                                  `to: "[1]": expected a list of strings`,
		`{"to": ["a:1", ""]}`:                          `to: "": expected host:port, host:first-last or unix//path`,
		`{"to": ["a:1", "a"]}`:                         `to: "a": expected host:port, host:first-last or unix//path`,
		`{"to": ["a:0"]}`:                              `to: "a:0": port "0": expected a number from 1 to 65535`,
		`{"to": ["a:2-1"]}`:                            `to: "a:2-1": port range "2-1" ends before it starts`,
		`{"to": ["sctp/a:1"]}`:                         `to: "sctp/a:1": unknown network "sctp": expected tcp, tcp4, tcp6, udp, udp4, udp6 or unix`,
		`{"to": ["10.0.0.256:1"]}`:                     `to: "10.0.0.256:1": host "10.0.0.256": expected an IP address or a name`,
		`{"to": ["a:1-2"]}`:                            `to: "a:1-2": expected one port, because there is no listen address with a range of 2`,
		`{"to": ["a:{env.PORTGATE_UNSET}"]}`:           `to: "a:{env.PORTGATE_UNSET}", which is "a:": port "": expected a number from 1 to 65535`,
		`{"to": ["{env.PORTGATE_UNSET}:1"]}`:           `to: "{env.PORTGATE_UNSET}:1", which is ":1": expected a host before the port`,
		`{"to": ["{env.PORTGATE_TEST_HOST}"]}`:         `to: "{env.PORTGATE_TEST_HOST}", which is "127.0.0.1": expected host:port, host:first-last or unix//path`,
		`{"to": ["a:1"], "tos": []}`:                   `unknown option "tos": expected one of ` + optionNames,
		`{"to": ["a:1"], "timeouts": "lax"}`:           `timeouts: "lax": expected strict`,
		`{"to": ["a:1"], "timeouts": 1}`:               `timeouts: "1": expected a string`,
		`{"to": ["a:1"], "connect_timeout": 0}`:        `connect_timeout: "0s": expected a duration of more than 0`,
		`{"to": ["a:1"], "connect_timeout": "0s"}`:     `connect_timeout: "0s": expected a duration of more than 0`,
		`{"to": ["a:1"], "max_replies": -1}`:           `max_replies: "-1": expected a whole number from 0 to 1000000000`,
		`{"to": ["a:1"], "max_replies": 1000000001}`:   `max_replies: "1000000001": expected a whole number from 0 to 1000000000`,
		`{"to": ["a:1"], "max_reply_ratio": -0.5}`:     `max_reply_ratio: "-0.5": expected a number such as 3 or 1.5`,
		`{"to": ["a:1"], "max_fails": -1}`:             `max_fails: "-1": expected a whole number from 0 to 1000`,
		`{"to": ["a:1"], "max_fails": 1001}`:           `max_fails: "1001": expected a whole number from 0 to 1000`,
		`{"to": ["a:1"], "fail_duration": 0}`:          `fail_duration: "0s": expected a duration of more than 0`,
		`{"to": ["a:1"], "retries": -1}`:               `retries: "-1": expected a whole number from 0 to 100`,
		`{"to": ["a:1"], "retries": 101}`:              `retries: "101": expected a whole number from 0 to 100`,
		`{"to": ["a:1"], "retries": 1.5}`:              `retries: "1.5": expected a whole number`,
		`{"to": ["a:1"], "retries": "2"}`:              `retries: "2": expected a whole number`,
		`{"to": ["a:1"], "proxy_protocol": "v3"}`:      `proxy_protocol: "v3": expected v1 or v2`,
		`{"to": ["a:1"], "proxy_protocol": "v2 all"}`:  `proxy_protocol: "all": expected each or first`,
		`{"to": ["a:1"], "proxy_protocol": "v2 "}`:     `proxy_protocol: "": expected each or first`,
		`{"to": ["a:1"], "proxy_protocol": "v1 each"}`: `proxy_protocol: "v1 each": expected v2 before each, because version 1 is for TCP alone`,
		`{"to": ["a:1"], "source": ["::"]}`:            `source: "::": expected an IP address of this machine, such as 192.0.2.7`,
		`{"to": ["a:1"], "idle_timeout": {"a": "1"}}`:  `idle_timeout: "{\"a\": \"1\"}": expected a duration such as 30s`,
	}
	for _, option := range []string{
		"connect_timeout", "idle_timeout", "half_close_timeout", "max_lifetime", "keepalive", "drain_timeout", "grace_period",
	} {
		for value, want := range map[string]string{
			`"5x"`:  `"5x": expected a duration such as 30s`,
			`""`:    `"": expected a duration such as 30s`,
			`true`:  `"true": expected a duration such as 30s`,
			`"-1s"`: `"-1s": expected a duration of 0 or more`,
			`-1`:    `"-1": expected a duration of 0 or more`,
		} {
			cases[fmt.Sprintf(`{"to": ["a:1"], %q: %s}`, option, value)] = option + ": " + want
		}
	}
	for config, want := range cases {
		_, _, _, err := tryProvision(t, config)
		// Before it stands what Caddy was doing.
		if err == nil || !strings.HasSuffix(err.Error(), "layer4.handlers.forward: "+want) {
			t.Errorf("%s:\ngot  %v\nwant %s", config, err, want)
		}
	}
}

// parse reads a forward directive as the Caddyfile adapter does, and returns it as JSON.
func parse(directive string) (string, error) {
	h := new(Handler)
	if err := h.UnmarshalCaddyfile(caddyfile.NewTestDispenser(directive)); err != nil {
		return "", err
	}
	config, err := json.Marshal(h)
	return string(config), err
}

func TestCaddyfile(t *testing.T) {
	t.Parallel()
	for directive, want := range map[string]string{
		"forward a:1":                                 `{"to":["a:1"]}`,
		"forward a:1 unix//run/s":                     `{"to":["a:1","unix//run/s"]}`,
		"forward {\n to a:1\n}":                       `{"to":["a:1"]}`,
		"forward a:1 {\n to b:2 c:3\n to {x}:4\n}":    `{"to":["a:1","b:2","c:3","{x}:4"]}`,
		"forward a:1 {\n}":                            `{"to":["a:1"]}`,
		"forward a:1 {\n connect_timeout 1s\n}":       `{"to":["a:1"],"connect_timeout":1000000000}`,
		"forward a:1 {\n idle_timeout 0\n}":           `{"to":["a:1"],"idle_timeout":0}`,
		"forward a:1 {\n half_close_timeout 1ms\n}":   `{"to":["a:1"],"half_close_timeout":1000000}`,
		"forward a:1 {\n max_lifetime 1d\n}":          `{"to":["a:1"],"max_lifetime":86400000000000}`,
		"forward a:1 {\n timeouts strict\n}":          `{"to":["a:1"],"timeouts":"strict"}`,
		"forward a:1 {\n retries 0\n}":                `{"to":["a:1"],"retries":0}`,
		"forward a:1 {\n keepalive 30s\n}":            `{"to":["a:1"],"keepalive":30000000000}`,
		"forward a:1 {\n drain_timeout 1m\n}":         `{"to":["a:1"],"drain_timeout":60000000000}`,
		"forward a:1 {\n grace_period 1s\n}":          `{"to":["a:1"],"grace_period":1000000000}`,
		"forward \"{env.A}\" {\n to {l4.b}/{c}\n}":    `{"to":["{env.A}","{l4.b}/{c}"]}`,
		"forward 127.0.0.1:7000-7010 [::1]:1-11 {\n}": `{"to":["127.0.0.1:7000-7010","[::1]:1-11"]}`,
	} {
		if got, err := parse(directive); err != nil || got != want {
			t.Errorf("%s:\ngot  %s, %v\nwant %s", directive, got, err, want)
		}
	}
}

func TestCaddyfileErrors(t *testing.T) {
	t.Parallel()
	cases := map[string]string{ // with the line
		"forward":                                     `to: expected at least one upstream, such as 127.0.0.1:9000, at Testfile:1`,
		"forward {\n idle_timeout 1s\n}":              `to: expected at least one upstream, such as 127.0.0.1:9000, at Testfile:3`,
		"forward a":                                   `forward: "a": expected host:port, host:first-last or unix//path, at Testfile:1`,
		"forward a:1 {\n to b:x\n}":                   `to: "b:x": port "x": expected a number from 1 to 65535, at Testfile:2`,
		"forward a:1 {\n to\n}":                       `to: expected at least 1 value, at Testfile:2`,
		"forward a:1 {\n tos b:1\n}":                  `unknown option "tos": expected one of ` + strings.Replace(optionNames, "upstreams", "upstream", 1) + `, at Testfile:2`,
		"forward a:1 {\n max_replies x\n}":            `max_replies: "x": expected a whole number from 0 to 1000000000, at Testfile:2`,
		"forward a:1 {\n max_reply_ratio -1\n}":       `max_reply_ratio: "-1": expected a number such as 3 or 1.5, at Testfile:2`,
		"forward a:1 {\n max_reply_ratio NaN\n}":      `max_reply_ratio: "NaN": expected a number such as 3 or 1.5, at Testfile:2`,
		"forward a:1 {\n max_reply_ratio inf\n}":      `max_reply_ratio: "inf": expected a number such as 3 or 1.5, at Testfile:2`,
		"forward a:1 {\n retries 1\n retries 2\n}":    `retries: given twice, at Testfile:3`,
		"forward a:1 {\n retries x\n}":                `retries: "x": expected a whole number from 0 to 100, at Testfile:2`,
		"forward a:1 {\n retries 101\n}":              `retries: "101": expected a whole number from 0 to 100, at Testfile:2`,
		"forward a:1 {\n timeouts lax\n}":             `timeouts: "lax": expected strict, at Testfile:2`,
		"forward a:1 {\n timeouts \"\"\n}":            `timeouts: "": expected strict, at Testfile:2`,
		"forward a:1 {\n timeouts strict {\n x\n}\n}": `timeouts: expected no block, at Testfile:2`,
		"forward a:1 {\n connect_timeout 0\n}":        `connect_timeout: "0": expected a duration of more than 0, at Testfile:2`,
		"forward a:1 {\n connect_timeout 0ms\n}":      `connect_timeout: "0ms": expected a duration of more than 0, at Testfile:2`,
	}
	for _, option := range []string{
		"connect_timeout", "idle_timeout", "half_close_timeout", "max_lifetime", "keepalive", "drain_timeout", "grace_period",
	} {
		for value, want := range map[string]string{
			"5x": `"5x": expected a duration such as 30s`, "-1s": `"-1s": expected a duration of 0 or more`,
			"1s 2s": `"1s 2s": expected 1 value`, "": `expected 1 value`,
		} {
			cases[fmt.Sprintf("forward a:1 {\n %s %s\n}", option, value)] = option + ": " + want + ", at Testfile:2"
		}
	}
	for directive, want := range cases {
		if got, err := parse(directive); err == nil || err.Error() != want {
			t.Errorf("%s:\ngot  %s, %v\nwant %s", directive, got, err, want)
		}
	}
}

// What the adapter writes is what the handler reads.
func TestCaddyfileAndBack(t *testing.T) {
	t.Parallel()
	config, err := parse("forward a:1 {\n to b:2\n timeouts strict\n connect_timeout 1s\n idle_timeout 2s\n half_close_timeout 3s\n" +
		" max_lifetime 4s\n retries 5\n keepalive 6s\n drain_timeout 7s\n grace_period 8s\n max_replies 9\n max_reply_ratio 10\n max_fails 11\n fail_duration 12s\n stale 13s\n}")
	if err != nil {
		t.Fatal(err)
	}
	h, _, _ := provision(t, config)
	want := settings{
		relay.Limits{Connect: time.Second, Idle: 2 * time.Second, HalfClose: 3 * time.Second, Lifetime: 4 * time.Second},
		2 * time.Second, 9, 10, 6 * time.Second, 5, 7 * time.Second, 8 * time.Second,
		upstream.Policy{MaxFails: 11, FailDuration: 12 * time.Second},
		13 * time.Second,
	}
	if got := h.settings(); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
