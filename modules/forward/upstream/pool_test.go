package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// server is an upstream of the oracle: what its name resolves to, or why it does not.
type server struct {
	name  string
	addrs []string
	err   error
}

// walkOrder is the slow and obvious way through a pool: the addresses in the order in which a session tries
// them when none answers, and every failure in between.
func walkOrder(servers []server, first, retries int) (addrs, failures []string) {
	rotated := slices.Concat(servers[first:], servers[:first])
	for _, s := range rotated[:min(len(servers), retries+1)] {
		if s.err != nil {
			failures = append(failures, fmt.Sprintf("upstream %q: %v", s.name, s.err))
			continue
		}
		for _, addr := range s.addrs {
			addrs = append(addrs, addr)
			failures = append(failures, "failed "+addr)
		}
	}
	return addrs, failures
}

// randomServers are fixed addresses, names with some addresses, names that do not resolve, and placeholders.
func randomServers(random *rand.Rand, n int) (servers []server, pool *Pool) {
	upstreams := make([]Upstream, n)
	answers := make(map[string]server)
	for i := range n {
		port := 1000 + i
		name := fmt.Sprintf("name%d:%d", i, port)
		s := server{name: name}
		switch random.IntN(4) {
		case 0:
			s.name = fmt.Sprintf("10.0.0.%d:%d", i, port)
			s.addrs = []string{s.name}
		case 1:
			s.err = fmt.Errorf("lookup %d", i)
		default:
			for k := range 1 + random.IntN(3) {
				s.addrs = append(s.addrs, fmt.Sprintf("10.1.%d.%d:%d", i, k, port))
			}
		}
		answers[fmt.Sprintf("name%d", i)] = s
		upstreams[i] = Upstream{Name: s.name}
		if random.IntN(4) == 0 {
			s.name = "{" + s.name + "}"
			upstreams[i] = Upstream{Name: s.name, Dynamic: true}
		} else {
			upstreams[i].Addr, _ = Parse(s.name)
		}
		servers = append(servers, s)
	}
	pool = NewPool(upstreams)
	pool.names = lookUpBy(func(_ context.Context, _, host string) (ips []netip.Addr, err error) {
		for _, addr := range answers[host].addrs {
			ips = append(ips, netip.MustParseAddrPort(addr).Addr())
		}
		return ips, answers[host].err
	})
	return servers, pool
}

func TestWalkAgainstOracle(t *testing.T) {
	t.Parallel()
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 0))
		servers, pool := randomServers(random, 1+random.IntN(5))
		for session := range 2 * len(servers) {
			retries := random.IntN(7)
			wantAddrs, wantFailures := walkOrder(servers, session%len(servers), retries)

			walk := pool.Walk()
			walk.Retries, walk.LookupTimeout = retries, time.Minute
			walk.Expand = func(name string) string { return strings.Trim(name, "{}") }
			var addrs []string
			var last error
			addr, err := walk.Next(t.Context(), nil)
			for ; err == nil; addr, err = walk.Next(t.Context(), last) {
				addrs = append(addrs, addr.String())
				last = errors.New("failed " + addr.String())
			}
			if !slices.Equal(addrs, wantAddrs) {
				t.Errorf("seed %d, session %d, %d retries of %v:\ngot  %v\nwant %v", seed, session, retries, servers, addrs, wantAddrs)
			}
			if want := strings.Join(wantFailures, "; "); err.Error() != want {
				t.Errorf("seed %d, session %d, %d retries:\ngot  %v\nwant %s", seed, session, retries, err, want)
			}
			if _, again := walk.Next(t.Context(), nil); again != err {
				t.Errorf("seed %d, session %d: after the end: %v", seed, session, again)
			}
		}
	}
}

func TestNothingLeftUnwrapsToTheLast(t *testing.T) {
	t.Parallel()
	refused, timeout := errors.New("refused"), errors.New("timeout")
	unresolved := &net.DNSError{Err: "no such host", Name: "name", IsNotFound: true}
	pool := NewPool([]Upstream{
		{Name: "10.0.0.1:1", Addr: mustParse(t, "10.0.0.1:1")},
		{Name: "10.0.0.2:2", Addr: mustParse(t, "10.0.0.2:2")},
		{Name: "name:3", Addr: mustParse(t, "name:3")},
	})
	pool.names = lookUpBy(func(context.Context, string, string) ([]netip.Addr, error) { return nil, unresolved })

	for _, c := range []struct {
		retries int
		failed  []error
		want    string
		last    error
	}{
		{0, []error{refused}, "refused", refused},
		{1, []error{refused, timeout}, "refused; timeout", timeout},
		{1, []error{timeout, refused}, "timeout; refused", refused},
		{2, []error{refused, timeout}, `refused; timeout; upstream "name:3": lookup name: no such host`, unresolved},
	} {
		pool.base, pool.last = nil, -1
		walk := pool.Walk()
		walk.Retries, walk.LookupTimeout = c.retries, time.Minute
		_, err := walk.Next(t.Context(), nil)
		for _, failed := range c.failed {
			if err != nil {
				t.Fatal(err)
			}
			_, err = walk.Next(t.Context(), failed)
		}
		if err == nil || err.Error() != c.want {
			t.Fatalf("%d retries: got %v, want %s", c.retries, err, c.want)
		}
		for _, failure := range []error{refused, timeout, unresolved} {
			if is := errors.Is(err, failure); is != (failure == c.last) {
				t.Errorf("%d retries: %q is %q: %v", c.retries, err, failure, is)
			}
		}
	}
}

func TestCurrent(t *testing.T) {
	t.Parallel()
	pool := NewPool([]Upstream{
		{Name: "10.0.0.1:1", Addr: mustParse(t, "10.0.0.1:1")},
		{Name: "two:2", Addr: mustParse(t, "two:2")},
		{Name: "none:3", Addr: mustParse(t, "none:3")},
		{Name: "{four}:4", Dynamic: true},
	})
	pool.names = lookUpBy(func(_ context.Context, _, host string) ([]netip.Addr, error) {
		if host == "none" {
			return nil, errors.New("no such host")
		}
		return []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")}, nil
	})
	walk := pool.Walk()
	walk.Retries, walk.LookupTimeout = 2, time.Minute
	check := func(wantName, wantAddr string) {
		t.Helper()
		name, addr := walk.Current()
		if got := fmt.Sprint(name, " ", addr); got != wantName+" "+wantAddr {
			t.Errorf("got %q, want %s %s", got, wantName, wantAddr)
		}
	}
	check("", "<nil>")
	for _, want := range [][2]string{{"10.0.0.1:1", "10.0.0.1:1"}, {"two:2", "10.0.0.2:2"}, {"two:2", "10.0.0.3:2"}} {
		if _, err := walk.Next(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		check(want[0], want[1])
	}
	if addr, err := walk.Next(t.Context(), nil); err == nil {
		t.Fatalf("got %v", addr)
	}
	check("none:3", "<nil>") // not the address of the one before

	walk = pool.Walk()
	_, _ = walk.Next(t.Context(), nil)
	walk = pool.Walk()
	_, _ = walk.Next(t.Context(), nil)
	walk = pool.Walk()
	walk.LookupTimeout, walk.Expand = time.Minute, func(string) string { return "10.0.0.9:9" }
	if _, err := walk.Next(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	check("{four}:4", "10.0.0.9:9") // the name is a metrics label: as configured
}

func TestDynamic(t *testing.T) {
	t.Parallel()
	if NewPool([]Upstream{{Addr: mustParse(t, "a:1")}}).Dynamic() {
		t.Error("a pool without placeholders is dynamic")
	}
	for expanded, want := range map[string]string{
		"10.0.0.1:80":         "10.0.0.1:80",
		"unix//run/s":         `upstream "{x}": a placeholder may not expand to a unix socket`,
		"name:80":             "10.9.9.9:80",
		"10.0.0.1:7000-7000":  "10.0.0.1:7000",
		":":                   `upstream "{x}": ":": port "": expected a number from 1 to 65535`,
		"10.0.0.1:7000-7001":  `upstream "{x}": a placeholder may not expand to a range of ports`,
		"a b:80":              `upstream "{x}": "a b:80": host "a b": expected an IP address or a name`,
		"udp/10.0.0.1:80":     `upstream "{x}": a udp address can't be sent a stream: expected tcp/host:port or unix//path`,
		"{l4.never_replaced}": `upstream "{x}": "{l4.never_replaced}": expected host:port, host:first-last or unix//path`,
	} {
		pool := NewPool([]Upstream{{Name: "{x}", Dynamic: true}})
		pool.names = lookUpBy(func(context.Context, string, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("10.9.9.9")}, nil
		})
		walk := pool.Walk()
		walk.LookupTimeout = time.Minute
		walk.Offset = 1 // of the listen range, which is nothing to a placeholder
		walk.Expand = func(name string) string {
			if name != "{x}" {
				t.Errorf("asked to expand %q", name)
			}
			return expanded
		}
		got, err := walk.Next(t.Context(), nil)
		if text := fmt.Sprint(got); err == nil && text != want || err != nil && err.Error() != want {
			t.Errorf("%s: got %v, %v, want %s", expanded, got, err, want)
		}
		if !pool.Dynamic() {
			t.Error("a pool with a placeholder is not dynamic")
		}
	}
}

// A client that names no host does not get to this machine.
func TestDynamicWithoutHost(t *testing.T) {
	t.Parallel()
	walk := NewPool([]Upstream{{Name: "{x}:443", Dynamic: true}}).Walk()
	walk.LookupTimeout, walk.Expand = time.Minute, func(string) string { return ":443" }
	want := `upstream "{x}:443": ":443": expected a host before the port`
	if addr, err := walk.Next(t.Context(), nil); err == nil || err.Error() != want {
		t.Errorf("got %v, %v, want %s", addr, err, want)
	}
}

// A client may have a say in what a placeholder stands for. It chooses a socket only below a folder that the
// config names.
func TestDynamicUnixSockets(t *testing.T) {
	t.Parallel()
	for expanded, want := range map[string]string{
		"unix//run/sites/a.sock":      "/run/sites/a.sock",
		"unix//run/sites/a..b.sock":   "/run/sites/a..b.sock",
		"unix//run/sites/../x.sock":   `upstream "Unix//run/sites/{x}.sock": a placeholder may not expand to a path with ".." in it`,
		"unix//run/sites/a/../b.sock": `upstream "Unix//run/sites/{x}.sock": a placeholder may not expand to a path with ".." in it`,
	} {
		walk := NewPool([]Upstream{{Name: "Unix//run/sites/{x}.sock", Dynamic: true}}).Walk()
		walk.LookupTimeout, walk.Expand = time.Minute, func(string) string { return expanded }
		got, err := walk.Next(t.Context(), nil)
		if text := fmt.Sprint(got); err == nil && text != want || err != nil && err.Error() != want {
			t.Errorf("%s: got %v, %v, want %s", expanded, got, err, want)
		}
	}
}

// Every session of a dynamic upstream gets what its own connection says.
func TestDynamicIsExpandedForEachSession(t *testing.T) {
	t.Parallel()
	pool := NewPool([]Upstream{{Name: "{x}", Dynamic: true}})
	for _, want := range []string{"10.0.0.1:1", "10.0.0.2:2"} {
		walk := pool.Walk()
		walk.LookupTimeout, walk.Expand = time.Minute, func(string) string { return want }
		if got, err := walk.Next(t.Context(), nil); err != nil || got.String() != want {
			t.Errorf("got %v, %v, want %s", got, err, want)
		}
	}
}

func TestOffsetOfRanges(t *testing.T) {
	t.Parallel()
	pool := NewPool([]Upstream{
		{Addr: mustParse(t, "10.0.0.1:7000-7010")},
		{Addr: mustParse(t, "name:8000-8010")},
		{Addr: mustParse(t, "10.0.0.1:9000")},
		{Addr: mustParse(t, "unix//run/s")},
	})
	pool.names = lookUpBy(func(context.Context, string, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("10.0.0.2")}, nil
	})
	for offset := range 11 {
		pool.base, pool.last = nil, -1
		walk := pool.Walk()
		walk.Retries, walk.LookupTimeout, walk.Offset = 3, time.Minute, offset
		for _, want := range []string{
			fmt.Sprintf("10.0.0.1:%d", 7000+offset), fmt.Sprintf("10.0.0.2:%d", 8000+offset), "10.0.0.1:9000", "/run/s",
		} {
			if got, err := walk.Next(t.Context(), nil); err != nil || got.String() != want {
				t.Errorf("offset %d: got %v, %v, want %s", offset, got, err, want)
			}
		}
	}
}

func TestLookupTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pool := NewPool([]Upstream{{Name: "a:1", Addr: mustParse(t, "a:1")}, {Name: "b:2", Addr: mustParse(t, "b:2")}})
		pool.names = lookUpBy(func(ctx context.Context, _, host string) ([]netip.Addr, error) {
			if host == "b" {
				return []netip.Addr{netip.MustParseAddr("10.0.0.2")}, nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		})
		walk, start := pool.Walk(), time.Now()
		walk.Retries, walk.LookupTimeout = 1, 3*time.Second
		got, err := walk.Next(t.Context(), nil)
		if err != nil || got.String() != "10.0.0.2:2" || time.Since(start) != 3*time.Second {
			t.Errorf("got %v, %v after %v", got, err, time.Since(start))
		}
		if _, err := walk.Next(t.Context(), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the lookup that timed out is the only failure: %v", err)
		}
		time.Sleep(lookupLimit)
	})
}

// A relay that is closed does not wait for a name.
func TestLookupEndsWithTheContext(t *testing.T) {
	t.Parallel()
	pool := NewPool([]Upstream{{Name: "a:1", Addr: mustParse(t, "a:1")}})
	ctx, cancel := context.WithCancel(t.Context())
	pool.names = lookUpBy(func(ctx context.Context, _, _ string) ([]netip.Addr, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	})
	walk := pool.Walk()
	walk.LookupTimeout = time.Hour
	if _, err := walk.Next(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Sessions that begin at once are dealt out evenly, and do not get into each other's way.
func TestConcurrentWalks(t *testing.T) {
	t.Parallel()
	const upstreams, goroutines, each = 3, 8, 300
	var all []Upstream
	for i := range upstreams {
		all = append(all, Upstream{Addr: mustParse(t, fmt.Sprintf("10.0.0.%d:7000-7009", i))})
	}
	pool := NewPool(all)
	var mu sync.Mutex
	firsts := make(map[string]int)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				walk := pool.Walk()
				walk.Retries, walk.Offset = upstreams, (g+i)%10
				seen := make(map[string]bool)
				for addr, err := walk.Next(t.Context(), nil); err == nil && addr != nil; addr, err = walk.Next(t.Context(), nil) {
					if len(seen) == 0 {
						mu.Lock()
						firsts[addr.(*net.TCPAddr).IP.String()]++
						mu.Unlock()
					}
					if seen[addr.String()] || addr.(*net.TCPAddr).Port != 7000+walk.Offset {
						t.Errorf("got %v after %v, with offset %d", addr, seen, walk.Offset)
					}
					seen[addr.String()] = true
				}
				if len(seen) != upstreams {
					t.Errorf("got %v", seen)
				}
			}
		})
	}
	wg.Wait()
	for ip, n := range firsts {
		if n != goroutines*each/upstreams {
			t.Errorf("%s was first %d times of %d", ip, n, goroutines*each)
		}
	}
}

func TestPoolWithoutUpstreams(t *testing.T) {
	t.Parallel()
	for name, upstreams := range map[string][]Upstream{
		"none":    nil,
		"drained": {{Name: "a", Addr: Addr{Host: "127.0.0.1", Port: 1}, Drained: true}},
	} {
		for _, method := range []Method{RoundRobin, LeastConn, IPHash} {
			p := NewPool(slices.Clone(upstreams))
			p.Balance.Method = method
			w := p.Walk()
			w.Retries = 3
			if addr, err := w.Next(t.Context(), nil); addr != nil || !errors.Is(err, ErrNone) || w.Position() != -1 {
				t.Errorf("%s, %v: got %v, %v at %d", name, method, addr, err, w.Position())
			}
		}
	}
}

// A pool that takes the place of another one goes on with the turns.
func TestPoolSucceeds(t *testing.T) {
	t.Parallel()
	names := func(p *Pool, n int) (got string) {
		for range n {
			got += p.upstreams[p.choose(p.Walk())].Name
		}
		return got
	}
	of := func(weights map[string]int, order string) *Pool {
		var upstreams []Upstream
		for _, name := range order {
			upstreams = append(upstreams, Upstream{Name: string(name), Addr: Addr{Host: "127.0.0.1", Port: uint16(name)}, Weight: weights[string(name)]})
		}
		return NewPool(upstreams)
	}
	for _, weights := range []map[string]int{{"a": 1, "b": 1, "c": 1}, {"a": 5, "b": 1, "c": 1}} {
		want := names(of(weights, "abc"), 14)
		got, p := "", of(weights, "abc")
		for range 14 {
			got += names(p, 1)
			next := of(weights, "abc")
			next.Succeed(p)
			p = next
		}
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	before := of(map[string]int{"a": 2, "b": 1, "c": 1}, "abc")
	names(before, 3)
	p := of(map[string]int{"a": 2, "c": 1, "d": 1}, "dca")
	p.Succeed(before)
	counts := make(map[rune]int)
	for _, name := range names(p, 400) {
		counts[name]++
	}
	if counts['a'] != 200 || counts['c'] < 98 || counts['d'] < 98 {
		t.Errorf("got %v", counts)
	}
}
