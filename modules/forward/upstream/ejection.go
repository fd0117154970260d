package upstream

import (
	"cmp"
	"math"
	"slices"
)

// maxEjected returns how many of an upstream's peers may be ejected: the share of those that may get sessions, in whole upstreams, rounded down.
func (p *Pool) maxEjected() int {
	if p.MaxEjected <= 0 || p.MaxEjected >= 1 {
		return p.usable
	}
	// A share such as 0.29 of 100 must not come out as 28.999.
	return int(math.Floor(p.MaxEjected*float64(p.usable) + 1e-9))
}

// eject decides which of the upstreams that fail are ejected: those that have failed first, up to MaxEjected. Others must be in. It returns the
// rest, a bit for each; nil where there is none.
func (p *Pool) eject(all []judgment) (spared []uint64) {
	var failing []int
	for i := range all {
		if all[i].standing == standsFailing && !p.upstreams[i].Drained {
			failing = append(failing, i)
		}
	}
	most := p.maxEjected()
	if len(failing) <= most {
		return nil
	}
	slices.SortStableFunc(failing, func(a, b int) int {
		return cmp.Or(all[a].since.Compare(all[b].since), a-b)
	})
	for _, i := range failing[most:] {
		spared = set(spared, i, len(all))
		all[i].standing = standsIn
	}
	return spared
}

// spare decides that none of those that fail is ejected.
func (p *Pool) spare(all []judgment) (spared []uint64) {
	for i := range all {
		if all[i].standing == standsFailing && !p.upstreams[i].Drained {
			spared = set(spared, i, len(all))
			all[i].standing = standsIn
		}
	}
	return spared
}
