package ipset

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
)

// uint128 is an IPv6 address as a number.
type uint128 struct{ high, low uint64 }

func (a uint128) compare(b uint128) int {
	if a.high != b.high {
		return cmp.Compare(a.high, b.high)
	}
	return cmp.Compare(a.low, b.low)
}

func number4(addr netip.Addr) uint32 {
	bytes := addr.As4()
	return binary.BigEndian.Uint32(bytes[:])
}

func number6(addr netip.Addr) uint128 {
	bytes := addr.As16()
	return uint128{binary.BigEndian.Uint64(bytes[:8]), binary.BigEndian.Uint64(bytes[8:])}
}

// span is a range as numbers, both ends included.
type span[N uint32 | uint128] struct{ first, last N }

// merge puts the spans in order, and makes one of those that overlap or touch.
func merge[N uint32 | uint128](all []span[N], compare func(a, b N) int, touch func(last, first N) bool) []span[N] {
	byFirst := func(a, b span[N]) int { return compare(a.first, b.first) }
	if !slices.IsSortedFunc(all, byFirst) {
		slices.SortFunc(all, byFirst)
	}
	merged := all[:0]
	for _, s := range all {
		n := len(merged)
		if n == 0 || compare(merged[n-1].last, s.first) < 0 && !touch(merged[n-1].last, s.first) {
			merged = append(merged, s)
		} else if compare(merged[n-1].last, s.last) < 0 {
			merged[n-1].last = s.last
		}
	}
	if cap(merged) > 2*len(merged) {
		return slices.Clone(merged)
	}
	return merged
}

// frozen4 has the IPv4 addresses of a list.
type frozen4 struct {
	spans []span[uint32]
	index []uint32 // the position of the first span that begins with these bits or later; nil where it isn't worth it
}

const (
	// indexBits is the part of an address by which it finds its spans. The index takes 256 KiB, so that it stays in
	// the processor's cache, and leaves 15 spans to search of a million that are spread evenly.
	indexBits = 16
	// indexed is how many spans are worth an index.
	indexed = 1 << 12
)

func freeze4(all []span[uint32]) frozen4 {
	f := frozen4{spans: merge(all, cmp.Compare, func(last, first uint32) bool { return last+1 == first })}
	if len(f.spans) < indexed {
		return f
	}
	f.index = make([]uint32, 1<<indexBits+1)
	at := 0
	for i := range f.index {
		for at < len(f.spans) && f.spans[at].first>>(32-indexBits) < uint32(i) {
			at++
		}
		f.index[i] = uint32(at)
	}
	return f
}

func (f *frozen4) contains(addr uint32) bool {
	lo, hi := 0, len(f.spans)
	if f.index != nil {
		top := addr >> (32 - indexBits)
		lo, hi = int(f.index[top]), int(f.index[top+1])
	}
	// The span that has it, if any does, is the last one that begins at or before it.
	for lo < hi {
		middle := int(uint(lo+hi) >> 1)
		if f.spans[middle].first <= addr {
			lo = middle + 1
		} else {
			hi = middle
		}
	}
	return lo > 0 && f.spans[lo-1].last >= addr
}

// frozen6 has the IPv6 addresses of a list.
//
// The first bits of an address tell little, because registries have given out so little of the address space. The first 48
// do: one site has one such network (RFC 6177). Where a list is long, the spans that are within one site are found
// by a hash table, and those that are not, which are few, by a search.
type frozen6 struct {
	wide  []span[uint128] // reach over several sites; all spans where there is no table
	sites []span[uint128] // are each within one
	table []site          // open addressing, a power of two in size, at most half full
}

// site is a slot of the table.
type site struct {
	tag   uint32 // of the hash, so that most wrong ones are known without a look at their spans
	after uint32 // one more than the position of its first span; 0 for a slot that is free
}

func freeze6(all []span[uint128]) frozen6 {
	all = merge(all, uint128.compare, func(last, first uint128) bool {
		return last.low+1 == first.low && (last.high == first.high || first.low == 0 && last.high+1 == first.high)
	})
	if len(all) < indexed {
		return frozen6{wide: all}
	}
	var f frozen6
	f.sites = all[:0]
	count, last := 0, ^uint64(0)
	for _, s := range all {
		if siteOf(s.first) != siteOf(s.last) {
			f.wide = append(f.wide, s)
			continue
		}
		f.sites = append(f.sites, s)
		if at := siteOf(s.first); at != last {
			count, last = count+1, at
		}
	}
	f.table = make([]site, 1<<bits.Len(uint(2*count)))
	last = ^uint64(0)
	for i, s := range f.sites {
		if at := siteOf(s.first); at != last {
			last = at
			slot, tag := f.slotOf(at)
			for f.table[slot].after != 0 {
				slot = (slot + 1) & (len(f.table) - 1)
			}
			f.table[slot] = site{tag, uint32(i) + 1}
		}
	}
	return f
}

func siteOf(addr uint128) uint64 { return addr.high >> 16 }

// multiplier is odd and drawn at random, so that nobody can write a list whose sites all have one slot (multiplicative
// hashing, The Art of Computer Programming, 6.4).
var multiplier = rand.Uint64() | 1

// slotOf returns where the site is looked for first, and its tag.
func (f *frozen6) slotOf(at uint64) (slot int, tag uint32) {
	hash := (at + 1) * multiplier
	hash ^= hash >> 32
	hash *= multiplier
	return int(hash>>32) & (len(f.table) - 1), uint32(hash)
}

func (f *frozen6) contains(addr uint128) bool {
	if covers(f.wide, addr) {
		return true
	}
	if f.table == nil {
		return false
	}
	at := siteOf(addr)
	for slot, tag := f.slotOf(at); f.table[slot].after != 0; slot = (slot + 1) & (len(f.table) - 1) {
		if f.table[slot].tag != tag {
			continue
		}
		first := int(f.table[slot].after) - 1
		if siteOf(f.sites[first].first) == at {
			return covers(f.ofSite(first, addr), addr)
		}
	}
	return false
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

// covers tells whether one of the spans, which are in order, has addr.
func covers(spans []span[uint128], addr uint128) bool {
	lo, hi := 0, len(spans)
	for lo < hi {
		middle := int(uint(lo+hi) >> 1)
		if spans[middle].first.compare(addr) <= 0 {
			lo = middle + 1
		} else {
			hi = middle
		}
	}
	return lo > 0 && spans[lo-1].last.compare(addr) >= 0
}
