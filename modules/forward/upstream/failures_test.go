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
	"testing"
	"testing/synctest"
	"time"
)

var (
	errRefused = errors.New("refused")
	threeFails = Policy{MaxFails: 3, FailDuration: 10 * time.Second}
)

func tcp(n int) *net.TCPAddr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 1))
}

// changes is a memory of failures, and what it has told.
func changes(policy Policy) (f *Failures, told func() string) {
	var all []string
	f = NewFailures(policy, time.Now, func(c Change) {
		all = append(all, fmt.Sprintf("%s %s out=%t fails=%d for=%v", c.Name, c.Addr, c.Out, c.Fails, c.For))
	})
	return f, func() string {
		s := strings.Join(all, "; ")
		all = nil
		return s
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, told := changes(threeFails)
		a, b := tcp(1), tcp(2)
		expect := func(what string, wantTold string, wantOut bool) {
			t.Helper()
			if got := told(); got != wantTold {
				t.Errorf("%s: told %q, want %q", what, got, wantTold)
			}
			if out := f.out(a, true); out != wantOut {
				t.Errorf("%s: out=%t", what, out)
			}
		}
		fail := func(n int) {
			for range n {
				f.Failed("a", a, errRefused)
			}
		}
		fail(2)
		f.Failed("b", b, errRefused)
		expect("two failures", "", false)
		time.Sleep(11 * time.Second)
		fail(2)
		expect("two more, later", "", false)
		fail(1)
		expect("three within the time", "a 10.0.0.1:1 out=true fails=3 for=10s", true)
		fail(5)
		expect("those under way", "", true)
		if f.out(b, true) {
			t.Error("the other one is out, too")
		}
		time.Sleep(10 * time.Second)
		if f.out(a, false) {
			t.Error("no session may try it")
		}
		expect("one session tries it", "", true)
		fail(1)
		expect("it has failed again", "a 10.0.0.1:1 out=true fails=1 for=20s", true)
		time.Sleep(20 * time.Second)
		if f.out(a, false) {
			t.Error("no session may try it")
		}
		f.Works(a)
		expect("it works", "a 10.0.0.1:1 out=false fails=0 for=20s", false)
		fail(3)
		expect("fails again at once", "a 10.0.0.1:1 out=true fails=3 for=40s", true)
		for range 10 {
			time.Sleep(maxOut)
			f.out(a, false)
			fail(1)
		}
		told()
		time.Sleep(maxOut)
		f.out(a, false)
		fail(1)
		expect("as long as there is", "a 10.0.0.1:1 out=true fails=1 for=5m0s", true)
		f.Works(a) // of a session that had no other choice
		expect("works before its time", "a 10.0.0.1:1 out=false fails=0 for=0s", false)
		time.Sleep(time.Hour)
		fail(3)
		expect("has worked for long", "a 10.0.0.1:1 out=true fails=3 for=10s", true)
		f.Works(a)
		time.Sleep(time.Hour)
		f.Failed("b", b, errRefused)
		if len(f.records) != 1 {
			t.Errorf("%d records left", len(f.records))
		}
	})
}

// Where the session that tries an address never says how it went, another one may.
func TestTrialThatIsGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, told := changes(threeFails)
		stream, datagrams := tcp(1), &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}
		for _, addr := range []net.Addr{stream, datagrams} {
			for range 3 {
				f.Failed("a", addr, errRefused)
			}
		}
		told()
		time.Sleep(10 * time.Second)
		for _, addr := range []net.Addr{stream, datagrams} {
			if f.out(addr, false) || !f.out(addr, false) {
				t.Errorf("%T: want one session to try it", addr)
			}
		}
		time.Sleep(proveFor)
		if f.out(datagrams, false) || told() != "a 10.0.0.1:1 out=false fails=0 for=10s" {
			t.Error("an upstream of datagrams that refuses none is not taken for working")
		}
		if !f.out(stream, false) {
			t.Error("a stream that is being tried is back")
		}
		time.Sleep(10 * time.Second)
		if f.out(stream, false) || !f.out(stream, false) {
			t.Error("want one more session to try it")
		}
	})
}

func TestFailuresAreBounded(t *testing.T) {
	t.Parallel()
	f, _ := changes(threeFails)
	for i := range 3 * maxRecords {
		f.Failed("{client}", tcp(i), errRefused)
	}
	if len(f.records) > maxRecords || int(f.count.Load()) != len(f.records) {
		t.Errorf("%d records, counted %d", len(f.records), f.count.Load())
	}
	for k := range f.records {
		f.records[k].out, f.records[k].at, f.records[k].length = true, time.Now(), time.Hour
	}
	f.Failed("one more", tcp(1<<15), errRefused) // all that are remembered are out
	if len(f.records) > maxRecords {
		t.Errorf("%d records", len(f.records))
	}
}

func TestNoFailures(t *testing.T) {
	var none *Failures
	none.Failed("a", tcp(1), errRefused)
	none.Works(tcp(1))
	if in, out := none.split([]net.Addr{tcp(1)}); len(in) != 1 || len(out) != 0 || !none.quiet() {
		t.Error("a nil memory remembers")
	}
	pool := NewPool([]Upstream{{Name: "10.0.0.1:1", Addr: mustParse(t, "10.0.0.1:1")}})
	pool.Failures, _ = changes(threeFails)
	if n := testing.AllocsPerRun(100, func() {
		walk := pool.Walk()
		_, _ = walk.Next(t.Context(), nil)
	}); n > 1 {
		t.Errorf("%v allocations in a walk", n)
	}
}

// However upstreams fail and come back, a session tries first those that are in, then those that are out, none twice.
func TestWalkTriesThoseThatAreOutLast(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		n, retries := 1+random.IntN(5), random.IntN(6)
		servers, pool := randomServers(random, n)
		pool.Failures, _ = changes(threeFails)
		isOut := make(map[string]bool)
		for _, s := range servers {
			for _, addr := range s.addrs {
				if random.IntN(2) == 0 {
					isOut[addr] = true
					for range threeFails.MaxFails {
						pool.Failures.Failed(s.name, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)), errRefused)
					}
				}
			}
		}
		walk := pool.Walk()
		walk.Retries, walk.LookupTimeout = retries, time.Second
		walk.Expand = func(name string) string { return strings.Trim(name, "{}") }
		var got []string
		var failed error
		for {
			addr, err := walk.Next(context.Background(), failed)
			if err != nil {
				break
			}
			got, failed = append(got, addr.String()), fmt.Errorf("failed %s", addr)
		}
		sorted := slices.Clone(got)
		slices.Sort(sorted)
		if len(slices.Compact(sorted)) != len(got) {
			t.Fatalf("tried twice: %q", got)
		}
		wasOut := false
		for _, addr := range got {
			if wasOut && !isOut[addr] {
				t.Fatalf("tried %q after one that is out: %q, out: %v", addr, got, isOut)
			}
			wasOut = wasOut || isOut[addr]
		}
		if retries >= 2*n {
			all := 0
			for _, s := range servers {
				all += len(s.addrs)
			}
			if len(got) != all {
				t.Fatalf("tried %q of %+v", got, servers)
			}
		}
	}
}

// The turns of an upstream that is out go to all others alike.
func TestTurnsOfThoseThatAreOut(t *testing.T) {
	t.Parallel()
	var upstreams []Upstream
	for i := range 4 {
		name := tcp(i).String()
		upstreams = append(upstreams, Upstream{Name: name, Addr: mustParse(t, name)})
	}
	pool := NewPool(upstreams)
	pool.Failures, _ = changes(threeFails)
	for range 3 {
		pool.Failures.Failed("x", tcp(1), errRefused)
	}
	firsts := make(map[string]int)
	for range 300 {
		walk := pool.Walk()
		addr, err := walk.Next(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		firsts[addr.String()]++
	}
	for _, i := range []int{0, 2, 3} {
		if n := firsts[tcp(i).String()]; n != 100 {
			t.Errorf("%s was first %d times of 300", tcp(i), n)
		}
	}
}

func BenchmarkWalkOneOut(b *testing.B) {
	var upstreams []Upstream
	for i := range 1000 {
		addr, _ := Parse(tcp(i).String())
		upstreams = append(upstreams, Upstream{Name: tcp(i).String(), Addr: addr})
	}
	pool := NewPool(upstreams)
	for name, fails := range map[string]int{"none": 0, "one out": 3} {
		pool.Failures, _ = changes(threeFails)
		for range fails {
			pool.Failures.Failed("x", tcp(1), errRefused)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = pool.Walk().Next(context.Background(), nil)
			}
		})
	}
}
