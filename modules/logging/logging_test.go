package logging

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
)

func adapt(log string) (string, error) {
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte("{\n log {\n"+log+"\n }\n}\n"), map[string]any{"filename": "Caddyfile"})
	return string(config), err
}

func TestCaddyfile(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]string{
		"output queued stdout":                            `{"output":"queued","writer":{"output":"stdout"}}`,
		"output queued net 127.0.0.1:9 {\n soft_start\n}": `{"output":"queued","writer":{"address":"127.0.0.1:9","output":"net","soft_start":true}}`,
	} {
		got, err := adapt(input)
		if want = `{"logging":{"logs":{"default":{"writer":` + want + `}}}}`; err != nil || got != want {
			t.Errorf("%s:\ngot  %s, %v\nwant %s", input, got, err, want)
		}
	}
	for input, want := range map[string]string{
		"output queued":          `queued: expected a log writer such as stdout`,
		"output queued pipe":     `queued: "pipe": expected a log writer such as stdout`,
		"output queued stdout x": `queued: stdout: "x": expected no value`,
		"output queued net":      `wrong argument count`,
		"output queued net {":    `wrong argument count`,
	} {
		if _, err := adapt(input); err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(want)) {
			t.Errorf("%s:\ngot  %v\nwant %s", input, err, want)
		}
	}
}

func load(writer string) error {
	return caddy.Load([]byte(`{"admin": {"disabled": true, "config": {"persist": false}}, "logging": {"logs": {"default": {"writer": `+writer+`}}}}`), true)
}

func TestJSON(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	name, _ := json.Marshal(file)
	if err := load(`{"output": "queued", "writer": {"output": "file", "filename": ` + string(name) + `, "roll": false}}`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := load(`{"output": "discard"}`); err != nil {
			t.Error(err)
		}
	})
	caddy.Log().Info("line")
	// It is there when the log call has returned, as the last words of a process have to be.
	if data, err := os.ReadFile(file); err != nil || !strings.Contains(string(data), `"msg":"line"`) {
		t.Errorf("%s, %v", data, err)
	}
	for input, want := range map[string]string{
		`{"output": "queued"}`:                                                 `writer: expected a log writer such as {"output": "stdout"}`,
		`{"output": "queued", "writer": {"output": "pipe"}}`:                   `unknown module: caddy.logging.writers.pipe`,
		`{"output": "queued", "writer": {"output": "stdout"}, "queue": 100}`:   `unknown option "queue": expected one of writer`,
		`{"output": "queued", "writer": {"output": "net", "address": ":1-2"}}`: `multiple ports not supported`,
	} {
		if err := load(input); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\ngot  %v\nwant %s", input, err, want)
		}
	}
}
