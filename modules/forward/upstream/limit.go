package upstream

import (
	"errors"
	"fmt"
)

// ErrFull is the error of a session while all upstreams that are in have as many sessions as they may.
var ErrFull = errors.New("all upstreams have as many sessions as they may (max_connections)")

// MaxSessions is the largest limit on the sessions of an upstream.
const MaxSessions = 1_000_000_000

// Limited reports whether an upstream may have only so many sessions at once.
func (p *Pool) Limited() bool { return p.limited }

// Full reports whether the walk has ended for the time being, because all upstreams that are in have as many sessions as they may. Next then
// returns an error that is [ErrFull]. It may be called again, and goes on where the walk was, with those that have room by then.
func (w *Walk) Full() bool { return w.full }

// Claim looks for an upstream again for a walk that is full, or has not begun, without waiting. It reports false where it is full still. Else Next goes
// on with what was found, in which the session has its place.
func (w *Walk) Claim() bool {
	w.full = w.left() && int(w.tried) <= w.Retries && len(w.addrs) == 0 &&
		int(w.choice.seen) < w.pool.usable && w.pool.choose(w) == allFull
	return !w.full
}

// Restart begins a walk, also one that has begun in this pool or in another one. What the caller has set stays.
func (w *Walk) Restart(p *Pool) {
	w.pool, w.choice, w.named, w.current, w.source, w.addrs, w.last = p, choice{}, nil, nil, Source{}, nil, nil
	w.tried, w.fresh, w.refused, w.full = 0, false, false, false
}

// errFull tells of what has failed before, too.
func (w *Walk) errFull() error {
	if d := w.choice.detour; d != nil && d.errs != nil {
		return fmt.Errorf("%v; %w", d.errs, ErrFull) //nolint:errorlint // unwraps to the last on purpose
	}
	return ErrFull
}

// hold reserves a place for the session at an upstream, unless it has one. It reports false where there is none.
func (w *Walk) hold(u *Upstream) bool {
	return u.MaxSessions == 0 || w.Reserve == nil || w.Reserve(u.position, u.MaxSessions)
}

// reserve reserves a place for the session at an upstream that was picked, or else at another one.
func (p *Pool) reserve(w *Walk, position int) int {
	c := &w.choice
	if c.detour != nil {
		c.detour.busy = nil
	}
	for position >= 0 && !w.hold(&p.upstreams[position]) {
		d := c.detoured()
		if d.rest != nil { // of those that are out, nobody waits for one
			c.take(position)
			return hasNone
		}
		d.busy = set(d.busy, position, len(p.upstreams))
		c.last = int32(position)
		p.mu.Lock()
		position = p.another(w)
		p.mu.Unlock()
	}
	return position
}

// hasNoRoom reports whether an upstream has as many sessions as it may. It may have room a moment later.
func (p *Pool) hasNoRoom(w *Walk, position int) bool {
	u := &p.upstreams[position]
	return u.MaxSessions > 0 && (u.Living.Load() >= u.MaxSessions || has(w.choice.detour.busy, position))
}

// anyLeft reports whether there is an upstream that is in, and that a walk has not looked at.
func (v *view) anyLeft(d *detour) bool {
	for i := range v.tiers {
		for _, g := range [...]*group{v.tiers[i].near, v.tiers[i].far} {
			if g == nil {
				continue
			}
			for k := range g.members {
				if !d.has(g.members[k].position) {
					return true
				}
			}
		}
	}
	return false
}

// nextOf returns the one whose turn it is: smooth weighted round robin among some members of a group.
func nextOf(members []*member) *member {
	best, total := members[0], int64(0)
	for _, m := range members {
		*m.current += m.weight
		total += m.weight
		if *m.current > *best.current {
			best = m
		}
	}
	*best.current -= total
	return best
}
