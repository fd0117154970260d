package adminapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// serve answers on a listener with what was asked.
func serve(t *testing.T, listener net.Listener) {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/error":
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, `{"error":"list: \"a\\x1b\": \u001b[2Jfull"}`)
		case "/text":
			http.Error(w, "no such\x1bpage", http.StatusForbidden)
		case "/absent":
			http.NotFound(w, r)
		case "/silent":
			w.WriteHeader(http.StatusBadGateway)
		default:
			fmt.Fprintf(w, "%s %s %s %s %s", r.Method, r.URL, body, r.Header.Get("Origin"), r.Header.Get("Content-Type"))
		}
	}))
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
}

func TestClient(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "admin-") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "sock")
	socket, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, socket)
	serve(t, port)
	addr := port.Addr().String()
	for address, origin := range map[string]string{"unix/" + path: "", "unix/" + path + "|0660": "", addr: "http://" + addr, "tcp/" + addr: "http://" + addr} {
		c, err := NewClient(address)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Do(t.Context(), http.MethodPatch, "/a?b=c", []byte(`{}`))
		if want := "PATCH /a?b=c {} " + origin + " application/json"; string(got) != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", address, got, err, want)
		}
		for path, want := range map[string]Refusal{
			"/error":  {409, `list: "a\x1b": \x1b[2Jfull`},
			"/text":   {403, `no such\x1bpage`},
			"/absent": {404, "/absent: expected the admin API of a Caddy that has Portgate, and a version with this"},
			"/silent": {502, "Bad Gateway"},
		} {
			_, err := c.Do(t.Context(), http.MethodGet, path, nil)
			var refusal *Refusal
			if !errors.As(err, &refusal) || *refusal != want || err.Error() != fmt.Sprintf("HTTP %d: %s", want.Status, want.Text) {
				t.Errorf("%s: %v, want %v", path, err, want)
			}
		}
	}
}

// Whoever waits for an answer can stop, and learns where nobody answers.
func TestClientWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	c, err := NewClient(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			defer conn.Close()
			_, _ = conn.Read(make([]byte, 1))
		}
		cancel()
	}()
	if _, err := c.Do(ctx, http.MethodGet, "/", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	listener.Close()
	_, err = c.Do(t.Context(), http.MethodGet, "/", nil)
	if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("admin API at %q: dial tcp", address)) {
		t.Errorf("nobody there: %v", err)
	}
}

// Something else may listen where the admin API is expected: it leads nowhere, and ends.
func TestClientOfSomethingElse(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.URL.String()
		switch r.URL.Path {
		case "/elsewhere":
			http.Redirect(w, r, "/portgate/sessions?all=true", http.StatusTemporaryRedirect)
		case "/endless":
			for err := error(nil); err == nil; {
				_, err = w.Write(make([]byte, 4096))
			}
		case "/drip":
			_, _ = w.Write([]byte("["))
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}))
	t.Cleanup(server.Close)
	c, err := NewClient(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if c.http.Timeout != answerTimeout || c.maxAnswer != maxAnswer {
		t.Fatalf("an answer may take %v and %d bytes", c.http.Timeout, c.maxAnswer)
	}
	c.maxAnswer = 1 << 20
	for path, want := range map[string]string{
		"/elsewhere": `HTTP 307: redirected to "/portgate/sessions?all=true": expected the admin API of a Caddy, which redirects nobody`,
		"/endless":   fmt.Sprintf("admin API at %q: the answer is too long", c.Address()),
	} {
		if answer, err := c.Do(t.Context(), http.MethodDelete, path, nil); err == nil || err.Error() != want {
			t.Errorf("%s: %d bytes, %v, want %s", path, len(answer), err, want)
		}
		if got := <-asked; got != "DELETE "+path || len(asked) > 0 {
			t.Errorf("%s: asked for %q and %d more", path, got, len(asked))
		}
	}
	c.http.Timeout = 100 * time.Millisecond
	if _, err := c.Do(t.Context(), http.MethodGet, "/drip", nil); err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("admin API at %q: ", c.Address())) {
		t.Errorf("an answer that does not end: %v", err)
	}
}

func TestClientOf(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(config, []byte(`{"admin": {"listen": "localhost:2501"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"":                                 caddy.DefaultAdminListen,
		"--address http://localhost:2502/": "localhost:2502",
		"--config " + config:               "localhost:2501",
		"--config " + config + " --address :2503": "localhost:2503",
		"--address udp/localhost:1":               "!--address:",
		"--address localhost:0":                   "!--address:",
	} {
		cmd := new(cobra.Command)
		AddFlags(cmd)
		if err := cmd.ParseFlags(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		c, err := ClientOf(caddycmd.Flags{FlagSet: cmd.Flags()})
		switch wrong, isWrong := strings.CutPrefix(want, "!"); {
		case isWrong && (err == nil || !strings.HasPrefix(err.Error(), wrong)):
			t.Errorf("%s: %v, want %s", args, err, wrong)
		case !isWrong && (err != nil || c.Address() != want):
			t.Errorf("%s: %v, %v, want %s", args, c, err, want)
		}
	}
	for _, address := range []string{"fd/3", "localhost:1-2"} {
		if _, err := NewClient(address); err == nil || !strings.Contains(err.Error(), "expected an address that can be connected to") {
			t.Errorf("%s: %v", address, err)
		}
	}
}
