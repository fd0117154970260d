package relay

import (
	"testing"
	"time"
)

func TestALoopSeesThatAnotherOneIsKeptFromItsTurn(t *testing.T) {
	const now = time.Minute
	for name, c := range map[string]struct {
		own   time.Duration
		peers []time.Duration
		want  bool
	}{
		"alone":                     {now, nil, false},
		"itself has waited":         {now - time.Second, nil, false},
		"another one is parked":     {now, []time.Duration{0}, false},
		"another one gets on":       {now, []time.Duration{now - starvedAfter}, false},
		"another one began later":   {now, []time.Duration{now + time.Millisecond}, false},
		"another one has waited":    {now, []time.Duration{now - starvedAfter - 1}, true},
		"one of several has waited": {now, []time.Duration{0, now, now - time.Second}, true},
	} {
		l := &loop{now: now}
		l.turnsAt.Store(int64(c.own))
		l.peers = []*loop{l}
		for _, at := range c.peers {
			peer := new(loop)
			peer.turnsAt.Store(int64(at))
			l.peers = append(l.peers, peer)
		}
		if got := l.peerStarves(); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestASessionMovesLessWhereOthersHaveSomething(t *testing.T) {
	const now = time.Minute
	for name, c := range map[string]struct {
		waitedAt time.Duration
		want     int
	}{
		"in this turn":  {now, smallQuantum},
		"a moment ago":  {now - sharedFor + 1, smallQuantum},
		"not for long":  {now - sharedFor, largeQuantum},
		"not for hours": {0, largeQuantum},
	} {
		if got := (&loop{now: now, waitedAt: c.waitedAt}).quantum(); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
