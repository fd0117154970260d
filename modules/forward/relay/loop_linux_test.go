package relay

import (
	"testing"
	"time"
)

func TestALoopSeesThatAnotherOneIsStuck(t *testing.T) {
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
		l.roundBegan.Store(int64(c.own))
		l.peers = []*loop{l}
		for _, at := range c.peers {
			peer := new(loop)
			peer.roundBegan.Store(int64(at))
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
		sharedAt time.Duration
		want     int
	}{
		"in this round": {now, smallQuantum},
		"a moment ago":  {now - sharedFor + 1, smallQuantum},
		"not for long":  {now - sharedFor, largeQuantum},
		"not for hours": {0, largeQuantum},
	} {
		if got := (&loop{now: now, sharedAt: c.sharedAt}).quantum(); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// taking is a session that always has more to move, and takes its time.
type taking struct {
	loopSession
	loop  *loop
	takes time.Duration
	had   int // quanta
}

func (s *taking) serve() {
	s.had++
	s.loop.ready = append(s.loop.ready, s)
	for began := time.Now(); time.Since(began) < s.takes; {
	}
}

func TestOthersWaitNoLongerForManyThatHaveMoreThanForAFew(t *testing.T) {
	const many, takes = 10, readyTime / 5
	for name, c := range map[string]struct {
		waitedAgo time.Duration
		atMost    int // of them in a round; not less than 1
	}{
		"others have something": {0, int(readyTime/takes) + 1},
		"others have nothing":   {sharedFor, many},
	} {
		l := new(loop)
		all := make([]*taking, many)
		for i := range all {
			all[i] = &taking{loop: l, takes: takes}
			l.ready = append(l.ready, all[i])
		}
		had := func() (sum int) {
			for _, s := range all {
				sum += s.had
			}
			return sum
		}
		for round := 0; had() < 3*many; round++ {
			before := had()
			l.now = time.Since(epoch)
			l.sharedAt = l.now - c.waitedAgo
			l.serveReady(len(l.ready))
			if n := had() - before; n < 1 || n > c.atMost || c.waitedAgo > 0 && n < many {
				t.Errorf("%s: %d had a quantum in round %d, want at most %d of %d", name, n, round, c.atMost, many)
			}
			for i, s := range all[1:] {
				if s.had > all[i].had || all[0].had > s.had+1 {
					t.Fatalf("%s: they had %d and %d quanta: not one after the other", name, all[i].had, s.had)
				}
			}
		}
	}
}
