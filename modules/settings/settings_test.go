package settings

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
)

func adapt(options string) (string, error) {
	adapter := caddyconfig.GetAdapter("caddyfile")
	config, _, err := adapter.Adapt([]byte("{\n"+options+"\n}\n"), map[string]any{"filename": "Caddyfile"})
	return string(config), err
}

func TestSettings(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]string{
		"portgate":                                      `{}`,
		"portgate {\n udp_max_sessions 5\n}":            `{"udp_max_sessions":5}`,
		"portgate {\n udp_max_sessions_per_client 1\n}": `{"udp_max_sessions_per_client":1}`,
		"portgate {\n udp_max_sessions 1000000\n udp_max_sessions_per_client 7\n}": `{"udp_max_sessions":1000000,"udp_max_sessions_per_client":7}`,
	} {
		got, err := adapt(input)
		if want = `{"apps":{"portgate":` + want + `}}`; err != nil || got != want {
			t.Errorf("%s:\ngot  %s, %v\nwant %s", input, got, err, want)
		}
	}
}

func TestWrongSettings(t *testing.T) {
	t.Parallel()
	const known = "expected one of udp_max_sessions, udp_max_sessions_per_client"
	for input, want := range map[string]string{
		"portgate x":                                     `portgate: "x": expected no value, at Caddyfile:2`,
		"portgate {\n max_sessions 5\n}":                 `unknown option "max_sessions": ` + known + `, at Caddyfile:3`,
		"portgate {\n udp_max_sessions\n}":               `udp_max_sessions: expected 1 value, at Caddyfile:3`,
		"portgate {\n udp_max_sessions 0\n}":             `udp_max_sessions: "0": expected a whole number from 1 to 1000000, at Caddyfile:3`,
		"portgate {\n udp_max_sessions_per_client x\n}":  `udp_max_sessions_per_client: "x": expected a whole number from 1 to 1000000, at Caddyfile:3`,
		"portgate {\n udp_max_sessions 1\n}\nportgate\n": `portgate: given twice, at Caddyfile:5`,
	} {
		if _, err := adapt(input); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s:\ngot  %v\nwant %s", input, err, want)
		}
	}
	for input, want := range map[string]string{
		`{"max_sessions":5}`:                         `unknown option "max_sessions": ` + known,
		`{"udp_max_sessions":"5"}`:                   `udp_max_sessions: "5": expected a whole number`,
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
