package forward

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"
)

func TestParseFlags(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		from, idle string
		to         []string
		wantFrom   string
	}{
		{":8080", "", []string{"a:1"}, "gate+tcp/:8080"},
		{"127.0.0.1:8080", "1h", []string{"a:1", "b:2"}, "gate+tcp/127.0.0.1:8080"},
		{"[::1]:8080", "0", []string{"[::1]:1"}, "gate+tcp/[::1]:8080"},
		{"tcp/:8080", "", []string{"a:1"}, ":8080"},
		{"unix//run/s", "", []string{"a:1"}, "unix//run/s"},
		{"gate+tcp4/:8080", "", []string{"a:1"}, "gate+tcp4/:8080"},
		{"udp/:53", "", []string{"udp/a:53"}, "gate+udp/:53"},
		{"udp6/:53", "", []string{"udp/a:53"}, "gate+udp6/:53"},
		{"gate+fd/3", "", []string{"a:1"}, "gate+fd/3:0"},
		{"fdgram/3", "", []string{"udp/a:53"}, "gate+fdgram/3:0"},
		{":7000-7010", "", []string{"a:7000-7010", "b:1-11", "unix//run/s"}, "gate+tcp/:7000-7010"},
		{":7000-7010", "", []string{"a:{l4.vars.port}"}, "gate+tcp/:7000-7010"},
		{":8080", "", []string{"{env.PORTGATE_TEST_HOST}:1"}, "gate+tcp/:8080"},
	} {
		from, h, err := parseFlags(flagValues{from: c.from, to: c.to, idleTimeout: c.idle})
		if err != nil || from.String() != c.wantFrom || fmt.Sprint(h.To) != fmt.Sprint(c.to) {
			t.Errorf("%+v: got %s, %+v, %v", c, from, h, err)
		}
		if (h.IdleTimeout != nil) != (c.idle != "") {
			t.Errorf("%+v: idle timeout %v", c, h.IdleTimeout)
		}
	}
}

func TestParseFlagsErrors(t *testing.T) {
	t.Parallel()
	const address = "expected an address to listen on, such as :8080"
	for _, c := range []struct {
		from, idle string
		to         []string
		want       string
	}{
		{"", "", []string{"a:1"}, "--from: " + address},
		{"8080", "", []string{"a:1"}, `--from: "8080": ` + address},
		{"localhost", "", []string{"a:1"}, `--from: "localhost": ` + address},
		{":0", "", []string{"a:1"}, `--from: ":0": ` + address},
		{":x", "", []string{"a:1"}, `--from: ":x": ` + address},
		{":2-1", "", []string{"a:1"}, `--from: ":2-1": ` + address},
		{":1-99999", "", []string{"a:1"}, `--from: ":1-99999": ` + address},
		{":8080", "", nil, "--to: expected at least one upstream, such as 127.0.0.1:9000"},
		{":8080", "", []string{"a:1", "b"}, `--to: "b": expected host:port, host:first-last or unix//path`},
		{":8080", "", []string{"a:{env.PORTGATE_UNSET}"}, `--to: "a:{env.PORTGATE_UNSET}", which is "a:": port "": expected a number from 1 to 65535`},
		{":8080", "5x", []string{"a:1"}, `--idle-timeout: "5x": expected a duration such as 30s`},
		{":8080", "-1s", []string{"a:1"}, `--idle-timeout: "-1s": expected a duration of 0 or more`},
		{":8080", "", []string{"a:1-2"}, `--to: "a:1-2": expected one port, as the listen address "gate+tcp/:8080" has`},
		{":1-3", "", []string{"a:1"}, `--to: "a:1": expected a range of 3 ports, as the listen address "gate+tcp/:1-3" has, or a placeholder`},
	} {
		if _, _, err := parseFlags(flagValues{from: c.from, to: c.to, idleTimeout: c.idle}); err == nil || err.Error() != c.want {
			t.Errorf("%+v:\ngot  %v\nwant %s", c, err, c.want)
		}
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	for idle, want := range map[string]string{
		"": "listening on gate+tcp/:8080, forwarding to a:1, b:2\n" +
			"timeouts: connect 3s, idle 10m0s, half-close as idle, lifetime never, grace period 10s\n",
		"0": "listening on gate+tcp/:8080, forwarding to a:1, b:2\n" +
			"timeouts: connect 3s, idle never, half-close as idle, lifetime never, grace period 10s\n",
	} {
		from, h, err := parseFlags(flagValues{from: ":8080", to: []string{"a:1", "b:2"}, idleTimeout: idle})
		if err != nil {
			t.Fatal(err)
		}
		if got := describe(from, h); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	h := &Handler{To: []string{"a:1"}, Timeouts: "strict"}
	if err := h.applyDefaults(); err != nil {
		t.Fatal(err)
	}
	if got, want := describe(caddy.NetworkAddress{Network: "tcp", Host: "::1", StartPort: 1, EndPort: 2}, h),
		"listening on [::1]:1-2, forwarding to a:1\ntimeouts: connect 3s, idle 1m0s, half-close 15s, lifetime 5m0s, grace period 10s\n"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestFlagsOfUpstreams(t *testing.T) {
	t.Parallel()
	from, h, err := parseFlags(flagValues{from: ":8080", to: []string{"a:1", "b:2"}, backup: []string{"c:3"}, lbPolicy: "least_conn"})
	if err != nil {
		t.Fatal(err)
	}
	if got := describe(from, h); !strings.HasPrefix(got, "listening on gate+tcp/:8080, forwarding to a:1, b:2, backup c:3\n") {
		t.Errorf("got %s", got)
	}
	want := `"handler":"forward","lb_policy":"least_conn","to":["a:1","b:2"],"upstreams":[{"address":"c:3","backup":true}]`
	if got := string(commandConfig(from, h, false, false).AppsRaw["layer4"]); !strings.Contains(got, want) {
		t.Errorf("got %s", got)
	}
	for want, flags := range map[string]flagValues{
		`--backup: "c": expected host:port, host:first-last or unix//path`: {from: ":8080", to: []string{"a:1"}, backup: []string{"c"}},
		`--backup: "udp/c:1": a udp address can't be sent a stream: expected tcp/host:port or unix//path, as the listen address "gate+tcp/:8080" needs`: {
			from: ":8080", to: []string{"a:1"}, backup: []string{"udp/c:1"},
		},
		"--backup: \"a:1\": given twice: expected it once; with a weight it gets more sessions": {from: ":8080", to: []string{"a:1"}, backup: []string{"a:1"}},
		`--lb-policy: "last": expected round_robin, least_conn, random, random_choose, first, ip_hash or hash`: {
			from: ":8080", to: []string{"a:1"}, lbPolicy: "last",
		},
		"--to: expected at least one upstream, such as 127.0.0.1:9000": {from: ":8080", backup: []string{"a:1"}},
	} {
		if _, _, err := parseFlags(flags); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestNoArguments(t *testing.T) {
	t.Parallel()
	if err := noArguments(new(cobra.Command), nil); err != nil {
		t.Error(err)
	}
	if err := noArguments(new(cobra.Command), []string{"8080", "9090"}); err == nil || err.Error() != `"8080": expected no argument besides the flags; a value of several words stands in quotes` {
		t.Errorf("got %v", err)
	}
}

// Not parallel: loggers are made with os.Stderr.
func TestCommandConfig(t *testing.T) {
	from, h, err := parseFlags(flagValues{from: ":8080", to: []string{"a:1", "unix//run/s"}, idleTimeout: "1h"})
	if err != nil {
		t.Fatal(err)
	}
	stderr := os.Stderr
	defer func() { os.Stderr = stderr }()
	if os.Stderr, err = os.Create(t.TempDir() + "/stderr"); err != nil { // not a terminal
		t.Fatal(err)
	}
	defer os.Stderr.Close()
	app := `{"layer4":{"servers":{"forward":{"listen":["gate+tcp/:8080"],` +
		`"routes":[{"handle":[{"handler":"forward","idle_timeout":3600000000000,"to":["a:1","unix//run/s"]}]}]}}}}`
	for _, c := range []struct {
		accessLog, debug bool
		want             string
	}{
		{false, false, `,"exclude":["layer4.log.access"]}`},
		{true, false, `}`},
		{false, true, `,"level":"DEBUG","exclude":["layer4.log.access"]}`},
		{true, true, `,"level":"DEBUG"}`},
	} {
		config, err := json.Marshal(commandConfig(from, h, c.accessLog, c.debug))
		if err != nil {
			t.Fatal(err)
		}
		want := `{"admin":{"disabled":true,"config":{"persist":false}},"logging":{"logs":{"default":{"writer":{"output":"queued","writer":{"output":"stderr"}}` + c.want + `}},"apps":` + app + `}`
		if string(config) != want {
			t.Errorf("%+v:\ngot  %s\nwant %s", c, config, want)
		}
	}
}

// The config of the command runs.
func TestCommandForwards(t *testing.T) {
	mustLoad(t, object{}) // puts the config of the other tests back
	host := newHost()
	from, h, err := parseFlags(flagValues{from: "detachable/" + host + ":8080-8081", to: []string{ports(t, "a", 9000, 9001)}})
	if err != nil {
		t.Fatal(err)
	}
	config := commandConfig(from, h, true, false)
	var logging struct {
		Logging *caddy.Logging `json:"logging"`
	}
	if err := json.Unmarshal([]byte(`{"logging": {"logs": {"default": {"encoder": {"format": "json"},
		"include": ["layer4.log.access"], "writer": {"output": "test_memory"}}}}}`), &logging); err != nil {
		t.Fatal(err)
	}
	config.Logging = logging.Logging
	if err := caddy.Run(config); err != nil {
		t.Fatal(err)
	}
	mustReach(t, host, 8080, "a 0")
	mustReach(t, host, 8081, "a 1")
}
