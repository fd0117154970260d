package upstream

import (
	"encoding/binary"
	"math"
	"net/netip"
)

// Consistent hashing is weighted rendezvous hashing (Thaler and Ravishankar 1998; weights: Schindelhauer and Schomaker 2005): each
// upstream has a score for a key, which depends on its name and weight alone, and the highest one wins. So an upstream that
// goes takes only its own clients along, and one that comes, or gets more weight, only takes clients to itself. A ring or Maglev's table
// moves some others as well when the weights are not equal. Keys fall into 65,536 slots, of which a large group remembers the winners, so
// that a pick need not compare 1,000 scores.

const (
	slotBits = 16
	// compared is how many scores are compared rather than to remember who has won.
	compared = 12
)

// HashString returns the key of a value.
func HashString(s string) uint64 { // FNV-1a
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return mix(h)
}

// HashIP returns the key of a client. One with IPv6 is a /64: within that, its address changes from day to day (RFC 8981).
func HashIP(ip netip.Addr) uint64 {
	ip = ip.Unmap()
	if ip.Is4() {
		four := ip.As4()
		return mix(uint64(binary.BigEndian.Uint32(four[:])))
	}
	sixteen := ip.As16()
	return mix(^binary.BigEndian.Uint64(sixteen[:8]))
}

// mix makes each bit depend on all others: the end of splitmix64 (Steele, Lea and Flood 2014).
func mix(h uint64) uint64 {
	h += 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// owners are the winners of the slots among all members of a group, those that are out included.
type owners struct {
	all  *group
	page [256]*[256]uint16 // 0: not known yet, else the member's number and 1
}

// owner returns the member that a key belongs to.
func (g *group) owner(key uint64) *member {
	slot := key >> (64 - slotBits)
	o := g.hashed
	if o == nil || len(o.all.members) >= math.MaxUint16 {
		return g.highest(slot, nil)
	}
	page := o.page[slot>>8]
	if page == nil {
		page = new([256]uint16)
		o.page[slot>>8] = page
	}
	entry := &page[slot&255]
	if *entry == 0 {
		winner := o.all.highest(slot, nil)
		for i := range o.all.members {
			if &o.all.members[i] == winner {
				*entry = uint16(i + 1)
			}
		}
	}
	winner := &o.all.members[*entry-1]
	if g == o.all || g.has(winner.position) {
		return winner
	}
	return g.highest(slot, nil)
}

// has reports whether an upstream is in the group, whose members are in order.
func (g *group) has(position int) bool {
	lo, hi := 0, len(g.members)
	for lo < hi {
		mid := (lo + hi) / 2
		switch at := g.members[mid].position; {
		case at == position:
			return true
		case at < position:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return false
}

// highest returns the member with the highest score for a slot, nil where all are to be skipped.
func (g *group) highest(slot uint64, skip func(position int) bool) (best *member) {
	var bestDraw uint64
	var bestScore float64
	for i := range g.members {
		m := &g.members[i]
		if skip != nil && skip(m.position) {
			continue
		}
		draw := mix(m.seed ^ slot*0xd6e8feb86659fd93)
		if g.uniform { // the score grows with the draw
			if best == nil || draw > bestDraw {
				best, bestDraw = m, draw
			}
			continue
		}
		if s := score(draw, m.weight); best == nil || s > bestScore {
			best, bestScore = m, s
		}
	}
	return best
}

// score is -weight/ln(u), where u is the draw as a number between 0 and 1.
func score(draw uint64, weight int64) float64 {
	u := (float64(draw>>11) + 0.5) / (1 << 53)
	return -float64(weight) / math.Log(u)
}
