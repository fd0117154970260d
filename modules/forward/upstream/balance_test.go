package upstream

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// poolOf returns a pool of upstreams 10.0.0.0:1 and so on with these weights.
func poolOf(t testing.TB, method string, weights ...int) *Pool {
	t.Helper()
	all := make([]Upstream, len(weights))
	for i, weight := range weights {
		all[i] = Upstream{Name: tcp(i).String(), Addr: mustParse(t, tcp(i).String()), Weight: weight, Drained: weight == 0}
	}
	return balanced(t, method, all)
}

func balanced(t testing.TB, method string, all []Upstream) *Pool {
	t.Helper()
	p := NewPool(all)
	balance, err := ParseBalance(method)
	if err != nil {
		t.Fatal(err)
	}
	p.Balance, p.Random = balance, rand.New(rand.NewPCG(1, 2)).Uint64
	return p
}

// pickFor returns the upstream that a session with a key goes to.
func (p *Pool) pickFor(key uint64) int { return p.choose(&Walk{pool: p, Key: key, Keyed: true}) }

func (p *Pool) pickAny() int { return p.choose(&Walk{pool: p}) }

// picks counts which upstreams sessions go to.
func (p *Pool) picks(sessions int) []int {
	counts := make([]int, len(p.upstreams))
	for range sessions {
		counts[p.pickAny()]++
	}
	return counts
}

func weightsOf(random *rand.Rand, n, most int) []int {
	weights := make([]int, n)
	for i := range weights {
		weights[i] = random.IntN(most + 1)
	}
	weights[random.IntN(n)] = 1 + random.IntN(most)
	return weights
}

// nginx is smooth weighted round robin as nginx documents it.
type nginx struct{ weights, current []int }

func (n *nginx) next() int {
	best, total := -1, 0
	for i, weight := range n.weights {
		if weight == 0 {
			continue
		}
		n.current[i] += weight
		total += weight
		if best < 0 || n.current[i] > n.current[best] {
			best = i
		}
	}
	n.current[best] -= total
	return best
}

func TestWeightedTurnsAgainstOracle(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		weights := weightsOf(random, 1+random.IntN(most), 1+random.IntN(9))
		pool, oracle := poolOf(t, "round_robin", weights...), nginx{weights, make([]int, len(weights))}
		for session := range 300 {
			if got, want := pool.pickAny(), oracle.next(); got != want {
				t.Fatalf("%v, session %d: got %d, want %d", weights, session, got, want)
			}
		}
	}
}

// Weights hold exactly over as many sessions as their sum, also of a group that is too large to look at all members.
func TestWeightsHold(t *testing.T) {
	t.Parallel()
	if got := poolOf(t, "round_robin", 5, 3, 1).picks(10_000); !slices.Equal(got, []int{5556, 3333, 1111}) {
		t.Errorf("10,000 sessions on 5:3:1 are %v", got)
	}
	random := rand.New(rand.NewPCG(2, 2))
	for _, n := range []int{most, most + 1, 200, 1000} {
		weights, sum := weightsOf(random, n, 10), 0
		for _, weight := range weights {
			sum += weight
		}
		if got := poolOf(t, "round_robin", weights...).picks(3 * sum); !slices.EqualFunc(got, weights, func(n, weight int) bool { return n == 3*weight }) {
			t.Errorf("%d upstreams: the weights do not hold", n)
		}
	}
}

// What is drawn follows the weights within 2 percent points.
func TestRandomFollowsWeights(t *testing.T) {
	t.Parallel()
	for i, n := range poolOf(t, "random", 5, 3, 0, 1).picks(10_000) {
		want := 10_000 * []int{5, 3, 0, 1}[i] / 9
		if n < want-200 || n > want+200 || want == 0 && n > 0 {
			t.Errorf("upstream %d has %d sessions, want about %d", i, n, want)
		}
	}
	for i, n := range poolOf(t, "random", 7, 7).picks(10_000) {
		if n < 4800 || n > 5200 {
			t.Errorf("of two that are equal, upstream %d has %d of 10,000", i, n)
		}
	}
}

// The lots of all members add up to their weights.
func TestLots(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(6, 6))
	for range 200 {
		g := &group{}
		for i := range 1 + random.IntN(50) {
			g.members = append(g.members, member{position: i, weight: int64(1 + random.IntN(MaxWeight))})
			g.total += g.members[i].weight
		}
		has := make([]uint64, len(g.members))
		for i, l := range g.makeLots() {
			keeps := min(l.keeps, uint64(g.total))
			has[i] += keeps
			has[l.other] += uint64(g.total) - keeps
		}
		for i, m := range g.members {
			if want := uint64(m.weight) * uint64(len(g.members)); has[i] != want {
				t.Fatalf("member %d of %v has %d, want %d", i, g.members, has[i], want)
			}
		}
	}
}

// least_conn always takes one that has the fewest sessions for its weight, however sessions come and go.
func TestLeastConnAgainstOracle(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 3))
	for range 100 {
		weights := weightsOf(random, 1+random.IntN(most), 1+random.IntN(5))
		pool := poolOf(t, "least_conn", weights...)
		var living []int
		for session := range 300 {
			if len(living) > 0 && random.IntN(3) == 0 {
				i := random.IntN(len(living))
				pool.upstreams[living[i]].Living.Add(-1)
				living = slices.Delete(living, i, i+1)
			}
			got := pool.pickAny()
			for i := range pool.upstreams {
				mine, other := pool.upstreams[got].Living.Load(), pool.upstreams[i].Living.Load()
				if weights[i] > 0 && other*int64(weights[got]) < mine*int64(weights[i]) || weights[got] == 0 {
					t.Fatalf("%v, session %d: got %d with %d sessions, while %d has %d", weights, session, got, mine, i, other)
				}
			}
			pool.upstreams[got].Living.Add(1)
			living = append(living, got)
		}
	}
}

// Of upstreams that are equally busy each has its turn, by weight. One with long sessions gets no other.
func TestLeastConnTies(t *testing.T) {
	t.Parallel()
	if got := poolOf(t, "least_conn", 1, 1, 1).picks(300); !slices.Equal(got, []int{100, 100, 100}) {
		t.Errorf("equal and idle: %v", got)
	}
	if got := poolOf(t, "least_conn", 5, 3, 1).picks(900); !slices.Equal(got, []int{500, 300, 100}) {
		t.Errorf("weighted and idle: %v", got)
	}
	busy := poolOf(t, "least_conn", 1, 1, 1)
	busy.upstreams[1].Living.Store(3) // long sessions
	if got := busy.picks(300); !slices.Equal(got, []int{150, 0, 150}) {
		t.Errorf("with long sessions on one: %v", got)
	}
	large := poolOf(t, "least_conn", slices.Repeat([]int{1}, 1000)...)
	for range 1000 {
		large.upstreams[large.pickAny()].Living.Add(1)
	}
	for i := range large.upstreams {
		if n := large.upstreams[i].Living.Load(); n != 1 {
			t.Errorf("of 1000 sessions on 1000 upstreams, upstream %d has %d", i, n)
		}
	}
}

// Sessions of a large group, weighted or not, stay level.
func TestRandomChooseStaysLevel(t *testing.T) {
	t.Parallel()
	weights := slices.Repeat([]int{1, 2, 4}, 40)
	pool := poolOf(t, "random_choose 2", weights...)
	for range 100 * 280 {
		pool.upstreams[pool.pickAny()].Living.Add(1)
	}
	for i := range pool.upstreams {
		if n := pool.upstreams[i].Living.Load() / int64(weights[i]); n < 85 || n > 115 {
			t.Errorf("upstream %d has %d sessions for each unit of its weight, want about 100", i, n)
		}
	}
}

func TestFirst(t *testing.T) {
	t.Parallel()
	if got := poolOf(t, "first", 0, 1, 1).picks(9); !slices.Equal(got, []int{0, 9, 0}) {
		t.Errorf("got %v", got)
	}
}

func TestParseBalance(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"round_robin":               "",
		"random_choose 2":           "",
		"hash {l4.tls.server_name}": "",
		"hash {l4.a} {l4.b}":        "",
		"roundrobin":                `"roundrobin": expected round_robin, least_conn, random, random_choose, first, ip_hash or hash`,
		"":                          `"": expected round_robin, least_conn, random, random_choose, first, ip_hash or hash`,
		"random_choose":             `random_choose: "": expected a whole number from 2 to 64`,
		"random_choose 1":           `random_choose: "1": expected a whole number from 2 to 64`,
		"random_choose 65":          `random_choose: "65": expected a whole number from 2 to 64`,
		"hash":                      `hash: "": expected a placeholder of the connection, such as {l4.tls.server_name}`,
		"hash client":               `hash: "client": expected a placeholder of the connection, such as {l4.tls.server_name}`,
		"least_conn 2":              `least_conn: "2": expected no value`,
	} {
		b, err := ParseBalance(s)
		if got := fmt.Sprint(err); want == "" && err != nil || want != "" && got != want {
			t.Errorf("%q: got %v, want %s", s, err, want)
		}
		if name := b.Method.String(); err == nil && name != s[:len(name)] {
			t.Errorf("%q is %s", s, name)
		}
	}
}

func TestCheckTiers(t *testing.T) {
	t.Parallel()
	for want, all := range map[string][]Upstream{
		"<nil>": {{Priority: 1}, {Priority: 0}, {Priority: 2, Drained: true}},
		"weight: all are 0: expected one upstream at least that may get sessions":                         {{Drained: true}, {Drained: true}},
		`priority: "2": expected an upstream of priority 1, too: tiers are numbered from 0 without a gap`: {{}, {Priority: 2}},
		`priority: "1": expected an upstream of priority 0, too: tiers are numbered from 0 without a gap`: {{Priority: 1}},
	} {
		if got := fmt.Sprint(CheckTiers(all)); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

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

func TestHashIP(t *testing.T) {
	t.Parallel()
	of := func(s string) uint64 { return HashIP(netip.MustParseAddr(s)) }
	switch {
	case of("192.0.2.1") != of("::ffff:192.0.2.1"):
		t.Error("a client differs by how its address is written")
	case of("2001:db8::1") != of("2001:db8::ffff"):
		t.Error("a /64 is not one client")
	case of("192.0.2.1") == of("192.0.2.2") || of("2001:db8::1") == of("2001:db8:0:1::1"):
		t.Error("clients are mixed up")
	}
}

// clientsOf returns the upstream of each of some clients, by name.
func clientsOf(p *Pool, n int) []string {
	owners := make([]string, n)
	for i := range owners {
		owners[i] = p.upstreams[p.pickFor(HashString(fmt.Sprint("client", i)))].Name
	}
	return owners
}

// Whether an upstream leaves the config or is out, only its clients move, to all others alike. It is the same whether a group remembers winners or not.
func TestHashMovesOnlyTheClientsOfOne(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(5, 5))
	for _, n := range []int{2, 3, compared, compared + 1, 100} {
		weights := make([]int, n)
		sum := 0
		for i := range weights {
			weights[i] = 1 + random.IntN(3)
			sum += weights[i]
		}
		const clients = 10_000
		p := poolOf(t, "ip_hash", weights...)
		p.Failures = NewFailures(Policy{MaxFails: 1, FailDuration: time.Hour}, time.Now, nil)
		before := clientsOf(p, clients)
		gone := random.IntN(n)
		p.fail(gone)
		out := clientsOf(p, clients)
		without := poolOf(t, "ip_hash", weights...)
		without.upstreams[gone].Drained = true
		drained := clientsOf(without, clients)
		moved := 0
		for i := range before {
			switch {
			case out[i] != drained[i]:
				t.Fatalf("%d upstreams: client %d goes to %s when one is out, and to %s when it is drained", n, i, out[i], drained[i])
			case before[i] == out[i]:
			case before[i] != tcp(gone).String():
				t.Fatalf("%d upstreams: client %d moves from %s to %s, and %s is out", n, i, before[i], out[i], tcp(gone))
			default:
				moved++
			}
		}
		if want := clients * weights[gone] / sum; moved < want*7/10-10 || moved > want*13/10+10 {
			t.Errorf("%d upstreams: %d clients moved, want about %d", n, moved, want)
		}
	}
}

// A client's upstream depends neither on the order in the config, nor on what else is there, unless that wins.
func TestHashByName(t *testing.T) {
	t.Parallel()
	names := []string{"10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"}
	pool := func(names []string) *Pool {
		var all []Upstream
		for _, name := range names {
			all = append(all, Upstream{Name: name, Addr: mustParse(t, name)})
		}
		return balanced(t, "ip_hash", all)
	}
	first := clientsOf(pool(names), 1000)
	reversed := slices.Clone(names)
	slices.Reverse(reversed)
	if !slices.Equal(first, clientsOf(pool(reversed), 1000)) {
		t.Error("another order moves clients")
	}
	for i, more := range clientsOf(pool(append(names, "10.0.0.5:1")), 1000) {
		if more != first[i] && more != "10.0.0.5:1" {
			t.Errorf("client %d moves to %s because another one comes", i, more)
		}
	}
}

// Sessions without a key have their turns.
func TestHashWithoutAKey(t *testing.T) {
	t.Parallel()
	for i, n := range poolOf(t, "hash {x}", 1, 1, 2).picks(4000) {
		if want := []int{1000, 1000, 2000}[i]; n < want*9/10 || n > want*11/10 {
			t.Errorf("upstream %d: %d of 4000", i, n)
		}
	}
}

func TestPicksAllocateNothing(t *testing.T) {
	for _, method := range []string{"round_robin", "least_conn", "random", "random_choose 2", "first", "ip_hash"} {
		p := poolOf(t, method, slices.Repeat([]int{5, 3, 1}, 333)...)
		walk, key := &Walk{pool: p, Keyed: true}, uint64(0)
		pick := func() {
			key += 1 << (64 - slotBits)
			walk.choice.pending, walk.Key = 0, key
			p.choose(walk)
		}
		for range 1 << slotBits / 16 { // winners are remembered
			pick()
		}
		key = 0
		if n := testing.AllocsPerRun(1000, pick); n > 0 {
			t.Errorf("%s: %v allocations", method, n)
		}
	}
}

// BenchmarkPick is what it costs to choose one of 1,000 upstreams.
func BenchmarkPick(b *testing.B) {
	for _, weights := range []struct {
		name string
		of   []int
	}{{"equal", slices.Repeat([]int{1}, 1000)}, {"weighted", slices.Repeat([]int{5, 3, 1, 9}, 250)}, {"one out", slices.Repeat([]int{5, 3, 1, 9}, 250)}} {
		for _, method := range []string{"round_robin", "least_conn", "random", "random_choose 2", "first", "ip_hash"} {
			b.Run(weights.name+"/"+method, func(b *testing.B) {
				p := poolOf(b, method, weights.of...)
				if weights.name == "one out" {
					p.Failures = NewFailures(Policy{MaxFails: 1, FailDuration: time.Hour}, time.Now, nil)
					p.fail(7)
				}
				walk := &Walk{pool: p, Keyed: true}
				if p.Balance.Keyed() {
					for slot := range uint64(1 << slotBits) { // as after the first clients
						walk.choice.pending, walk.Key = 0, slot<<(64-slotBits)
						p.choose(walk)
					}
				}
				b.ReportAllocs()
				b.ResetTimer()
				for i := range b.N {
					walk.choice.pending, walk.Key = 0, mix(uint64(i))
					p.choose(walk)
				}
			})
		}
	}
}
