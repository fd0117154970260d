package network

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/portgate/caddy-portgate/modules/internal/listeners"
)

// slowTable does what a table does, the obvious way: it looks at all sessions each time.
type slowTable struct{ sessions []*slowSession } // oldest first

type slowSession struct {
	tuple fiveTuple
	tier  tier
	since int // when it came to its tier
}

func (t *slowTable) find(f fiveTuple) int {
	return slices.IndexFunc(t.sessions, func(s *slowSession) bool { return s.tuple == f })
}

func (t *slowTable) remove(f fiveTuple) {
	if i := t.find(f); i >= 0 {
		t.sessions = slices.Delete(t.sessions, i, i+1)
	}
}

// room returns the session that leaves.
func (t *slowTable) room(f fiveTuple, limits sessionLimits) (leaves fiveTuple, why listeners.DropReason, ok bool) {
	var mine []*slowSession
	for _, s := range t.sessions {
		if s.tuple.clientKey() == f.clientKey() {
			mine = append(mine, s)
		}
	}
	of, why := t.sessions, listeners.DropSessionLimit
	switch {
	case len(mine) >= limits.perClient:
		of, why = mine, listeners.DropClientLimit
	case len(t.sessions) < limits.total:
		return fiveTuple{}, 0, true
	}
	var least *slowSession
	for _, s := range of {
		if s.tier != established && (least == nil || s.tier < least.tier || s.tier == least.tier && s.since < least.since) {
			least = s
		}
	}
	if least == nil {
		return fiveTuple{}, why, false
	}
	t.remove(least.tuple)
	return least.tuple, 0, true
}

// TestTableDoesWhatTheSlowOneDoes has both go through the same random history.
func TestTableDoesWhatTheSlowOneDoes(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		random := rand.New(rand.NewPCG(seed, 1))
		limits := sessionLimits{total: 1 + random.IntN(20), perClient: 1 + random.IntN(8)}
		fast, slow := newTable(), new(slowTable)
		for now := range 3000 {
			// A few clients, IPv4 and IPv6, some of which share a prefix, with a few ports each.
			f := fiveTuple{port: uint32(random.IntN(6)), client: mappedTo(byte(random.IntN(5)))}
			if random.IntN(2) == 0 {
				f.client = [16]byte{0: 0x20, 7: byte(random.IntN(3)), 15: byte(random.IntN(2))}
			}
			c, s := fast.sessions[f], slow.find(f)
			switch {
			case c == nil != (s < 0):
				t.Fatalf("seed %d, step %d: one has the session, the other has not", seed, now)
			case c == nil:
				leaves, why, ok := fast.room(f.clientKey(), limits)
				slowLeaves, slowWhy, slowOK := slow.room(f, limits)
				var left fiveTuple
				if leaves != nil {
					left = leaves.tuple
				}
				if left != slowLeaves || why != slowWhy || ok != slowOK {
					t.Fatalf("seed %d, step %d: got %v, %v, %v, want %v, %v, %v", seed, now, left, why, ok, slowLeaves, slowWhy, slowOK)
				}
				if ok {
					fast.add(&PacketSession{tuple: f})
					slow.sessions = append(slow.sessions, &slowSession{tuple: f, since: now})
				}
			case random.IntN(4) == 0:
				fast.remove(c)
				fast.remove(c) // again does nothing
				slow.remove(f)
			default:
				from := tier(random.IntN(2))
				fast.promote(c, from)
				if slow.sessions[s].tier == from {
					slow.sessions[s].tier, slow.sessions[s].since = from+1, now
				}
			}
			if len(fast.sessions) != len(slow.sessions) || len(fast.sessions) > limits.total {
				t.Fatalf("seed %d, step %d: %d sessions, want %d, at most %d", seed, now, len(fast.sessions), len(slow.sessions), limits.total)
			}
		}
		for _, c := range fast.sessions {
			fast.remove(c)
		}
		if len(fast.clients) != 0 || oldest(&fast.waiting) != nil {
			t.Errorf("seed %d: something is left: %v", seed, fast)
		}
	}
}

func mappedTo(last byte) [16]byte {
	return [16]byte{10: 0xff, 11: 0xff, 12: 192, 14: 2, 15: last}
}

func TestClientKey(t *testing.T) {
	t.Parallel()
	if a, b := (&fiveTuple{client: mappedTo(1)}).clientKey(), (&fiveTuple{client: mappedTo(2)}).clientKey(); a == b {
		t.Error("two IPv4 addresses are one client")
	}
	one, two, other := fiveTuple{client: [16]byte{0: 0x20, 15: 1}}, fiveTuple{client: [16]byte{0: 0x20, 8: 7}}, fiveTuple{client: [16]byte{0: 0x20, 7: 1}}
	if one.clientKey() != two.clientKey() || one.clientKey() == other.clientKey() {
		t.Error("an IPv6 client is not a /64")
	}
}
