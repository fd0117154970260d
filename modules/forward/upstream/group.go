package upstream

import (
	"math/bits"
	"slices"
	"sync/atomic"
)

const (
	// most is how many upstreams a pick looks at: it has to be cheap with 1,000 as well.
	most = 64
	// block is how many members of a larger group take turns among each other: with 1,000, that and the number of blocks are small.
	block = 16
	// sample is how many least_conn looks at where there are more than that. The busiest upstream has hardly more sessions then than where
	// all are compared: it falls with log log n over log of this (Azar et al. 1999).
	sample = 12
)

// group is the upstreams that a pick chooses among: those of one tier, and there of one side of the zone, that are in. It is
// guarded by its pool.
type group struct {
	members []member
	uniform bool // all weights are equal
	total   int64
	turn    int     // the member whose turn it is
	blocks  blocks  // of weighted groups that are too large to look at all members
	lots    []lot   // of the members, made at the first draw
	hashed  *owners // shared by all views
}

// member is an upstream of a group.
type member struct {
	position int // of the upstream in its pool
	weight   int64
	living   *atomic.Int64
	current  *int64 // of smooth weighted round robin; it is the pool's, so that it goes on when the group changes
	seed     uint64 // of the name, for hashes
}

// blocks are parts of a group that take turns among each other.
type blocks struct{ weight, current []int64 }

// newGroup returns a group in which the members behind the last one that was picked have their turn first.
func newGroup(members []member, last int) *group {
	g := &group{members: members, uniform: true}
	for _, m := range members {
		g.total += m.weight
		g.uniform = g.uniform && m.weight == members[0].weight
	}
	if next := slices.IndexFunc(members, func(m member) bool { return m.position > last }); next > 0 {
		g.turn = next
	}
	if g.uniform || len(members) <= most {
		return g
	}
	for part := range slices.Chunk(members, block) {
		sum := int64(0)
		for _, m := range part {
			sum += m.weight
		}
		g.blocks.weight = append(g.blocks.weight, sum)
	}
	g.blocks.current = make([]int64, len(g.blocks.weight))
	return g
}

// pick returns a member.
func (g *group) pick(b Balance, key uint64, random func() uint64) *member {
	if len(g.members) == 1 {
		return &g.members[0]
	}
	switch b.Method {
	case LeastConn:
		return g.leastLoaded()
	case Random:
		return g.draw(random())
	case RandomChoose:
		return g.bestOfDrawn(b.Draws, random)
	case First:
		return &g.members[0]
	case IPHash, Hash:
		return g.owner(key)
	}
	return g.next()
}

// next returns the member whose turn it is: smooth weighted round robin, as nginx has it (commit 52327e0627f4 of 2012). Of a
// large group it is the block's turn first, and in that the member's. Each is picked as often as its weight says in both.
func (g *group) next() *member {
	if g.uniform {
		m := &g.members[g.turn]
		g.turn++
		if g.turn == len(g.members) {
			g.turn = 0
		}
		return m
	}
	if len(g.blocks.weight) == 0 {
		return smooth(g.members, g.total)
	}
	best := 0
	for i, weight := range g.blocks.weight {
		g.blocks.current[i] += weight
		if g.blocks.current[i] > g.blocks.current[best] {
			best = i
		}
	}
	g.blocks.current[best] -= g.total
	first := best * block
	return smooth(g.members[first:min(first+block, len(g.members))], g.blocks.weight[best])
}

// smooth is one step of smooth weighted round robin.
func smooth(members []member, total int64) *member {
	best := &members[0]
	for i := range members {
		m := &members[i]
		*m.current += m.weight
		if *m.current > *best.current {
			best = m
		}
	}
	*best.current -= total
	return best
}

// leastLoaded returns the member with the fewest living sessions for its weight. Of equals the one whose turn it is, by weight.
// Of a large group it looks at the next ones in turn.
func (g *group) leastLoaded() *member {
	n := len(g.members)
	look, start := n, g.turn
	switch {
	case n > most:
		look = sample
	case !g.uniform:
		start = 0
	}
	best, equals, load := start, 1, g.members[start].load()
	for k := 1; k < look; k++ {
		i := start + k
		if i >= n {
			i -= n
		}
		switch other := g.members[i].load(); other.compare(load) {
		case -1:
			best, equals, load = i, 1, other
		case 0:
			equals++
		}
	}
	if equals > 1 && !g.uniform {
		best = g.smoothEqual(start, look, best, load)
	}
	if g.turn = best + 1; g.turn == n {
		g.turn = 0
	}
	return &g.members[best]
}

// smoothEqual is one step of smooth weighted round robin among those with the same load. Counts may change meanwhile.
func (g *group) smoothEqual(start, look, best int, equal load) int {
	total, found := int64(0), false
	for i := start; look > 0; look-- {
		m, at := &g.members[i], i
		if i++; i == len(g.members) {
			i = 0
		}
		if m.load().compare(equal) != 0 {
			continue
		}
		*m.current += m.weight
		total += m.weight
		if !found || *m.current > *g.members[best].current {
			best, found = at, true
		}
	}
	*g.members[best].current -= total
	return best
}

// load is how busy an upstream is.
type load struct{ living, weight int64 }

func (m *member) load() load { return load{m.living.Load(), m.weight} }

// compare compares living sessions for each unit of weight.
func (l load) compare(other load) int {
	switch difference := l.living*other.weight - other.living*l.weight; {
	case difference < 0:
		return -1
	case difference > 0:
		return 1
	}
	return 0
}

// lot is a part of all draws that is as large as that of any other member. A member whose share is smaller leaves the rest to another one.
type lot struct {
	keeps uint64 // how much of the total weight belongs to the member itself
	other int    // whose the rest is
}

// draw returns a member by lot, as likely as its weight says: the alias method (Walker 1977, Vose 1991), which looks at two at most.
func (g *group) draw(random uint64) *member {
	n, total := uint64(len(g.members)), uint64(g.total)
	if g.uniform {
		i, _ := bits.Mul64(random, n) // as good as even: n is far below 2^64
		return &g.members[i]
	}
	if g.lots == nil {
		g.lots = g.makeLots()
	}
	point, _ := bits.Mul64(random, n*total)
	i, rest := point/total, point%total
	if rest < g.lots[i].keeps {
		return &g.members[i]
	}
	return &g.members[g.lots[i].other]
}

// makeLots deals out n lots of the total weight each, of which a member has n times its weight.
func (g *group) makeLots() []lot {
	n := uint64(len(g.members))
	lots := make([]lot, n)
	var small, large []int
	for i, m := range g.members {
		lots[i].keeps = uint64(m.weight) * n
		if lots[i].keeps < uint64(g.total) {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	for len(small) > 0 && len(large) > 0 {
		poor, rich := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		lots[poor].other = rich
		lots[rich].keeps -= uint64(g.total) - lots[poor].keeps
		if lots[rich].keeps < uint64(g.total) {
			large = large[:len(large)-1]
			small = append(small, rich)
		}
	}
	return lots
}

// bestOfDrawn draws some members, and returns the one with the lowest load (the power of two choices: Mitzenmacher 1996).
func (g *group) bestOfDrawn(draws int, random func() uint64) *member {
	best := g.draw(random())
	for k := 1; k < draws; k++ {
		m := g.draw(random())
		if m == best { // with few upstreams this would be a draw of one too often
			m = g.draw(random())
		}
		if m.load().compare(best.load()) < 0 {
			best = m
		}
	}
	return best
}
