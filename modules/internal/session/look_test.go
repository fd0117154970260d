package session

import (
	"math"
	"testing"
	"time"
)

// The time until there was an upstream is never the one that means that there is none, and ends at the longest that there is room for.
func TestMicroseconds(t *testing.T) {
	t.Parallel()
	if got := sinceInMicroseconds(time.Now().Add(time.Minute)); got != 1 { // a clock that went back
		t.Errorf("%v", got)
	}
	if got := sinceInMicroseconds(time.Now().Add(-100 * time.Hour)); got != math.MaxUint32 {
		t.Errorf("%v", got)
	}
	if got := sinceInMicroseconds(time.Now().Add(-time.Hour)).duration(); got < time.Hour || got > 71*time.Minute {
		t.Errorf("%v", got)
	}
}

func TestLiving(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	s := begin(t, sc)
	if got := Living(s.ID); got != s {
		t.Errorf("%v", got)
	}
	s.End(End{})
	if got := Living(s.ID); got != nil {
		t.Errorf("a session that has ended: %v", got)
	}
	if _, _, _, living := s.Traffic(); living {
		t.Error("a session that has ended moves bytes")
	}
}
