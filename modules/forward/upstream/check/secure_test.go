package check

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// How TLS is spoken with an upstream is found out once, for the host of the upstream, and goes with it.
func TestSecureOfAHost(t *testing.T) {
	t.Parallel()
	web := httptest.NewTLSServer(http.NotFoundHandler())
	defer web.Close()
	var mu sync.Mutex
	asked, protos := make(map[string]int), 0
	shared := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the test is about whom it is asked of
	secure := func(host string) func() *tls.Config {
		mu.Lock()
		defer mu.Unlock()
		asked[host]++
		return func() *tls.Config {
			mu.Lock()
			defer mu.Unlock()
			protos += len(shared.NextProtos)
			return shared
		}
	}
	c := NewChecker(10)
	defer c.Close()
	passed := make(chan string, 100)
	g, err := NewGroup(c, Spec{
		Probe: Probe{Kind: HTTP, Text: "/", Status: "404", TLS: "x"}, Interval: 50 * time.Millisecond, Timeout: 50 * time.Millisecond,
		Thresholds: upstream.Thresholds{Fails: 1000, Passes: 1},
	}, secure, func(r Result) {
		if r.Outcome == Passed {
			select {
			case passed <- r.Upstream:
			default:
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	name := web.Listener.Addr().String()
	h := g.Hold(wanted(t, name))
	for range 3 {
		await(t, passed)
	}
	_ = h.Release()
	mu.Lock()
	defer mu.Unlock()
	if len(asked) != 1 || asked["127.0.0.1"] != 1 || protos > 0 {
		t.Errorf("asked for %v; %d protocols in the shared config", asked, protos)
	}
	if len(g.targets) != 0 {
		t.Errorf("%d targets are left", len(g.targets))
	}
}

// Certificates that can't be read, because their file system hangs, hold up nobody else's check.
func TestSecureThatHangs(t *testing.T) {
	t.Parallel()
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	goOn := make(chan struct{})
	hangs := func(string) func() *tls.Config {
		return func() *tls.Config {
			<-goOn
			return new(tls.Config)
		}
	}
	c := NewChecker(10)
	defer c.Close()
	defer close(goOn)
	passed, failed := make(chan string, 1), make(chan string, 1)
	hold := func(tlsOf string, secure Secure) {
		g, err := NewGroup(c, Spec{
			Probe: Probe{Kind: HTTP, Text: "/", Status: "404", TLS: tlsOf}, Interval: 100 * time.Millisecond, Timeout: 100 * time.Millisecond,
			Thresholds: upstream.Thresholds{Fails: 1, Passes: 1},
		}, secure, func(r Result) {
			to := passed
			if r.Outcome != Passed {
				to = failed
			}
			select {
			case to <- r.Upstream:
			default:
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		g.Hold(wanted(t, web.Listener.Addr().String()))
	}
	hold("x", hangs)
	await(t, failed) // no answer in time
	hold("", nil)
	await(t, passed)
}

func await[T any](t *testing.T, from <-chan T) (got T) {
	t.Helper()
	select {
	case got = <-from:
	case <-time.After(guard):
		t.Fatal("nothing has come")
	}
	return got
}
