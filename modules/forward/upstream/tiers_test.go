package upstream

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// share is the part of the sessions that each tier takes, in percent. healthy is in percent of a tier's weight.
func share(healthy ...int64) (percent []int) {
	tiers, all, before := make([]tier, len(healthy)), slices.Repeat([]int64{100}, len(healthy)), 0.0
	split(tiers, healthy, all)
	for _, t := range tiers {
		percent = append(percent, int((t.until-before)*100+0.5))
		before = t.until
	}
	return percent
}

// The tables of Envoy's documentation on priority levels.
func TestTiersSpillOver(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ healthy, want []int }{
		{[]int{100, 100}, []int{100, 0}},
		{[]int{72, 100}, []int{100, 0}},
		{[]int{71, 100}, []int{99, 1}},
		{[]int{50, 100}, []int{70, 30}},
		{[]int{25, 100}, []int{35, 65}},
		{[]int{0, 100}, []int{0, 100}},
		{[]int{25, 25}, []int{50, 50}},
		{[]int{25, 0}, []int{100, 0}},
		{[]int{50, 50, 100}, []int{70, 30, 0}},
		{[]int{25, 25, 100}, []int{35, 35, 30}},
		{[]int{20, 20, 10}, []int{40, 40, 20}},
		{[]int{0, 0, 1}, []int{0, 0, 100}},
	} {
		var healthy []int64
		for _, h := range c.healthy {
			healthy = append(healthy, int64(h))
		}
		if got := share(healthy...); !slices.Equal(got, c.want) {
			t.Errorf("healthy %v: got %v, want %v", c.healthy, got, c.want)
		}
	}
}

// tiered is a pool of upstreams in tiers, with a memory of failures.
func tiered(t testing.TB, method string, priorities ...int) *Pool {
	t.Helper()
	all := make([]Upstream, len(priorities))
	for i, priority := range priorities {
		all[i] = Upstream{Name: tcp(i).String(), Addr: mustParse(t, tcp(i).String()), Priority: priority}
	}
	p := balanced(t, method, all)
	p.Failures = NewFailures(Policy{MaxFails: 1, FailDuration: time.Minute}, time.Now, nil)
	return p
}

func (p *Pool) fail(which ...int) {
	for _, i := range which {
		p.Failures.Failed("", tcp(i), errRefused)
	}
}

// Sessions go to the next tier as upstreams of the first one fail, and come back with them. When all are out, all are tried.
func TestTiersOfAPool(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := tiered(t, "round_robin", 0, 1, 0, 1, 0, 0)
		expect := func(want ...int) {
			t.Helper()
			got := p.picks(1000)
			for i := range want {
				if got[i] < want[i]-3 || got[i] > want[i]+3 || want[i] == 0 && got[i] > 0 {
					t.Errorf("got %v, want %v", got, want)
					return
				}
			}
		}
		expect(250, 0, 250, 0, 250, 250)
		p.fail(0)
		expect(0, 0, 333, 0, 333, 333)
		p.fail(2) // half of the tier is left, which takes 70 %
		expect(0, 150, 0, 150, 350, 350)
		p.fail(4, 5)
		expect(0, 500, 0, 500, 0, 0)
		p.fail(1)
		expect(0, 0, 0, 1000, 0, 0)
		p.fail(3)
		walk := p.Walk()
		_, _ = walk.Next(t.Context(), nil)
		if !walk.AllOut() {
			t.Error("nobody notices that all are out")
		}
		expect(250, 0, 250, 0, 250, 250)
		p.Failures.Works(tcp(3))
		expect(0, 0, 0, 1000, 0, 0)
		walk = p.Walk()
		if _, _ = walk.Next(t.Context(), nil); walk.AllOut() {
			t.Error("one is back")
		}
		for i := range 6 {
			p.Failures.Works(tcp(i))
		}
		expect(250, 0, 250, 0, 250, 250)
		p.fail(0, 2, 4, 5)
		time.Sleep(maxOut) // each of them is to be tried again
		expect(250, 0, 250, 0, 250, 250)
	})
}

// A session that has spilled over tries its own tier before it goes back to the first.
func TestRetriesStayInTheTier(t *testing.T) {
	t.Parallel()
	p := tiered(t, "round_robin", 0, 0, 1, 1)
	p.fail(0) // 30 % spill over
	spilled := 0
	for range 100 {
		walk := p.Walk()
		walk.Retries = 3
		var tiers []int
		for addr, err := walk.Next(t.Context(), nil); err == nil && addr != nil; addr, err = walk.Next(t.Context(), nil) {
			tiers = append(tiers, p.upstreams[walk.Position()].Priority)
		}
		if tiers[0] == 1 {
			spilled++
		}
		if want := [][]int{{0, 1, 1, 0}, {1, 1, 0, 0}}[tiers[0]]; !slices.Equal(tiers, want) {
			t.Errorf("tried tiers %v, want %v", tiers, want)
		}
	}
	if spilled < 25 || spilled > 35 {
		t.Errorf("%d of 100 sessions have spilled over", spilled)
	}
}

// The upstreams of the own zone come first within a tier, and only there.
func TestZones(t *testing.T) {
	t.Parallel()
	p := tiered(t, "round_robin", 0, 0, 0, 1)
	p.upstreams[1].Near, p.upstreams[3].Near = true, true
	check := func(want ...int) {
		t.Helper()
		if got := p.picks(100); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	check(0, 100, 0, 0)
	walk := p.Walk()
	walk.Retries = 9
	var order []string
	for addr, err := walk.Next(t.Context(), nil); err == nil && addr != nil; addr, err = walk.Next(t.Context(), nil) {
		order = append(order, addr.String())
	}
	if want := []string{tcp(1).String(), tcp(2).String(), tcp(0).String(), tcp(3).String()}; !slices.Equal(order, want) {
		t.Errorf("tried %v, want %v", order, want)
	}
	p.fail(1) // two of three are left, which takes 93 %
	got := p.picks(1000)
	if got[1] != 0 || got[0] < 460 || got[0] > 470 || got[3] < 60 || got[3] > 73 {
		t.Errorf("without the near one: %v", got)
	}
}

// Whatever the method and whatever is out, a walk tries every upstream that may get sessions once, those that are in first.
func TestWalksOfAllMethods(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(4, 4))
	for _, method := range []string{"round_robin", "least_conn", "random", "random_choose 2", "first", "ip_hash", "hash {x}"} {
		for range 300 {
			n := 1 + random.IntN(8)
			p := tiered(t, method, slices.Repeat([]int{0}, n)...)
			usable := 0
			for i := range p.upstreams {
				u := &p.upstreams[i]
				u.Weight, u.Drained = 1+random.IntN(3), i > 0 && random.IntN(4) == 0
				u.Priority, u.Near = random.IntN(2), random.IntN(2) == 0
				if !u.Drained {
					usable++
				}
				if random.IntN(3) == 0 {
					p.fail(i)
				}
			}
			p.usable = usable
			walk := p.Walk()
			walk.Retries, walk.Key, walk.Keyed = 100, random.Uint64(), random.IntN(2) == 0
			var tried []string
			before := false // one that is out was tried
			for addr, err := walk.Next(t.Context(), nil); err == nil && addr != nil; addr, err = walk.Next(t.Context(), nil) {
				if slices.Contains(tried, addr.String()) {
					t.Errorf("%s: %v twice", method, addr)
				}
				out := p.Failures.out(addr, true)
				if before && !out {
					t.Errorf("%s: %v is in, and tried after one that is out", method, addr)
				}
				before = before || out
				tried = append(tried, addr.String())
				if name, _ := walk.Current(); p.upstreams[walk.Position()].Name != name || p.upstreams[walk.Position()].Drained {
					t.Errorf("%s: %s has the position %d", method, name, walk.Position())
				}
			}
			if len(tried) != usable {
				t.Errorf("%s: tried %d of %d", method, len(tried), usable)
			}
		}
	}
}

// An upstream with a name is out when all of its addresses are.
func TestNamesThatAreOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := NewPool([]Upstream{{Name: "a:1", Addr: mustParse(t, "a:1")}, {Name: "10.0.0.9:1", Addr: mustParse(t, "10.0.0.9:1"), Priority: 1}})
		server := newNameServer("10.0.0.1")
		p.Hold(server.names)
		synctest.Wait()
		p.Failures = NewFailures(Policy{MaxFails: 1, FailDuration: time.Hour}, time.Now, nil)
		if got := p.picks(10); got[0] != 10 {
			t.Errorf("in: %v", got)
		}
		p.Failures.Failed("a:1", tcp(1), errors.New("refused"))
		if got := p.picks(10); got[1] != 10 {
			t.Errorf("out: %v", got)
		}
		p.Release()
	})
}

// Ranges of ports are out port by port.
func TestPortsThatAreOut(t *testing.T) {
	t.Parallel()
	p := NewPool([]Upstream{{Name: "a", Addr: mustParse(t, "10.0.0.1:1-100")}, {Name: "b", Addr: mustParse(t, "10.0.0.2:1-100")}})
	p.Failures = NewFailures(Policy{MaxFails: 1, FailDuration: time.Hour}, time.Now, nil)
	p.Failures.Failed("a", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.1:5")), errRefused)
	for offset := range 100 {
		firsts := make(map[string]int)
		for range 10 {
			walk := p.Walk()
			walk.Offset = offset
			_, _ = walk.Next(t.Context(), nil)
			name, _ := walk.Current()
			firsts[name]++
		}
		if want := 5; offset != 4 && firsts["a"] != want || offset == 4 && firsts["a"] != 0 {
			t.Errorf("port %d: %v", 1+offset, firsts)
		}
	}
	if len(p.views) > maxViews {
		t.Errorf("%d views", len(p.views))
	}
}
