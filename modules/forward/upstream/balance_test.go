package upstream

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
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

// A session costs one allocation, its walk, however its upstream is chosen.
func TestWalksAllocateNothingElse(t *testing.T) {
	for _, method := range []string{"round_robin", "least_conn", "random_choose 2", "ip_hash"} {
		p := poolOf(t, method, 5, 3, 1)
		begin := func() {
			walk := p.Walk()
			walk.Key, walk.Keyed = 7, true
			if !walk.Ready() {
				t.Error("it would wait")
			}
			if _, err := walk.Next(t.Context(), nil); err != nil {
				t.Error(err)
			}
		}
		begin() // makes the view
		if n := testing.AllocsPerRun(1000, begin); n > 1 {
			t.Errorf("%s: %v allocations", method, n)
		}
	}
}

// BenchmarkWalk is what a session costs whose first upstream is the right one: with one upstream, and with three that are weighted.
func BenchmarkWalk(b *testing.B) {
	for _, weights := range [][]int{{1}, {5, 3, 1}} {
		b.Run(fmt.Sprint(len(weights)), func(b *testing.B) {
			p := poolOf(b, "round_robin", weights...)
			b.ReportAllocs()
			for b.Loop() {
				_, _ = p.Walk().Next(b.Context(), nil)
			}
		})
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
