package acl

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	"go.uber.org/goleak"
)

// A config runs throughout, as in a process that is not being stopped. It logs nothing, and stores in a folder that goes.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "acl-")
	if err != nil {
		panic(err)
	}
	config, _ := json.Marshal(map[string]any{
		"admin":   map[string]any{"disabled": true, "config": map[string]any{"persist": false}},
		"logging": map[string]any{"logs": map[string]any{"default": map[string]any{"writer": map[string]any{"output": "discard"}}}},
		"storage": map[string]any{"module": "file_system", "root": dir},
	})
	if err := caddy.Load(config, true); err != nil {
		panic(err)
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Println(err)
		code = 1
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// provision makes a module of a config of its own. unload replaces that config.
func provision[M any](t testing.TB, id, config string) (module M, unload func()) {
	t.Helper()
	module, unload, err := tryProvision[M](t, id, config)
	if err != nil {
		t.Fatal(err)
	}
	return module, unload
}

func tryProvision[M any](t testing.TB, id, config string) (module M, unload func(), err error) {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.ActiveContext())
	unload = sync.OnceFunc(cancel)
	t.Cleanup(unload)
	loaded, err := ctx.LoadModuleByID(id, json.RawMessage(config))
	if err != nil {
		return module, unload, err
	}
	return loaded.(M), unload, nil
}

func handler(t testing.TB, config string) (h *Handler, unload func()) {
	t.Helper()
	return provision[*Handler](t, "layer4.handlers.acl", config)
}

// eventually waits until the condition holds.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute) // a machine may be busy
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write writes a file in the simple way: it is cut to nothing first.
func write(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o600))
}

// tempFile returns the path of a new file with this content.
func tempFile(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "list")
	write(t, path, content)
	return path
}
