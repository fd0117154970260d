package ipset

import (
	"cmp"
	"encoding/binary"
	"math/bits"
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

// covers tells whether one of the spans, which are in order, has addr. The search has no branch that
// depends on what it finds, which a processor could not foresee.
func covers(spans []span[uint128], addr uint128) bool {
	count := 0
	for size := len(spans); size > 0; {
		half := (size + 1) / 2
		first := spans[count+half-1].first
		_, below := bits.Sub64(addr.low, first.low, 0)
		_, below = bits.Sub64(addr.high, first.high, below)
		count += half & (int(below) - 1)
		size -= half
	}
	return count > 0 && spans[count-1].last.compare(addr) >= 0
}
