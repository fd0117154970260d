package ipset

import "slices"

// piece is a span that is in the set, or an exception of one.
type piece[N uint32 | uint128] struct {
	span[N]
	except bool
}

// carve takes the exceptions out of the spans. The spans and exceptions are prefixes, so that two of them either contain one
// another or have nothing in common; of those that contain an address the smallest one decides, and of two that are the
// same the exception, as in ipset(8), nomatch.
func carve[N uint32 | uint128](spans, exceptions []span[N], compare func(a, b N) int, next, before func(N) N) []span[N] {
	pieces := make([]piece[N], 0, len(spans)+len(exceptions))
	for _, s := range spans {
		pieces = append(pieces, piece[N]{s, false})
	}
	for _, s := range exceptions {
		pieces = append(pieces, piece[N]{s, true})
	}
	slices.SortStableFunc(pieces, func(a, b piece[N]) int { // stable: exceptions stay behind spans that are the same
		if order := compare(a.first, b.first); order != 0 {
			return order
		}
		return compare(b.last, a.last)
	})
	c := carver[N]{compare: compare, next: next, before: before}
	for _, p := range pieces {
		c.closeBefore(p.first)
		c.begin(p)
	}
	c.closeAll()
	return c.out
}

// carver goes through the pieces in the order of their first addresses. Those that have begun and not ended are in open, each
// within the one before; up to at, all is decided.
type carver[N uint32 | uint128] struct {
	compare      func(a, b N) int
	next, before func(N) N
	open         []piece[N]
	at           N
	out          []span[N]
}

func (c *carver[N]) top() piece[N] { return c.open[len(c.open)-1] }

func (c *carver[N]) begin(p piece[N]) {
	if len(c.open) > 0 && !c.top().except && c.compare(c.at, p.first) < 0 {
		c.out = append(c.out, span[N]{c.at, c.before(p.first)})
	}
	c.at = p.first
	c.open = append(c.open, p)
}

// closeBefore ends the pieces that end before an address. None of them has the last address that there is.
func (c *carver[N]) closeBefore(first N) {
	for len(c.open) > 0 && c.compare(c.top().last, first) < 0 {
		c.close()
	}
}

func (c *carver[N]) close() {
	p := c.top()
	c.open = c.open[:len(c.open)-1]
	if c.compare(c.at, p.last) > 0 {
		return
	}
	if !p.except {
		c.out = append(c.out, span[N]{c.at, p.last})
	}
	c.at = c.next(p.last)
}

func (c *carver[N]) closeAll() {
	var zero N
	for len(c.open) > 0 {
		last := c.top().last
		c.close()
		if c.compare(c.next(last), zero) == 0 {
			return // all that are open end there, too
		}
	}
}
