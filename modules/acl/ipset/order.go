package ipset

import (
	"container/heap"
	"math/bits"
	"net/netip"
	"slices"
)

// Order is several sets in order: of each address it says which is the first set that has it, at the cost of one lookup.
// It never changes, so any number of goroutines may read it. The nil order has no address.
type Order struct {
	v4, v6 []turn
}

// turn is a span of addresses that have the same first set. The spans of an order don't overlap.
type turn struct {
	span[uint128]
	set int
}

// First returns the number of the first set that has the address, which may have any form, see [Canonical]. It returns -1
// if no set has it.
func (o *Order) First(addr netip.Addr) int {
	if o == nil {
		return -1
	}
	addr = addr.Unmap()
	if addr.Is4() {
		return firstIn(o.v4, wide4(number4(addr)))
	}
	if addr.Is6() {
		return firstIn(o.v6, number6(addr))
	}
	return -1
}

// Len is how many spans the order has, for the addresses of both families.
func (o *Order) Len() int { return len(o.v4) + len(o.v6) }

func firstIn(turns []turn, addr uint128) int {
	count := 0
	for size := len(turns); size > 0; { // as covers does
		half := (size + 1) / 2
		first := turns[count+half-1].first
		_, below := bits.Sub64(addr.low, first.low, 0)
		_, below = bits.Sub64(addr.high, first.high, below)
		count += half & (int(below) - 1)
		size -= half
	}
	if count == 0 || turns[count-1].last.compare(addr) < 0 {
		return -1
	}
	return turns[count-1].set
}

// OrderBuilder makes an order. The zero value is ready to use.
type OrderBuilder struct {
	v4, v6 []turn
}

// Add adds a range to the set of this number.
func (b *OrderBuilder) Add(r Range, set int) {
	if r.First.Is4() {
		b.v4 = append(b.v4, turn{span[uint128]{wide4(number4(r.First)), wide4(number4(r.Last))}, set})
	} else {
		b.v6 = append(b.v6, turn{span[uint128]{number6(r.First), number6(r.Last)}, set})
	}
}

// Order returns the order, and leaves the builder empty.
func (b *OrderBuilder) Order() *Order {
	o := &Order{flatten(b.v4), flatten(b.v6)}
	*b = OrderBuilder{}
	return o
}

// flatten cuts spans that overlap so that each address is in one of them, that of the first set. It goes through the
// addresses in order; open has the spans that have begun, the first set on top. This takes n log n for n spans.
func flatten(all []turn) []turn {
	slices.SortFunc(all, func(a, b turn) int { return a.first.compare(b.first) })
	var (
		flat []turn
		open turns
		next int     // of all
		from uint128 // the addresses below are in flat
	)
	for next < len(all) || len(open) > 0 {
		if len(open) == 0 {
			from = all[next].first
		}
		for next < len(all) && all[next].first.compare(from) <= 0 {
			heap.Push(&open, all[next])
			next++
		}
		top := open[0]
		if top.last.compare(from) < 0 {
			heap.Pop(&open)
			continue
		}
		last := top.last
		if next < len(all) && all[next].first.compare(last) <= 0 {
			last = all[next].first.before()
		}
		flat = appendTurn(flat, turn{span[uint128]{from, last}, top.set})
		if last == (uint128{^uint64(0), ^uint64(0)}) {
			break // nothing is behind
		}
		from = last.after()
	}
	return slices.Clip(flat)
}

// appendTurn adds a span behind the others, or makes the last one longer.
func appendTurn(flat []turn, t turn) []turn {
	if n := len(flat) - 1; n >= 0 && flat[n].set == t.set && flat[n].last.after() == t.first {
		flat[n].last = t.last
		return flat
	}
	return append(flat, t)
}

func (a uint128) before() uint128 {
	if a.low == 0 {
		a.high--
	}
	a.low--
	return a
}

func (a uint128) after() uint128 {
	a.low++
	if a.low == 0 {
		a.high++
	}
	return a
}

// turns is a heap of spans, that of the first set on top.
type turns []turn

// Len is part of heap.Interface, as are the methods below.
func (t turns) Len() int { return len(t) }

func (t turns) Less(i, j int) bool { return t[i].set < t[j].set }

func (t turns) Swap(i, j int) { t[i], t[j] = t[j], t[i] }

func (t *turns) Push(x any) { *t = append(*t, x.(turn)) }

func (t *turns) Pop() any {
	last := len(*t) - 1
	x := (*t)[last]
	*t = (*t)[:last]
	return x
}
