package admin

import (
	"bufio"
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// newSite returns a site of a config of its own, and how to end the config.
func newSite(t *testing.T, s *Site) (site *Site, unload func()) {
	t.Helper()
	ctx, unload := caddy.NewContext(caddy.ActiveContext())
	t.Cleanup(func() {
		unload()
		if err := s.Cleanup(); err != nil {
			t.Error(err)
		}
	})
	if err := s.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	return s, unload
}

// behindSite answers what the site leaves to the next handler.
func behindSite(w http.ResponseWriter, _ *http.Request) error {
	w.WriteHeader(http.StatusTeapot)
	return nil
}

// visit sends a request to the site. Headers are "Name: value"; "user: me" is a user that was authenticated, "tls: " a request over TLS.
func visit(t *testing.T, s *Site, method, url string, headers ...string) (status int, answer string, header http.Header) {
	t.Helper()
	r := httptest.NewRequest(method, url, nil)
	r.TLS = nil
	repl := caddy.NewReplacer()
	for _, h := range headers {
		switch name, value, _ := strings.Cut(h, ": "); name {
		case "user":
			repl.Set("http.auth.user.id", value)
		case "tls":
			r.TLS = new(tls.ConnectionState)
		default:
			r.Header.Set(name, value)
		}
	}
	r = r.WithContext(context.WithValue(r.Context(), caddy.ReplacerCtxKey, repl))
	w := httptest.NewRecorder()
	if err := s.ServeHTTP(w, r, caddyhttp.HandlerFunc(behindSite)); err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return w.Code, strings.TrimSpace(w.Body.String()), w.Header()
}

const (
	jsonType  = "Content-Type: application/json"
	ownOrigin = "Origin: http://127.0.0.1:8080"
)

// What another page can have a browser do neither reads nor changes anything, and what nobody's browser does needs no origin.
func TestSiteAdmitsItsOwnPage(t *testing.T) {
	t.Parallel()
	s, _ := newSite(t, &Site{Writable: true, Hosts: []string{"gate.internal"}})
	const at = "http://127.0.0.1:8080/portgate/"
	const one = at + "sessions/0000000000000001" // there is none: what is admitted gets 404
	for _, c := range []struct {
		method, url string
		headers     []string
		status      int
	}{
		{"GET", at, []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"}, 200}, // a link
		{"GET", at, nil, 200},
		{"GET", at + "status", nil, 200}, // curl
		{"GET", at + "status", []string{"Sec-Fetch-Site: none"}, 200},
		{"GET", at + "status", []string{"Sec-Fetch-Site: same-origin"}, 200},
		{"GET", at + "status", []string{"Sec-Fetch-Site: same-site"}, 403},
		{"GET", at + "status", []string{"Sec-Fetch-Site: cross-site"}, 403},
		{"GET", at + "events", []string{"Sec-Fetch-Site: cross-site"}, 403},
		{"GET", at + "status", []string{"Origin: http://evil.example"}, 403}, // a browser that says no more
		{"GET", at + "status", []string{"Origin: null"}, 403},
		{"GET", at + "page.js", []string{"Sec-Fetch-Site: cross-site"}, 403},
		{"DELETE", one, []string{jsonType}, 404},
		{"DELETE", one, []string{jsonType, "Sec-Fetch-Site: same-origin", ownOrigin}, 404},
		{"DELETE", one, []string{jsonType, ownOrigin}, 404},
		{"DELETE", one, []string{jsonType + "; charset=utf-8", ownOrigin}, 404},
		{"DELETE", one, []string{jsonType, "Sec-Fetch-Site: cross-site"}, 403},
		{"DELETE", one, []string{jsonType, "Sec-Fetch-Site: same-site"}, 403},
		{"DELETE", one, []string{jsonType, "Origin: http://127.0.0.1:8081"}, 403},
		{"DELETE", one, []string{jsonType, "Origin: null"}, 403},
		{"DELETE", one, []string{ownOrigin}, 415},
		{"DELETE", one, []string{ownOrigin, "Content-Type: text/plain"}, 415},
		{"POST", at + "sessions", []string{ownOrigin, "Content-Type: application/x-www-form-urlencoded"}, 415},
		{"POST", at + "sessions", []string{"Sec-Fetch-Site: cross-site", "Content-Type: text/plain"}, 403},
		{"OPTIONS", one, []string{"Sec-Fetch-Site: cross-site"}, 403},
		// A name that leads here.
		{"GET", "http://evil.example:8080/portgate/", nil, 403},
		{"GET", "http://evil.example:8080/portgate/status", []string{"Sec-Fetch-Site: same-origin"}, 403},
		{"DELETE", "http://evil.example:8080/portgate/sessions/0000000000000001", []string{jsonType, "Origin: http://evil.example:8080"}, 403},
		{"GET", "http://localhost.evil.example/portgate/status", nil, 403},
		{"GET", "http://127.0.0.1.evil.example/portgate/status", nil, 403},
		{"GET", "http://localhost:8080/portgate/status", nil, 200},
		{"GET", "http://[::1]:8080/portgate/status", nil, 200},
		{"GET", "http://gate.internal:8080/portgate/status", nil, 200},
		{"GET", "http://Gate.Internal/portgate/status", nil, 200},
		{"GET", "http://gate.example/portgate/status", []string{"user: me"}, 200},
		{"GET", "http://gate.example/portgate/status", []string{"user: "}, 403},
		{"GET", "http://gate.example/portgate/status", []string{"tls: "}, 200},
	} {
		status, answer, header := visit(t, s, c.method, c.url, c.headers...)
		if status != c.status {
			t.Errorf("%s %s %q: %d %.200s, want %d", c.method, c.url, c.headers, status, answer, c.status)
		}
		for name := range header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("%s %s %q: %s", c.method, c.url, c.headers, name)
			}
		}
		if header.Get("X-Content-Type-Options") != "nosniff" || header.Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s %s: not protected: %v", c.method, c.url, header)
		}
	}
}

// A site that is not writable only reads, and its page has no buttons.
func TestSiteIsReadOnly(t *testing.T) {
	t.Parallel()
	s, _ := newSite(t, new(Site))
	const at = "http://127.0.0.1:8080/portgate/"
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} {
		for _, path := range []string{"", "sessions", "sessions/0000000000000001", "page.js", "status"} {
			status, answer, _ := visit(t, s, method, at+path, jsonType)
			if want := `{"error":"method ` + method + `: expected GET, because portgate_status is not writable"}`; status != 405 || answer != want {
				t.Errorf("%s %s: %d %s", method, path, status, answer)
			}
		}
	}
	if _, answer, _ := visit(t, s, "GET", at); !strings.Contains(answer, `data-mode="read-only"`) {
		t.Error("the page says that it may change something")
	}
}

// Requests for other paths are the site's, and those below the path get what the admin endpoint has.
func TestSitePaths(t *testing.T) {
	t.Parallel()
	for path, at := range map[string]string{"": "/portgate", "/a/status": "/a/status", "/a/": "/a", "/": ""} {
		s, _ := newSite(t, &Site{Path: path})
		for url, want := range map[string]int{
			at + "/": 200, at + "/page.css": 200, at + "/status": 200, at + "/history": 200, at + "/mappings": 200, at + "/clients": 200,
			at + "/sessions": 200, at + "/sessions/0000000000000001": 404, at + "/sessions/x": 400, at + "/nothing": 404, at + "/../config/": 404,
			at + "/index.html": 404, at + "/status/": 404,
		} {
			if status, answer, _ := visit(t, s, "GET", "http://127.0.0.1"+url); status != want {
				t.Errorf("%q: %s: %d %.100s, want %d", path, url, status, answer, want)
			}
		}
		if at == "" {
			continue
		}
		for _, url := range []string{"/", at + "x", "/x" + at, "/status"} {
			if status, _, _ := visit(t, s, "GET", "http://127.0.0.1"+url); status != http.StatusTeapot {
				t.Errorf("%q: %s: %d, want that of the next handler", path, url, status)
			}
		}
		status, _, header := visit(t, s, "GET", "http://127.0.0.1"+at)
		if status != http.StatusPermanentRedirect || !strings.HasSuffix(at+"/", "/"+header.Get("Location")) {
			t.Errorf("%q: %d %q", path, status, header.Get("Location"))
		}
	}
}

// A stream of events ends when the server stops, which waits for it.
func TestSiteStreamsEnd(t *testing.T) {
	t.Parallel()
	s, unload := newSite(t, new(Site))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = s.ServeHTTP(w, r, caddyhttp.HandlerFunc(behindSite))
	}))
	defer server.Close()
	answer, err := http.Get(server.URL + "/portgate/events?status=1s")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	if !lines.Scan() || lines.Text() != "retry: 1000" {
		t.Fatalf("%q", lines.Text())
	}
	time.AfterFunc(time.Minute, server.CloseClientConnections)
	unload()
	for lines.Scan() {
	}
	if err := lines.Err(); err != nil {
		t.Error(err)
	}
}
