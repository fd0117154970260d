package upstream

import (
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// shuns are the upstreams that a view keeps from sessions, because their breakers admit none.
func (p *Pool) shuns() (all []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.viewFor(situation{})
	for i := range p.upstreams {
		if has(v.closed, i) {
			all = append(all, i)
		}
	}
	return all
}

// Sessions see each change of a breaker at once: they choose no upstream that would not admit them, and pass over none that would.
func TestViewsFollowBreakers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		terms := afterTwo
		terms.HalfOpen = 2
		p, _ := watched(t, terms, 1, 1, 1)
		expect := func(what string, want ...int) {
			t.Helper()
			if got := p.shuns(); !slices.Equal(got, want) {
				t.Errorf("%s: no sessions for %v, want %v", what, got, want)
			}
		}
		p.open(t, 1)
		expect("one is open", 1)
		p.open(t, 2)
		expect("two are open", 1, 2)
		time.Sleep(terms.Open)
		expect("probes may try them")
		probe := func(client uint64) *Trials {
			w := p.Breakers.Begin(client)
			if !w.admit("b", tcp(1)) {
				t.Fatal("not admitted")
			}
			return w
		}
		first, second := probe(1), probe(2)
		expect("two probes try one", 1)
		first.Answered(0)
		expect("one of them was good, and no further one is needed", 1)
		second.Answered(0)
		expect("both were good")
		p.open(t, 1)
		expect("it is open again", 1)
	})
}

// While one session tries an upstream again that has failed, others choose it last.
func TestViewsFollowTrials(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := tiered(t, "round_robin", 0, 0)
		p.fail(0)
		time.Sleep(time.Minute)
		if got := p.picks(10); !slices.Equal(got, []int{5, 5}) {
			t.Errorf("when its time is over: %v", got)
		}
		if p.Failures.out(tcp(0), false) {
			t.Fatal("no session may try it")
		}
		if got := p.picks(10); !slices.Equal(got, []int{0, 10}) {
			t.Errorf("while a session tries it: %v", got)
		}
	})
}

// Of addresses that a session tries at the same time, those that it does not use say nothing: others may probe them.
func TestTrialsBesideTheWinner(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, _ := watched(t, afterTwo, 1, 1)
		p.open(t, 0)
		p.open(t, 1)
		time.Sleep(afterTwo.Open)
		w, a, b := p.Breakers.Begin(1), tcp(0), tcp(1)
		if !w.admit("a", a) || !w.admit("b", b) {
			t.Fatal("not admitted")
		}
		if p.Breakers.Begin(2).admit("b", b) {
			t.Error("two probes at a time")
		}
		w.Connected(a, 0)
		if !p.Breakers.Begin(2).admit("b", b) {
			t.Error("the session uses another upstream, and nobody may probe this one")
		}
	})
}

// A client that leaves has waited for the address that was still being connected, not for the one that has refused.
func TestLeavingAfterAnotherHasFailed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		terms := afterTwo
		terms.Cause, terms.Slow = CauseSlow, time.Second
		p, _ := watched(t, terms, 1, 1)
		w, a, b := p.Breakers.Begin(1), tcp(0), tcp(1)
		if !w.admit("a", a) || !w.admit("b", b) {
			t.Fatal("not admitted")
		}
		w.Failed(a, 0, errRefused)
		time.Sleep(2 * terms.Slow)
		w.Left(0)
		w.Over()
		for addr, want := range map[net.Addr]cell{a: {1, 0}, b: {1, 1}} {
			if got := p.Breakers.of[keyOf(addr)].window.sum(); got != want {
				t.Errorf("%v: counted %+v, want %+v", addr, got, want)
			}
		}
	})
}

// What was counted within the window is not forgotten, whatever comes to other addresses.
func TestBreakersKeepWhatCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := NewBreakers(afterTwo, time.Now, nil)
		admit := func(n int) pass {
			p, _ := s.admit("", tcp(n), 0, time.Now())
			return p
		}
		admit(0)
		time.Sleep(afterTwo.Window / 2)
		s.hear(admit(1), outcome{failed: true}, errRefused)
		time.Sleep(afterTwo.Window / 2)
		admit(2) // looks for what is of no use any more
		s.hear(admit(1), outcome{failed: true}, errRefused)
		if state, _ := s.condition(tcp(1)); state != BreakerOpen {
			t.Errorf("after two failures within the window it is %v", state)
		}
	})
}
