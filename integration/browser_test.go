package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// browserTimeout is for all that the browser does.
const browserTimeout = 10 * time.Minute

// browserChecks are what integration/browser/page.cjs has to report, in this order.
var browserChecks = []string{
	"opens", "is small", "is live", "follows traffic", "reads a chart by keyboard", "names the busiest client", "bans by keyboard", "shows texts as texts",
	"unbans", "drains", "undrains", "filters", "closes one", "closes what is found", "keeps the history over a reload", "shows events", "pauses while hidden",
	"is accessible", "is dark", "moves little", "fits 360 pixels", "asks nobody else", "reports no error",
	"is read-only on a site", "changes on a writable site",
	"attacks from another site", "attacks from another port", "attacks by a rebound name", "nothing has changed",
}

// The status page in a real browser: what it shows, what its buttons do, and what another page can't do in its name.
func TestStatusPageInABrowser(t *testing.T) {
	a, b := serveWord(t, "a"), serveWord(t, "b")
	addr, admin, readOnly, writable := gate.ReserveAddr(t), gate.ReserveAddr(t), gate.ReserveAddr(t), gate.ReserveAddr(t)
	site := func(addr string, handler gate.JSON) gate.JSON {
		return gate.JSON{"listen": []string{addr}, "automatic_https": gate.JSON{"disable": true}, "routes": []gate.JSON{{"handle": []gate.JSON{handler}}}}
	}
	config := gate.Layer4(gate.Listen(addr,
		gate.JSON{"handler": "acl", "rules": []gate.JSON{{"deny": []string{"list", "banned"}}}, "default": "allow"},
		gate.JSON{"handler": "rate_limit", "concurrent": []gate.JSON{{"max": 100}}},
		gate.Forward(a, b),
	)).WithApp("http", gate.JSON{"servers": gate.JSON{
		"read":  site(readOnly, gate.JSON{"handler": "portgate_status"}),
		"write": site(writable, gate.JSON{"handler": "portgate_status", "path": "/status", "writable": true}),
	}}).With("admin", gate.JSON{"listen": admin, "origins": []string{admin, ""}})
	p := gate.Start(t, config)
	modules, screenshots := browserModules(t)
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Write([]byte("<!doctype html><title>evil</title>"))
	}))
	t.Cleanup(evil.Close)
	given, err := json.Marshal(map[string]any{
		"modules": modules, "screenshots": screenshots, "chromium": "chromium", "gate": addr, "admin": admin, "readOnly": readOnly, "writable": writable,
		"evil": evil.Listener.Addr().String(), "config": json.RawMessage(p.MustGet("/config/")), "upstreams": []string{a, b},
	})
	must(t, err)
	if done := runBrowser(t, string(given)); !slices.Equal(done, browserChecks) {
		t.Errorf("checks that were done:\n %s\nwant\n %s", strings.Join(done, "\n "), strings.Join(browserChecks, "\n "))
	}
}

// runBrowser returns the checks that were done, in order. It fails the test for those that have failed.
func runBrowser(t *testing.T, given string) (done []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), browserTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "browser/page.cjs", given)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // and the browser
	cmd.Stderr = os.Stderr
	output, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	began := time.Now()
	for lines := bufio.NewScanner(output); lines.Scan(); {
		switch word, rest, _ := strings.Cut(lines.Text(), " "); word {
		case "ok":
			t.Logf("%5.1fs %s", time.Since(began).Seconds(), rest)
			done = append(done, rest)
		case "failed":
			t.Error(rest)
		default:
			t.Log(lines.Text())
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("node: %v", err)
	}
	return done
}

// browserModules returns the folder with the packages of npm, and one for screenshots, which stays where make has compiled.
func browserModules(t *testing.T) (modules, screenshots string) {
	t.Helper()
	if dir := os.Getenv(gate.Compiled); dir != "" {
		screenshots = filepath.Join(dir, "screenshots")
		must(t, os.MkdirAll(screenshots, 0o755))
		return filepath.Join(dir, "browser"), screenshots
	}
	modules = t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json"} {
		data, err := os.ReadFile(filepath.Join("browser", name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(modules, name), data, 0o600))
	}
	if out, err := exec.Command("npm", "ci", "--prefix", modules, "--no-audit", "--no-fund").CombinedOutput(); err != nil {
		t.Fatalf("npm: %v\n%s", err, out)
	}
	return modules, t.ArtifactDir()
}

// serveWord is an upstream that says a word to whoever comes, and then what it is told.
func serveWord(t *testing.T, word string) string {
	return serve(t, func(c *net.TCPConn) {
		if _, err := c.Write([]byte(word)); err == nil {
			echo(c)
		}
	})
}
