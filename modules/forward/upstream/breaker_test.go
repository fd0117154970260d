package upstream

import (
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// judge is a breaker that keeps everything that it has heard, and looks at all of it each time.
type judge struct {
	terms  Terms
	start  time.Time
	state  BreakerState
	since  time.Time
	round  int // of states
	heard  []hearing
	probes map[int]time.Time // by session
	good   int
}

type hearing struct {
	at  time.Time
	bad bool
}

func (j *judge) become(state BreakerState, now time.Time) {
	j.state, j.since, j.heard, j.probes, j.good = state, now, nil, make(map[int]time.Time), 0
	j.round++
}

// admit returns the round in which a session is admitted, and 0 where it is not.
func (j *judge) admit(session int, now time.Time) int {
	if j.state == BreakerOpen && now.Sub(j.since) >= j.terms.Open {
		j.become(BreakerHalfOpen, now)
	}
	switch j.state {
	case BreakerOpen:
		return 0
	case BreakerHalfOpen:
		for s, at := range j.probes {
			if now.Sub(at) >= j.terms.Open {
				delete(j.probes, s)
			}
		}
		if len(j.probes)+j.good >= j.terms.HalfOpen {
			return 0
		}
		j.probes[session] = now
	}
	return j.round
}

func (j *judge) step(at time.Time) int64 { return int64(at.Sub(j.start) / (j.terms.Window / 10)) }

func (j *judge) hear(session, round int, failed bool, took time.Duration, now time.Time) {
	if round != j.round {
		return
	}
	slow := j.terms.Cause == CauseSlow
	bad := !slow && failed || slow && took > j.terms.Slow
	if j.state == BreakerHalfOpen {
		if _, waited := j.probes[session]; !waited {
			return
		}
		delete(j.probes, session)
		if bad || failed {
			j.become(BreakerOpen, now)
		} else if j.good++; j.good == j.terms.HalfOpen {
			j.become(BreakerClosed, now)
		}
		return
	}
	j.heard = append(j.heard, hearing{now, bad})
	sessions, bads := 0, 0
	for _, h := range j.heard {
		if j.step(h.at) > j.step(now)-10 {
			sessions++
			if h.bad {
				bads++
			}
		}
	}
	over := bads > j.terms.Count
	if j.terms.Cause != CauseFailures {
		ratio := float64(bads) / float64(sessions)
		over = ratio > j.terms.Ratio || ratio == 1 && j.terms.Ratio == 1
	}
	if bad && over && sessions >= j.terms.MinSessions {
		j.become(BreakerOpen, now)
	}
}

func (j *judge) release(session, round int) {
	if round == j.round {
		delete(j.probes, session)
	}
}

func randomTerms(random *rand.Rand) Terms {
	return Terms{
		Cause: Cause(random.IntN(3)), Ratio: []float64{0, 0.2, 0.25, 0.29, 0.5, 0.6, 1}[random.IntN(7)], Count: random.IntN(5),
		Slow: 100 * time.Millisecond, Window: time.Duration(1+random.IntN(10)) * time.Second,
		MinSessions: 1 + random.IntN(6), Open: time.Duration(1+random.IntN(9)) * time.Second, HalfOpen: 1 + random.IntN(4),
	}
}

// Random histories of sessions that begin, are heard of or give up, at any pace.
func TestBreakerAgainstOracle(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 14))
	seen := make(map[BreakerState]int)
	for history := range 3000 {
		terms, now := randomTerms(random), time.Unix(1, 0)
		s := NewBreakers(terms, func() time.Time { return now }, nil)
		j := &judge{terms: terms, start: now, probes: make(map[int]time.Time), round: 1}
		type running struct {
			pass
			session, round int
		}
		var under []running
		badness, pace := random.Float64(), time.Duration(1+random.IntN(1000))*time.Millisecond
		for session := range 200 {
			now = now.Add(time.Duration(random.Int64N(int64(pace))))
			if random.IntN(50) == 0 {
				now = now.Add(terms.Open)
			}
			p, ok := s.admit("a", tcp(1), 0, now)
			round := j.admit(session, now)
			if ok != (round > 0) {
				t.Fatalf("history %d, %+v: session %d admitted=%t, want %t", history, terms, session, ok, round > 0)
			}
			if ok {
				under = append(under, running{p, session, round})
			}
			for len(under) > 0 && random.IntN(3) > 0 {
				i := random.IntN(len(under))
				u := under[i]
				under = slices.Delete(under, i, i+1)
				if random.IntN(8) == 0 {
					s.release(u.pass)
					j.release(u.session, u.round)
					continue
				}
				failed, took := random.Float64() < badness, time.Duration(random.Int64N(int64(150*time.Millisecond)))
				s.hear(u.pass, outcome{failed, took}, errRefused)
				j.hear(u.session, u.round, failed, took, now)
			}
			state, _ := s.condition(tcp(1))
			if state != j.state {
				t.Fatalf("history %d, %+v: after session %d it is %v, want %v", history, terms, session, state, j.state)
			}
			if s.quiet() != (state == BreakerClosed) {
				t.Fatalf("quiet=%t while it is %v", s.quiet(), state)
			}
			seen[state]++
		}
	}
	for _, state := range []BreakerState{BreakerClosed, BreakerOpen, BreakerHalfOpen} {
		if seen[state] < 10_000 {
			t.Errorf("%v was seen %d times only", state, seen[state])
		}
	}
}

// The thresholds are those of Sentinel: above, and for the ratio 1 at it.
func TestBreakerThresholds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		terms         Terms
		sessions, bad uint32
		open          bool
	}{
		{Terms{Cause: CauseErrors, Ratio: 0.5, MinSessions: 10}, 10, 5, false},
		{Terms{Cause: CauseErrors, Ratio: 0.5, MinSessions: 10}, 10, 6, true},
		{Terms{Cause: CauseErrors, Ratio: 0.5, MinSessions: 10}, 9, 9, false},
		{Terms{Cause: CauseErrors, Ratio: 0, MinSessions: 10}, 100, 1, true},
		{Terms{Cause: CauseErrors, Ratio: 0.29, MinSessions: 10}, 100, 29, false},
		{Terms{Cause: CauseSlow, Ratio: 0.57, MinSessions: 10}, 100, 57, false},
		{Terms{Cause: CauseSlow, Ratio: 0.57, MinSessions: 10}, 100, 58, true},
		{Terms{Cause: CauseErrors, Ratio: 1, MinSessions: 10}, 10, 10, true},
		{Terms{Cause: CauseSlow, Ratio: 1, MinSessions: 10}, 10, 9, false},
		{Terms{Cause: CauseSlow, Ratio: 1, MinSessions: 10}, 10, 10, true},
		{Terms{Cause: CauseFailures, Count: 5, MinSessions: 1}, 100, 5, false},
		{Terms{Cause: CauseFailures, Count: 5, MinSessions: 1}, 100, 6, true},
		{Terms{Cause: CauseFailures, Count: 0, MinSessions: 20}, 19, 19, false},
	} {
		if got := c.terms.exceeded(cell{c.sessions, c.bad}); got != c.open {
			t.Errorf("%+v: %d of %d: %t", c.terms, c.bad, c.sessions, got)
		}
	}
}

var afterTwo = Terms{
	Cause: CauseErrors, Ratio: 0.5, Window: 10 * time.Second, MinSessions: 2, Open: 30 * time.Second, HalfOpen: 1,
}

// The addresses that are watched are bounded, and those of which nothing is heard any more are forgotten. What still holds a pass then changes nothing.
func TestBreakersAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := NewBreakers(afterTwo, time.Now, nil)
		old, _ := s.admit("", tcp(0), 0, time.Now())
		for i := range maxBreakers + 10 {
			if _, ok := s.admit("", tcp(i), 0, time.Now()); !ok {
				t.Fatal("not admitted")
			}
		}
		if len(s.of) != maxBreakers {
			t.Errorf("%d are watched", len(s.of))
		}
		for range 2 {
			pass, _ := s.admit("", tcp(1), 0, time.Now())
			s.hear(pass, outcome{failed: true}, errRefused)
		}
		time.Sleep(time.Hour)
		_, _ = s.admit("", &net.UDPAddr{}, 0, time.Now())
		if len(s.of) != 1 || !s.quiet() {
			t.Errorf("%d are watched, quiet=%t", len(s.of), s.quiet())
		}
		for range 3 {
			s.hear(old, outcome{failed: true}, errRefused)
		}
		if !s.quiet() {
			t.Error("a breaker that was forgotten is open")
		}
	})
}

// A client whose probes say nothing keeps an upstream from no others: after the first one, it is their turn. Where it is the only client, as a load
// balancer is, it goes on.
func TestSilentProbes(t *testing.T) {
	t.Parallel()
	const one, other = 1, 2
	terms := Terms{Cause: CauseFailures, Window: time.Second, MinSessions: 1, Open: time.Second, HalfOpen: 1}
	begin := func(clients ...uint64) (s *Breakers, admit func(client uint64) (pass, bool)) {
		s = NewBreakers(terms, time.Now, nil)
		admit = func(client uint64) (pass, bool) { return s.admit("a", tcp(1), client, time.Now()) }
		for _, client := range clients {
			p, _ := admit(client)
			s.hear(p, outcome{}, nil)
		}
		p, _ := admit(clients[0])
		s.hear(p, outcome{failed: true}, errRefused)
		time.Sleep(terms.Open)
		return s, admit
	}
	wants := func(t *testing.T, admit func(client uint64) (pass, bool), client uint64, want bool) pass {
		t.Helper()
		p, ok := admit(client)
		if ok != want {
			t.Errorf("client %d admitted %t, want %t", client, ok, want)
		}
		return p
	}
	for name, test := range map[string]func(t *testing.T){
		"it never says anything": func(t *testing.T) {
			s, admit := begin(one, other)
			wants(t, admit, one, true)
			wants(t, admit, other, false)
			time.Sleep(terms.Open)
			wants(t, admit, one, false)
			p := wants(t, admit, other, true)
			s.hear(p, outcome{}, nil)
			wants(t, admit, one, true) // the breaker is closed
		},
		"it leaves in time": func(t *testing.T) {
			s, admit := begin(one, other)
			for range 3 {
				p := wants(t, admit, one, true)
				time.Sleep(terms.Open / 2)
				s.release(p)
				for range 2 * silentFor {
					wants(t, admit, one, false)
					p := wants(t, admit, other, true)
					s.release(p)
					time.Sleep(terms.Open / 4)
				}
			}
		},
		"it leaves at once": func(t *testing.T) {
			s, admit := begin(one, other)
			for range 3 {
				s.release(wants(t, admit, one, true))
			}
		},
		"there is no other": func(t *testing.T) {
			s, admit := begin(one, one)
			for range 3 {
				wants(t, admit, one, true)
				wants(t, admit, one, false)
				time.Sleep(terms.Open)
			}
			s.release(wants(t, admit, one, true))
			wants(t, admit, one, true)
		},
		"nobody is known": func(t *testing.T) {
			_, admit := begin(0, 0)
			for range 3 {
				wants(t, admit, 0, true)
				time.Sleep(terms.Open)
			}
		},
		"there are many": func(t *testing.T) {
			_, admit := begin(one, other)
			for client := range uint64(3 * maxSilent) {
				wants(t, admit, 10+client, true)
				time.Sleep(terms.Open)
			}
			s := admit
			p, _ := s(one)
			if n := len(p.of.silent); n > maxSilent {
				t.Errorf("%d clients are remembered", n)
			}
		},
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); synctest.Test(t, test) })
	}
}
