// Package ipset holds sets of IP addresses that are made of prefixes and ranges, up to millions of them, and
// reads the lists that they come in.
//
// What is added to a set one at a time is in a routing table (github.com/gaissmai/bart, a popcount-compressed
// trie), of which a changed copy shares all but a few nodes with the one before. A list that is loaded as a whole is
// frozen into sorted ranges instead, because such lists are long: a million scattered IPv4 addresses take 5 MiB
// and two cache misses there, 90 MiB and six in the table.
package ipset

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// Set is a set of addresses. It never changes, so any number of goroutines may read it. The nil set is empty.
type Set struct {
	v4    frozen4
	v6    frozen6
	table *bart.Lite // what New and With have added
	size  int
}

// Contains tells whether the address is in the set. It may have any form, see [Canonical].
func (s *Set) Contains(addr netip.Addr) bool {
	switch {
	case s == nil:
		return false
	case addr.Is4In6():
		addr = addr.Unmap()
	}
	if s.table.Size() > 0 && s.table.Contains(Canonical(addr)) {
		return true
	}
	if addr.Is4() {
		return s.v4.contains(number4(addr))
	}
	return addr.Is6() && s.v6.contains(number6(addr)) // false for what is no address
}

// Len is how many entries the set was made of.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return s.size
}

// New returns a set of prefixes that [Set.Without] can take out again.
func New(prefixes iter.Seq[netip.Prefix]) *Set {
	table := new(bart.Lite)
	for prefix := range prefixes {
		table.Insert(prefix)
	}
	return &Set{table: table, size: table.Size()}
}

// With returns a set that also has the prefix. The two share all but a few nodes.
func (s *Set) With(prefix netip.Prefix) *Set {
	if s == nil {
		s = New(func(func(netip.Prefix) bool) {})
	}
	if s.table.Get(prefix) {
		return s
	}
	return &Set{s.v4, s.v6, s.table.InsertPersist(prefix), s.size + 1}
}

// Without returns a set without a prefix that [Set.With] or [New] has added.
func (s *Set) Without(prefix netip.Prefix) *Set {
	if s == nil || !s.table.Get(prefix) {
		return s
	}
	return &Set{s.v4, s.v6, s.table.DeletePersist(prefix), s.size - 1}
}

// Builder makes a set of many entries. The zero value is ready to use.
type Builder struct {
	v4, except4 chunks[span[uint32]]
	v6, except6 chunks[span[uint128]]
	entries     int // how many were added
}

// Add adds the addresses of a range.
func (b *Builder) Add(r Range) {
	b.entries++
	if r.First.Is4() {
		b.v4.add(span[uint32]{number4(r.First), number4(r.Last)})
	} else {
		b.v6.add(span[uint128]{number6(r.First), number6(r.Last)})
	}
}

// Except leaves out the addresses of a prefix, but for those that smaller prefixes within it add. With it, everything that is
// added has to be a prefix.
func (b *Builder) Except(r Range) {
	if r.First.Is4() {
		b.except4.add(span[uint32]{number4(r.First), number4(r.Last)})
	} else {
		b.except6.add(span[uint128]{number6(r.First), number6(r.Last)})
	}
}

func (b *Builder) hasExceptions() bool { return len(b.except4)+len(b.except6) > 0 }

// Set returns the set, and leaves the builder empty.
func (b *Builder) Set() *Set {
	v4, v6, size := b.v4.join(), b.v6.join(), b.entries
	if except := b.except4.join(); len(except) > 0 {
		v4 = carve(v4, except, cmp.Compare, func(n uint32) uint32 { return n + 1 }, func(n uint32) uint32 { return n - 1 })
	}
	if except := b.except6.join(); len(except) > 0 {
		v6 = carve(v6, except, uint128.compare, uint128.after, uint128.before)
	}
	b.entries = 0
	return &Set{v4: freeze4(v4), v6: freeze6(v6), table: new(bart.Lite), size: size}
}

// chunks is a list that grows without being copied: a slice that grows to a million spans leaves five times their size
// behind.
type chunks[T any] [][]T

const chunkLen = 1 << 14

func (c *chunks[T]) add(value T) {
	last := len(*c) - 1
	if last < 0 || len((*c)[last]) == chunkLen {
		size := chunkLen
		if last < 0 {
			size = 0 // most lists are short
		}
		*c = append(*c, make([]T, 0, size))
		last++
	}
	(*c)[last] = append((*c)[last], value)
}

// join returns all values, and leaves the list empty.
func (c *chunks[T]) join() []T {
	all := slices.Concat(*c...)
	*c = nil
	return all
}
