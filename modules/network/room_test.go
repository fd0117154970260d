package network

import (
	"testing"
)

// A session that lacks what all share takes the place of the oldest one that is worth less, never of an established one.
func TestMakeRoom(t *testing.T) { // not parallel: sessions of others make room, too
	s := newTestSocket(sessionLimits{total: 6, perClient: 100})
	s.flood(0, 6)
	open := s.taken()
	s.answered(open[0])
	s.answered(open[1])
	s.flood(1, 1) // speaks after a reply
	s.flood(6, 1) // waits for a place, in place of the oldest that has had no reply
	ended := func() (ports []uint32) {
		for _, c := range open {
			if c.ended.Load() {
				ports = append(ports, c.tuple.port)
			}
		}
		return ports
	}
	for i, want := range [][]uint32{{2, 3}, {2, 3, 4}, {0, 2, 3, 4}, {0, 2, 3, 4}} {
		open[5].MakeRoom()
		got := ended()
		if len(got) != len(want) {
			t.Fatalf("%d: %v have ended, want %v", i, got, want)
		}
		for k := range want {
			if got[k] != want[k] {
				t.Fatalf("%d: %v have ended, want %v", i, got, want)
			}
		}
	}
	if n := s.settings.Load().counts.Evicted.Load(); n != 4 {
		t.Errorf("%d were counted as evicted", n)
	}
}
