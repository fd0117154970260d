package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var errFailed = errors.New("failed")

// all returns the addresses that a walk tries when none answers.
func all(t *testing.T, w *Walk, before error) (tried []string, err error) {
	t.Helper()
	for failed := before; ; failed = errFailed {
		addr, err := w.Next(t.Context(), failed)
		if err != nil {
			return tried, err
		}
		tried = append(tried, addr.String())
	}
}

// Whichever upstreams are shut: a walk that does not know it from its pool tries exactly the others.
func TestShutUpstreamsAreNotTried(t *testing.T) {
	t.Parallel()
	const n = 4
	for method := range methods {
		for shut := range 1 << n {
			var upstreams []Upstream
			var want []string
			for i := range n {
				name := fmt.Sprintf("127.0.0.%d:1", i+1)
				addr, err := Parse(name)
				if err != nil {
					t.Fatal(err)
				}
				upstreams = append(upstreams, Upstream{Name: name, Addr: addr, Weight: i + 1, Priority: i / 2})
				if shut&(1<<i) == 0 {
					want = append(want, name)
				}
			}
			p := NewPool(upstreams)
			p.Balance = Balance{Method: Method(method), Draws: 2}
			p.Shut = func(name string) bool { return !slices.Contains(want, name) }
			for range 3 {
				w := p.Walk()
				w.Retries, w.Key, w.Keyed = n, HashString("client"), true
				got, err := all(t, w, nil)
				slices.Sort(got)
				if !slices.Equal(got, want) || errors.Is(err, ErrNone) != (len(want) == 0) {
					t.Fatalf("%v, shut %04b: tried %v (%v), want %v", Method(method), shut, got, err, want)
				}
			}
		}
	}
}

// What a walk has kept for later is not tried either: further addresses of the upstream, those that have failed for others, and those
// that a new lookup finds.
func TestShutWhileASessionConnects(t *testing.T) {
	t.Parallel()
	answer := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")}
	names := NewNames(NamesConfig{Lookup: func(context.Context, string, string) ([]netip.Addr, error) { return answer, nil }})
	failures := NewFailures(Policy{MaxFails: 1, FailDuration: time.Hour}, time.Now, nil)
	named, err := Parse("name:1")
	if err != nil {
		t.Fatal(err)
	}
	fixed, err := Parse("127.0.0.9:1")
	if err != nil {
		t.Fatal(err)
	}
	shut := false
	pool := func() *Pool {
		p := NewPool([]Upstream{{Name: "name:1", Addr: named}, {Name: "127.0.0.9:1", Addr: fixed}})
		p.Balance.Method, p.Failures = First, failures
		p.Hold(names)
		p.Shut = func(name string) bool { return shut && name == "name:1" }
		return p
	}
	begin := func() *Walk {
		shut = false
		w := pool().Walk()
		w.Retries, w.LookupTimeout, w.Stale = 3, time.Minute, time.Hour
		if addr, err := w.Next(t.Context(), nil); err != nil || addr.String() != "127.0.0.1:1" {
			t.Fatalf("the first address is %v (%v)", addr, err)
		}
		shut = true
		return w
	}
	w := begin()
	if addr := w.Another(nil); addr != nil {
		t.Errorf("another address of it is %v", addr)
	}
	if got, err := all(t, w, errFailed); !slices.Equal(got, []string{"127.0.0.9:1"}) || err == nil {
		t.Errorf("tried %v (%v)", got, err)
	}
	failures.Failed("name:1", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.2:1")), errFailed)
	if got, _ := all(t, begin(), errFailed); !slices.Equal(got, []string{"127.0.0.9:1"}) {
		t.Errorf("tried %v, where one has failed before", got)
	}
	// The session that has the upstream keeps it.
	w = begin()
	if addr, err := w.Again(t.Context()); err != nil || addr.String() != "127.0.0.1:1" {
		t.Errorf("the session that has it goes on with %v (%v)", addr, err)
	}
}
