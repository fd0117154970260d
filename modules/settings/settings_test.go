package settings

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/global"
)

func adapt(options string) (string, error) {
	adapter := caddyconfig.GetAdapter("caddyfile")
	config, _, err := adapter.Adapt([]byte("{\n"+options+"\n}\n"), map[string]any{"filename": "Caddyfile"})
	return string(config), err
}

func TestSettings(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]string{
		"portgate":                           `{}`,
		"portgate {\n udp_max_sessions 5\n}": `{"udp_max_sessions":5}`,
		"portgate {\n max_sessions 5\n reserve_descriptors 0\n}":                            `{"max_sessions":5,"reserve_descriptors":0}`,
		"portgate {\n zone east-1\n}":                                                       `{"zone":"east-1"}`,
		"portgate {\n udp_max_sessions_per_client 1\n}":                                     `{"udp_max_sessions_per_client":1}`,
		"portgate {\n udp_max_sessions 1000000\n udp_max_sessions_per_client 7\n}":          `{"udp_max_sessions":1000000,"udp_max_sessions_per_client":7}`,
		"portgate {\n access_log\n}":                                                        `{"access_log":{}}`,
		"portgate {\n access_log {\n  queue 500\n  sample 403 100/s\n  sample 502 0\n }\n}": `{"access_log":{"queue":500,"sample":{"403":"100/s","502":"0"}}}`,
	} {
		got, err := adapt(input)
		if want = `{"apps":{"portgate":` + want + `}}`; err != nil || got != want {
			t.Errorf("%s:\ngot  %s, %v\nwant %s", input, got, err, want)
		}
	}
}

func TestWrongSettings(t *testing.T) {
	t.Parallel()
	const known = "expected one of max_sessions, reserve_descriptors, udp_max_sessions, udp_max_sessions_per_client, zone, access_log"
	for input, want := range map[string]string{
		"portgate x":                                                           `portgate: "x": expected no value, at Caddyfile:2`,
		"portgate {\n tcp_max_sessions 5\n}":                                   `unknown option "tcp_max_sessions": ` + known + `, at Caddyfile:3`,
		"portgate {\n max_sessions 0\n}":                                       `max_sessions: "0": expected a whole number from 1 to 1000000, at Caddyfile:3`,
		"portgate {\n reserve_descriptors -1\n}":                               `reserve_descriptors: "-1": expected a whole number from 0 to 1000000, at Caddyfile:3`,
		"portgate {\n udp_max_sessions\n}":                                     `udp_max_sessions: expected 1 value, at Caddyfile:3`,
		"portgate {\n udp_max_sessions 0\n}":                                   `udp_max_sessions: "0": expected a whole number from 1 to 1000000, at Caddyfile:3`,
		"portgate {\n zone \"\"\n}":                                            `zone: "": expected the name of a zone, at Caddyfile:3`,
		"portgate {\n udp_max_sessions_per_client x\n}":                        `udp_max_sessions_per_client: "x": expected a whole number from 1 to 1000000, at Caddyfile:3`,
		"portgate {\n udp_max_sessions 1\n}\nportgate\n":                       `portgate: given twice, at Caddyfile:5`,
		"portgate {\n access_log x\n}":                                         `access_log: "x": expected no value, at Caddyfile:3`,
		"portgate {\n access_log {\n  sampled 1\n }\n}":                        `unknown option "sampled": expected one of queue, sample, at Caddyfile:4`,
		"portgate {\n access_log {\n  queue 0\n }\n}":                          `queue: "0": expected a whole number from 1 to 1000000, at Caddyfile:4`,
		"portgate {\n access_log {\n  sample 403\n }\n}":                       `sample: "403": expected 2 values, at Caddyfile:4`,
		"portgate {\n access_log {\n  sample denied 1/s\n }\n}":                `sample: "denied": expected a status such as 403, at Caddyfile:4`,
		"portgate {\n access_log {\n  sample 403 some\n }\n}":                  `sample: "some": expected a rate such as 100/s: a whole number from 1 to 1000000000, in s, m, h or d, or 0 for no entries, at Caddyfile:4`,
		"portgate {\n access_log {\n  sample 403 1/s\n  sample 403 2/s\n }\n}": `sample: "403": given twice, at Caddyfile:5`,
	} {
		if _, err := adapt(input); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s:\ngot  %v\nwant %s", input, err, want)
		}
	}
	most := fmt.Sprintf("%d, less than the process may have (RLIMIT_NOFILE)", descriptors.Limit()-1)
	for input, want := range map[string]string{
		`{"tcp_max_sessions":5}`:                     `unknown option "tcp_max_sessions": ` + known,
		`{"max_sessions":0}`:                         `max_sessions: "0": expected a whole number from 1 to 1000000`,
		`{"reserve_descriptors":-1}`:                 `reserve_descriptors: "-1": expected a whole number from 0 to ` + most,
		`{"reserve_descriptors":100000000}`:          `reserve_descriptors: "100000000": expected a whole number from 0 to ` + most,
		`{"udp_max_sessions":"5"}`:                   `udp_max_sessions: "5": expected a whole number`,
		`{"access_log":{"sampled":{}}}`:              `access_log: unknown option "sampled": expected one of queue, sample`,
		`{"access_log":{"queue":0}}`:                 `access_log: queue: "0": expected a whole number from 1 to 1000000`,
		`{"access_log":{"sample":{"99":"1/s"}}}`:     `access_log: sample: "99": expected a status such as 403`,
		`{"access_log":{"sample":{"403":"0/s"}}}`:    `access_log: sample: "0/s": expected a rate such as 100/s: a whole number from 1 to 1000000000, in s, m, h or d, or 0 for no entries`,
		`{"udp_max_sessions":0}`:                     `udp_max_sessions: "0": expected a whole number from 1 to 1000000`,
		`{"udp_max_sessions_per_client":1000000000}`: `udp_max_sessions_per_client: "1000000000": expected a whole number from 1 to 1000000`,
	} {
		s := new(App)
		err := json.Unmarshal([]byte(input), s)
		if err == nil {
			err = s.Provision(caddy.Context{})
		}
		if err == nil || err.Error() != want {
			t.Errorf("%s:\ngot  %v\nwant %s", input, err, want)
		}
	}
}

func TestAccessLogOptions(t *testing.T) {
	t.Parallel()
	options := func(input string) global.AccessLog {
		t.Helper()
		a := new(App)
		if err := json.Unmarshal([]byte(input), a); err != nil {
			t.Fatal(err)
		}
		if err := a.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		return a.Options().AccessLog
	}
	if got := options(`{}`); got.Queue != 10_000 || len(got.Sample) != 0 {
		t.Errorf("by default: %+v", got)
	}
	got := options(`{"access_log":{"queue":5,"sample":{"403":"100/s","429":"30/m","502":"0"}}}`)
	if want := (map[int]float64{403: 100, 429: 0.5, 502: 0}); got.Queue != 5 || !maps.Equal(got.Sample, want) {
		t.Errorf("got %+v", got)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	limit := descriptors.Limit()
	for input, want := range map[string][4]int{
		`{}`: {global.DefaultMaxSessions(descriptors.DefaultReserve()), descriptors.DefaultReserve(), 10_000, 1_000},
		`{"max_sessions":5,"udp_max_sessions":6,"udp_max_sessions_per_client":7,"reserve_descriptors":8}`: {5, 8, 6, 7},
		`{"reserve_descriptors":0}`: {limit / 8 * 7 / 2, 0, 10_000, 1_000},
	} {
		a := new(App)
		if err := json.Unmarshal([]byte(input), a); err != nil {
			t.Fatal(err)
		}
		err := a.Provision(caddy.Context{})
		o := a.Options()
		if got := [...]int{o.MaxSessions, o.ReserveDescriptors, o.UDPMaxSessions, o.UDPMaxSessionsPerClient}; err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", input, got, err, want)
		}
	}
}
