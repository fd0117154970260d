package upstream

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answers := map[string][]netip.Addr{}
		pool := NewPool([]Upstream{named(t, "other:7"), named(t, "name:7"), named(t, "10.0.0.9:7")})
		var mu sync.Mutex
		pool.Hold(lookUpBy(func(_ context.Context, _, host string) ([]netip.Addr, error) {
			mu.Lock()
			defer mu.Unlock()
			if len(answers[host]) == 0 {
				return nil, errors.New("no answer")
			}
			return answers[host], nil
		}))
		defer pool.Release()
		answer := func(host string, ips ...string) {
			mu.Lock()
			answers[host] = nil
			for _, ip := range ips {
				answers[host] = append(answers[host], netip.MustParseAddr(ip))
			}
			mu.Unlock()
			time.Sleep(2 * freshFor)
		}
		answer("other", "10.0.1.1")
		answer("name", "10.0.0.1", "10.0.0.2")
		pool.pickAny()
		w := pool.Walk()
		w.LookupTimeout, w.Datagrams, w.Retries = time.Second, true, 5
		expect := func(what, want string, next func(context.Context) (addr interface{ String() string }, err error)) {
			t.Helper()
			addr, err := next(t.Context())
			if err != nil || addr.String() != want {
				t.Errorf("%s: got %v, %v, want %s", what, addr, err, want)
			}
		}
		again := func(ctx context.Context) (interface{ String() string }, error) { return w.Again(ctx) }
		next := func(ctx context.Context) (interface{ String() string }, error) {
			return w.Next(ctx, errors.New("failed"))
		}
		expect("first", "10.0.0.1:7", func(ctx context.Context) (interface{ String() string }, error) { return w.Next(ctx, nil) })
		expect("the same", "10.0.0.1:7", again)
		answer("name", "10.0.0.2", "10.0.0.1")
		expect("still there, though not the first", "10.0.0.1:7", again)
		answer("name")
		expect("the name server is away", "10.0.0.1:7", again)
		answer("name", "10.0.0.3", "10.0.0.2")
		expect("moved", "10.0.0.3:7", again)
		for _, want := range []string{"10.0.0.2:7", "10.0.0.9:7", "10.0.1.1:7"} {
			expect("those that follow", want, next)
		}
		expect("with the upstream that the session has", "10.0.1.1:7", again)
		expect("in turn", "10.0.0.3:7", next)
		if name, _ := w.Current(); name != "name:7" {
			t.Errorf("current is %s", name)
		}
		if got := pool.pickAny(); got != 2 {
			t.Errorf("the turn is at %d: a session took more than one", got)
		}
	})
}

func named(t *testing.T, name string) Upstream {
	t.Helper()
	addr, err := Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return Upstream{Name: name, Addr: addr}
}
