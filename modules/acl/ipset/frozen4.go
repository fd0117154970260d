package ipset

import (
	"cmp"
	"math/bits"
)

// frozen4 has the IPv4 addresses of a list. A long one has an index: by its first bits an address finds what the list has
// of the block of addresses that share them.
type frozen4 struct {
	few   []span[uint128] // all of a list that is not worth an index
	index []uint32        // how many parts there are in the blocks before this one; has one entry more than there are blocks
	parts []part
	shift int // how many bits of an address are not in the index
}

// part is what a span has of one block: the last bits of the addresses, both ends included.
type part struct{ first, last uint16 }

const (
	// The index has 16 bits of an address, so that the others fit into a part, up to 18 in longer lists. It then takes 1 MiB,
	// and leaves 4 parts to search of a million that are spread evenly.
	minIndexBits, maxIndexBits = 16, 18
	// indexed is how many spans are worth an index.
	indexed = 1 << 12
)

func freeze4(all []span[uint32]) frozen4 {
	all = merge(all, cmp.Compare, func(last, first uint32) bool { return last+1 == first })
	if len(all) < indexed {
		few := make([]span[uint128], len(all))
		for i, s := range all {
			few[i] = span[uint128]{wide4(s.first), wide4(s.last)}
		}
		return frozen4{few: few}
	}
	f := frozen4{shift: 32 - min(max(bits.Len(uint(len(all))), minIndexBits), maxIndexBits)}
	f.index = make([]uint32, 1<<(32-f.shift)+1)
	count := 0
	for _, s := range all {
		count += int(s.last>>f.shift-s.first>>f.shift) + 1
	}
	f.parts = make([]part, 0, count)
	for _, s := range all {
		for first := s.first; ; {
			end := first | (1<<f.shift - 1)
			f.parts = append(f.parts, part{f.within(first), f.within(min(s.last, end))})
			f.index[first>>f.shift+1]++
			if end >= s.last {
				break
			}
			first = end + 1
		}
	}
	for i := range f.index[1:] {
		f.index[i+1] += f.index[i]
	}
	return f
}

func wide4(addr uint32) uint128 { return uint128{low: uint64(addr)} }

// within is where an address is in its block.
func (f *frozen4) within(addr uint32) uint16 { return uint16(addr & (1<<f.shift - 1)) }

func (f *frozen4) contains(addr uint32) bool {
	if f.index == nil {
		return covers(f.few, wide4(addr))
	}
	block := addr >> f.shift
	parts := f.parts[f.index[block]:f.index[block+1]]
	within := f.within(addr)
	at := 0
	for size := len(parts); size > 0; { // as covers does
		half := (size + 1) / 2
		if parts[at+half-1].first <= within {
			at += half
		}
		size -= half
	}
	return at > 0 && parts[at-1].last >= within
}
