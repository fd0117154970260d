package ipset

import (
	"iter"
	"math/bits"
	"math/rand/v2"
)

// frozen6 has the IPv6 addresses of a list.
//
// The first bits of an address tell little, because registries have given out so little of the address space. The first 48
// do: one site has one such network (RFC 6177). Where a list is long, what it has of one site is found by a hash table,
// and the spans that reach over many sites, which are few, by a search.
type frozen6 struct {
	wide  []span[uint128] // reach over many sites; all spans where there is no table
	sites []span[uint128] // are each within one, where a slot can't have them
	table []site          // open addressing, two thirds full
	marks []uint64        // a bit for all sites of one hash: who is in none of them is mostly known by a look at it
}

// site is a slot of the table. It is all that has to be read where a site has one span of whole networks for
// hosts, of 64 bits, as nearly all have.
type site struct {
	number      uint64 // one more than the first 48 bits; 0 for a slot that is free
	first, last uint16 // the networks for hosts that the span has, by their next 16 bits
	after       uint32 // one more than the position of the first of other spans in sites; 0 for one in the slot
}

// wideSites is how many sites a span has to reach over to be searched for. Those of fewer are cut into parts.
const wideSites = 16

func freeze6(all []span[uint128]) frozen6 {
	all = merge(all, uint128.compare, func(last, first uint128) bool {
		return last.low+1 == first.low && (last.high == first.high || first.low == 0 && last.high+1 == first.high)
	})
	if len(all) < indexed {
		return frozen6{wide: all}
	}
	var f frozen6
	count, last := 0, ^uint64(0)
	for part := range parts(all) {
		if at := siteOf(part.first); at != last {
			count, last = count+1, at
		}
	}
	f.table = make([]site, count*3/2+1)
	f.marks = make([]uint64, 1<<max(bits.Len(uint(count))-2, 0)) // 16 to 32 bits for each site

	var one []span[uint128] // what there is of one site
	for part := range parts(all) {
		if len(one) > 0 && siteOf(one[0].first) != siteOf(part.first) {
			f.addSite(one)
			one = one[:0]
		}
		one = append(one, part)
	}
	if len(one) > 0 {
		f.addSite(one)
	}
	for _, s := range all {
		if isWide(s) {
			f.wide = append(f.wide, s)
		}
	}
	return f
}

func isWide(s span[uint128]) bool { return siteOf(s.last)-siteOf(s.first) >= wideSites }

// parts gives the spans that are not wide, cut where a site ends.
func parts(all []span[uint128]) iter.Seq[span[uint128]] {
	return func(yield func(span[uint128]) bool) {
		for _, s := range all {
			if isWide(s) {
				continue
			}
			for siteOf(s.first) < siteOf(s.last) {
				end := uint128{s.first.high | 0xffff, ^uint64(0)}
				if !yield(span[uint128]{s.first, end}) {
					return
				}
				s.first = uint128{end.high + 1, 0}
			}
			if !yield(s) {
				return
			}
		}
	}
}

// addSite adds all spans of one site.
func (f *frozen6) addSite(spans []span[uint128]) {
	s := spans[0]
	at := siteOf(s.first)
	hash := hashOf(at)
	word, mask := f.mark(hash)
	*word |= mask
	if len(spans) == 1 && s.first.low == 0 && s.last.low == ^uint64(0) {
		*f.slotOf(at, hash) = site{number: at + 1, first: uint16(s.first.high), last: uint16(s.last.high)}
		return
	}
	*f.slotOf(at, hash) = site{number: at + 1, after: uint32(len(f.sites)) + 1}
	f.sites = append(f.sites, spans...)
}

func siteOf(addr uint128) uint64 { return addr.high >> 16 }

// multiplier is odd and drawn at random, so that nobody can write a list whose sites all have one slot (multiplicative
// hashing, The Art of Computer Programming, 6.4).
var multiplier = rand.Uint64() | 1

func hashOf(at uint64) uint64 {
	hash := (at + 1) * multiplier
	hash ^= hash >> 32
	return hash * multiplier
}

// mark returns where the bit for sites of this hash is.
func (f *frozen6) mark(hash uint64) (word *uint64, mask uint64) {
	return &f.marks[hash>>38&uint64(len(f.marks)-1)], 1 << (hash >> 32 & 63)
}

// slotOf returns the slot of the site of this hash, or the free one where it would be.
func (f *frozen6) slotOf(at, hash uint64) *site {
	slot, _ := bits.Mul64(hash, uint64(len(f.table))) // as far into the table as the hash is into all numbers
	for f.table[slot].number != 0 && f.table[slot].number != at+1 {
		if slot++; slot == uint64(len(f.table)) {
			slot = 0
		}
	}
	return &f.table[slot]
}

func (f *frozen6) contains(addr uint128) bool {
	if len(f.wide) > 0 && covers(f.wide, addr) {
		return true
	}
	if f.table == nil {
		return false
	}
	at := siteOf(addr)
	hash := hashOf(at)
	if word, mask := f.mark(hash); *word&mask == 0 {
		return false
	}
	switch s := f.slotOf(at, hash); {
	case s.number == 0:
		return false
	case s.after == 0:
		network := uint16(addr.high)
		return s.first <= network && network <= s.last
	default:
		return covers(f.ofSite(int(s.after)-1, addr), addr)
	}
}

// ofSite returns spans from the first one of a site on, with all that may have addr.
func (f *frozen6) ofSite(first int, addr uint128) []span[uint128] {
	spans := f.sites[first:]
	n := 1 // most sites have few
	for n < len(spans) && spans[n].first.compare(addr) <= 0 {
		n *= 2
	}
	return spans[:min(n, len(spans))]
}
