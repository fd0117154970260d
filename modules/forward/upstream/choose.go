package upstream

import (
	"errors"
	"slices"
)

// choice is what a walk knows of the upstreams that it has looked at.
type choice struct {
	seen    int32 // how many
	last    int32 // the last one
	pending int32 // number and 1 of one that was chosen and whose name is not known yet, 0: none
	tier    int16 // of the first one
	allOut  bool
	spared  bool    // the last one fails, and is not ejected
	detour  *detour // nil as long as the first one is all that was chosen, as for most sessions
}

// detour is the way of a session whose first upstream could not be reached.
type detour struct {
	looked []uint64    // the upstreams that were looked at, a bit for each; nil before another one is chosen
	rest   []int       // those that are out, in the order in which they are looked at; nil before
	passed []candidate // those that are tried last, because they have failed for others
	busy   []uint64    // the upstreams that had no room when they were chosen, a bit for each; nil where all had
	errs   error       // what became of those that were tried
}

// take notes that an upstream was looked at.
func (c *choice) take(position int) {
	c.seen, c.last, c.pending = c.seen+1, int32(position), 0
	if c.detour != nil && c.detour.looked != nil {
		c.detour.looked[position/64] |= 1 << (position % 64)
	}
}

// detoured returns the detour, which begins now if it has not begun.
func (c *choice) detoured() *detour {
	if c.detour == nil {
		c.detour = new(detour)
	}
	return c.detour
}

func (c *choice) anyPassed() bool { return c.detour != nil && len(c.detour.passed) > 0 }

// The errors of a session that finds no upstream which may get it, though none was tried.
var (
	ErrNone        = errors.New("no upstream may get sessions")
	ErrBreakerOpen = errors.New("the breakers of all upstreams are open")
)

func (c *choice) errs() error {
	if c.detour == nil || c.detour.errs == nil {
		return ErrNone
	}
	return c.detour.errs
}

func (d *detour) has(position int) bool { return has(d.looked, position) }

// has reports whether a bit is set. There may be none.
func has(bits []uint64, position int) bool {
	return bits != nil && bits[position/64]&(1<<(position%64)) != 0
}

// set sets a bit of n.
func set(bits []uint64, position, n int) []uint64 {
	if bits == nil {
		bits = make([]uint64, (n+63)/64)
	}
	bits[position/64] |= 1 << (position % 64)
	return bits
}

// What choose returns where it has no upstream to go on to.
const (
	allOpen = -1 // breakers are open in all that are left
	allFull = -2 // all that are left and in have as many sessions as they may
	hasNone = -3 // one was passed over, because it has as many as it may
)

// choose returns the next upstream to look at, in which the session has a place then, or one of the constants above. There must be one that the
// walk has not looked at.
func (p *Pool) choose(w *Walk) int {
	c := &w.choice
	if c.pending > 0 {
		return int(c.pending) - 1
	}
	position := p.pick(w)
	if p.limited {
		position = p.reserve(w, position)
	}
	c.pending = max(int32(position)+1, 0)
	return position
}

func (p *Pool) pick(w *Walk) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.choice.seen == 0 {
		return p.firstOf(w)
	}
	return p.another(w)
}

// firstOf returns the upstream that a session goes to.
func (p *Pool) firstOf(w *Walk) int {
	v := p.viewFor(w.situation())
	if v.none {
		return allOpen
	}
	t, key := &v.tiers[0], w.Key
	if p.Balance.Keyed() && !w.Keyed {
		key = p.point()
	}
	if t.until < 1 {
		point := mix(key) // so that a client keeps its tier, too
		if !p.Balance.Keyed() {
			point = p.point()
		}
		t = v.at(float64(point>>11) / (1 << 53))
	}
	w.choice.tier, w.choice.allOut = int16(t.priority), v.allOut
	p.last = t.first().pick(p.Balance, key, p.Random).position
	w.choice.spared = has(v.spared, p.last)
	return p.last
}

// point returns numbers that are spread evenly however few there are: multiples of the golden ratio (Knuth, volume 3, 6.4).
func (p *Pool) point() uint64 {
	p.points++
	return p.points * 0x9e3779b97f4a7c15
}

// another returns the upstream that is tried when those before could not be reached: one that is in, of the same tier before others. If
// there is none, the others are looked at, because some of their addresses may be in.
func (p *Pool) another(w *Walk) int {
	c := &w.choice
	d := c.detoured()
	if d.looked == nil {
		d.looked = make([]uint64, (len(p.upstreams)+63)/64)
		if c.seen > 0 {
			d.looked[c.last/64] |= 1 << (c.last % 64)
		}
	}
	if d.rest == nil {
		v := p.viewFor(w.situation())
		m := p.anotherOf(v.tiers[c.tier:c.tier+1], w)
		if m == nil {
			m = p.anotherOf(v.tiers, w)
		}
		if m != nil && !v.none {
			c.spared = has(v.spared, m.position)
			return m.position
		}
		if p.limited && !v.none && v.anyLeft(d) {
			return allFull
		}
		d.rest = p.others(c, v)
	}
	c.spared = false
	if len(d.rest) == 0 {
		return allOpen
	}
	next := d.rest[0]
	d.rest = d.rest[1:]
	return next
}

// others returns the upstreams that a walk has not looked at and may, by tiers, and in each beginning behind the last one.
func (p *Pool) others(c *choice, v *view) []int {
	rest := make([]int, 0, p.usable-int(c.seen))
	if v.none {
		return rest
	}
	for k := range p.upstreams {
		i := (int(c.last) + 1 + k) % len(p.upstreams)
		if !p.upstreams[i].Drained && !c.detour.has(i) && !has(v.closed, i) {
			rest = append(rest, i)
		}
	}
	slices.SortStableFunc(rest, func(a, b int) int { return p.upstreams[a].Priority - p.upstreams[b].Priority })
	return rest
}

func (p *Pool) anotherOf(tiers []tier, w *Walk) *member {
	for i := range tiers {
		for _, g := range [...]*group{tiers[i].near, tiers[i].far} {
			if g == nil {
				continue
			}
			if m := g.another(p, w); m != nil {
				return m
			}
		}
	}
	return nil
}

// another returns a member that a walk has not looked at, nil if there is none. It is the same as a pick among those, at leisure.
func (g *group) another(p *Pool, w *Walk) *member {
	skip := w.choice.detour.has
	if p.limited {
		skip = func(position int) bool { return w.choice.detour.has(position) || p.hasNoRoom(w, position) }
	}
	if w.Keyed && p.Balance.Keyed() {
		return g.highest(w.Key>>(64-slotBits), skip)
	}
	var left []*member
	next := 0 // the one behind the last that was looked at
	for i := range g.members {
		m := &g.members[i]
		if skip(m.position) {
			continue
		}
		if m.position < int(w.choice.last) {
			next++
		}
		left = append(left, m)
	}
	if len(left) == 0 {
		return nil
	}
	next %= len(left)
	switch p.Balance.Method {
	case RoundRobin:
		if w.choice.seen == 0 { // else the one behind a full one would get its sessions, too
			return nextOf(left)
		}
	case First:
		return left[0]
	case LeastConn, RandomChoose:
		best := left[next]
		for _, m := range left {
			if m.load().compare(best.load()) < 0 {
				best = m
			}
		}
		return best
	case Random:
		some := group{members: make([]member, len(left))}
		for i, m := range left {
			some.members[i] = *m
			some.total += m.weight
		}
		position := some.draw(p.Random()).position
		return left[slices.IndexFunc(left, func(m *member) bool { return m.position == position })]
	}
	return left[next]
}
