package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// nameServer answers the lookups of all handlers that a test makes.
type nameServer struct {
	mu    sync.Mutex
	err   error
	asked int
	held  chan struct{} // nil where lookups are answered at once
	names *knownNames
}

// startNameServer is called before the first handler of a test that is not parallel.
func startNameServer(t *testing.T) *nameServer {
	t.Helper()
	s := new(nameServer)
	ref, err := resolved.Acquire(struct{}{}, func() (*knownNames, error) {
		s.names = newKnownNames(s.lookup)
		return s.names, nil
	})
	if err != nil || s.names == nil {
		t.Fatalf("another test has names: %v", err)
	}
	t.Cleanup(func() {
		ref.Release()
		resolved.Each(func(struct{}, *knownNames) bool {
			t.Error("a handler has not released its names")
			return false
		})
	})
	return s
}

func (s *nameServer) lookup(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	s.mu.Lock()
	s.asked++
	err, held := s.err, s.held
	s.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, err
}

func (s *nameServer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// byName is the address of a server by a name.
func byName(server string) string {
	_, port, _ := net.SplitHostPort(server)
	return "name.example:" + port
}

// serveOn has a handler serve a client in the fast path, in the test's goroutine as in the one that accepts.
func serveOn(t *testing.T, h *Handler) *net.TCPConn {
	t.Helper()
	client, accepted := connect(t)
	h.Serve(&session.Arrival{Conn: accepted, Network: "tcp", Listener: "test:names", Client: client.LocalAddr().(*net.TCPAddr).AddrPort()})
	return client
}

// Whoever accepts does not wait for a name that is not known yet. The session does.
func TestServeDoesNotWaitForAName(t *testing.T) {
	s := startNameServer(t)
	s.held = make(chan struct{})
	h, _, unload := provision(t, fmt.Sprintf(`{"to": [%q], "connect_timeout": "1h"}`, byName(echo(t))))
	client := serveOn(t, h)
	other := serveOn(t, h)
	close(s.held)
	for _, client := range []*net.TCPConn{client, other} {
		exchange(t, client, "hello")
		if e := finish(t, client); e.Status != session.StatusDone {
			t.Errorf("got %+v", e)
		}
	}
	if s.asked != 1 {
		t.Errorf("%d lookups", s.asked)
	}
	unload()
}

// What is known of names is used while the name server fails, also by the handlers of later configs. A metric says so, until there is no such
// config.
func TestNamesOutliveConfigs(t *testing.T) {
	s := startNameServer(t)
	config := fmt.Sprintf(`{"to": [%q]}`, byName(echo(t)))
	greet := func(h *Handler) {
		t.Helper()
		client := serveOn(t, h)
		exchange(t, client, "hello")
		finish(t, client)
	}
	registry := prometheus.NewRegistry()
	if err := degraded.Register(registry); err != nil {
		t.Fatal(err)
	}
	degradedNames := func(want float64) error {
		families, err := registry.Gather()
		if err != nil {
			return err
		}
		var names float64
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if m.GetLabel()[0].GetValue() == "name" {
					names = m.GetGauge().GetValue()
				}
			}
		}
		if names != want {
			return fmt.Errorf("%v names are degraded, want %v", names, want)
		}
		return nil
	}
	h, _, unload := provision(t, config)
	greet(h)
	s.fail(&net.DNSError{Err: "server misbehaving", IsTemporary: true})
	failures := testutil.ToFloat64(lookups.WithLabelValues(lookupFailed))
	for range 5 {
		var next *Handler
		before := unload
		next, _, unload = provision(t, config)
		before()
		greet(next)
		h = next
	}
	eventually(t, func() error { // the answer is no second old at first
		greet(h)
		return degradedNames(1)
	})
	if testutil.ToFloat64(lookups.WithLabelValues(lookupFailed)) <= failures {
		t.Error("no failure is counted")
	}
	s.fail(nil)
	eventually(t, func() error {
		greet(h)
		return degradedNames(0)
	})
	s.fail(errors.New("failing"))
	eventually(t, func() error {
		greet(h)
		return degradedNames(1)
	})
	unload()
	eventually(t, func() error { return degradedNames(0) })
	if len(s.names.old) > 0 {
		t.Errorf("left: %v", s.names.old)
	}
}

// A config that is refused half-way gives its names back.
func TestNamesOfARefusedConfig(t *testing.T) {
	s := startNameServer(t)
	s.held = make(chan struct{})
	for range 10 {
		if _, _, _, err := tryProvision(t, `{"to": ["name.example:1", "127.0.0.1:x"]}`); err == nil {
			t.Error("provisioned")
		}
		_, _, unload := provision(t, `{"to": ["name.example:1"]}`)
		unload()
	}
}

// A name that can't be looked up ends the session with the reason.
func TestNameThatFails(t *testing.T) {
	s := startNameServer(t)
	s.err = &net.DNSError{Err: "server misbehaving", Name: "name.example", IsTemporary: true}
	h, _, unload := provision(t, `{"to": ["name.example:1"]}`)
	defer unload()
	client := serveOn(t, h)
	_ = client.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadAll(client); err == nil {
		t.Error("not reset")
	}
	want := `upstream "name.example:1": lookup name.example: server misbehaving`
	if e := logged(t, client); e.Status != session.StatusNoUpstream || e.Error != want {
		t.Errorf("got %+v", e)
	}
}
