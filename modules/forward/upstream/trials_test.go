package upstream

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// watched is a pool whose upstreams have breakers, and what these have told.
func watched(t testing.TB, terms Terms, weights ...int) (p *Pool, told func() string) {
	t.Helper()
	p = poolOf(t, "round_robin", weights...)
	var mu sync.Mutex
	all := ""
	p.Breakers = NewBreakers(terms, time.Now, func(c BreakerChange) {
		mu.Lock()
		defer mu.Unlock()
		all += fmt.Sprintf("%s %s %v %d/%d;", c.Name, c.Addr, c.State, c.Bad, c.Sessions)
	})
	return p, func() string {
		mu.Lock()
		defer mu.Unlock()
		s := all
		all = ""
		return s
	}
}

// session begins a walk through a pool with breakers.
func (p *Pool) session(retries int) *Walk {
	w := p.Walk()
	w.Retries, w.Trials = retries, p.Breakers.Begin(0)
	return w
}

// open opens the breaker of an upstream.
func (p *Pool) open(t testing.TB, which int) {
	t.Helper()
	for state, _ := p.Breakers.condition(tcp(which)); state != BreakerOpen; state, _ = p.Breakers.condition(tcp(which)) {
		pass, ok := p.Breakers.admit(tcp(which).String(), tcp(which), 0, time.Now())
		if !ok {
			t.Fatal("not admitted")
		}
		p.Breakers.hear(pass, outcome{failed: true, took: time.Hour}, errRefused)
	}
}

// An upstream whose breaker is open is never tried: not as one of several, not when the others can't be reached, and not when it is the only one.
func TestOpenBreakerIsNeverTried(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"round_robin", "least_conn", "random", "random_choose 2", "first", "ip_hash"} {
		p, told := watched(t, afterTwo, 1, 1, 1)
		p.Balance, _ = ParseBalance(method)
		p.Failures = NewFailures(Policy{MaxFails: 1, FailDuration: time.Hour}, time.Now, nil)
		p.open(t, 1)
		if got, want := told(), "10.0.0.1:1 10.0.0.1:1 open 2/2;"; got != want {
			t.Errorf("%s: told %q, want %q", method, got, want)
		}
		tries := func(w *Walk) (tried []int, err error) {
			for {
				addr, err := w.Next(t.Context(), nil)
				if err != nil {
					return tried, err
				}
				w.Trials.Failed(addr, 0, errRefused)
				tried = append(tried, w.Position())
			}
		}
		for range 10 {
			w := p.session(9)
			w.Key, w.Keyed = p.Random(), true
			p.Breakers.terms.MinSessions = 1000 // so that no other one opens
			if tried, _ := tries(w); len(tried) != 2 || slices.Contains(tried, 1) {
				t.Errorf("%s: tried %v", method, tried)
			}
		}
		p.fail(0, 2) // what is left is out
		if tried, _ := tries(p.session(9)); len(tried) != 2 || slices.Contains(tried, 1) {
			t.Errorf("%s: tried %v when all others are out", method, tried)
		}
		p.Breakers.terms.MinSessions = 1
		p.open(t, 0)
		p.open(t, 2)
		if tried, err := tries(p.session(9)); len(tried) > 0 || !errors.Is(err, ErrBreakerOpen) {
			t.Errorf("%s: tried %v, %v when all are open", method, tried, err)
		}
	}
}

// Of many sessions at the same time, exactly as many as half_open says try an upstream whose breaker was open. The others go elsewhere, and it costs them
// none of their tries.
func TestExactlyHalfOpenProbes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, halfOpen := range []int{1, 3, 10} {
			terms := afterTwo
			terms.HalfOpen = halfOpen
			p, told := watched(t, terms, 1, 1)
			p.open(t, 0)
			time.Sleep(terms.Open)
			told()
			walks, tried := make(chan *Walk, 200), make([]int, 2)
			var all, chosen sync.WaitGroup
			chosen.Add(cap(walks))
			for range cap(walks) {
				all.Go(func() {
					w := p.session(0)
					w.Ready() // chooses, and sees that the breaker admits sessions
					chosen.Done()
					chosen.Wait()
					if _, err := w.Next(t.Context(), nil); err != nil {
						t.Error(err)
					}
					walks <- w
				})
			}
			all.Wait()
			close(walks)
			var probes []*Walk
			for w := range walks {
				tried[w.Position()]++
				if w.Position() == 0 {
					probes = append(probes, w)
				}
			}
			if tried[0] != halfOpen || tried[1] != cap(walks)-halfOpen {
				t.Errorf("half_open %d: tried %v", halfOpen, tried)
			}
			for _, w := range probes {
				w.Trials.Connected(w.last, time.Millisecond)
				w.Trials.Answered(time.Millisecond)
				w.Trials.Over()
			}
			if got, want := told(), "10.0.0.0:1 10.0.0.0:1 half_open 0/0;10.0.0.0:1 10.0.0.0:1 closed 0/0;"; got != want {
				t.Errorf("half_open %d: told %q, want %q", halfOpen, got, want)
			}
		}
	})
}

// A probe that says nothing does not keep the breaker half open: its place is free when it was taken back, and when nothing was heard of it for as long as
// the breaker is open.
func TestProbeThatIsNotTried(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(w *Walk){
		"the session ends before it tries":   func(w *Walk) { w.Trials.Over() },
		"another one was faster":             func(w *Walk) { w.Trials.Connected(tcp(9), 0) },
		"the client leaves":                  func(w *Walk) { w.Trials.Connected(w.last, 0); w.Trials.Left(0); w.Trials.Over() },
		"nothing is heard of it":             func(*Walk) { time.Sleep(afterTwo.Open) },
		"it is admitted when all is over":    func(w *Walk) { w.Trials.Over(); w.Trials.admit("a", tcp(0)) },
		"it is reset after another has left": func(w *Walk) { w.Trials.Over(); w.Trials.Reset(0, errRefused) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p, _ := watched(t, afterTwo, 1)
				p.open(t, 0)
				time.Sleep(afterTwo.Open)
				first := p.session(0)
				if _, err := first.Next(t.Context(), nil); err != nil {
					t.Fatal(err)
				}
				if _, err := p.session(0).Next(t.Context(), nil); !errors.Is(err, ErrBreakerOpen) {
					t.Errorf("a second probe: %v", err)
				}
				leave(first)
				second := p.session(0)
				addr, err := second.Next(t.Context(), nil)
				if err != nil {
					t.Fatalf("the next probe: %v", err)
				}
				second.Trials.Connected(addr, 0)
				second.Trials.Answered(0)
				if state, _ := p.Breakers.condition(addr); state != BreakerClosed {
					t.Errorf("it is %v", state)
				}
				first.Trials.Failed(first.last, 0, errRefused) // too late
				if state, _ := p.Breakers.condition(addr); state != BreakerClosed {
					t.Errorf("after a late failure it is %v", state)
				}
			})
		})
	}
}

// One bad probe opens the breaker again, and what began before does not count.
func TestBadProbe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		terms := afterTwo
		terms.HalfOpen = 2
		p, told := watched(t, terms, 1)
		old := p.session(0)
		addr, _ := old.Next(t.Context(), nil)
		p.open(t, 0)
		time.Sleep(terms.Open)
		a, b := p.session(0), p.session(0)
		_, _ = a.Next(t.Context(), nil)
		_, _ = b.Next(t.Context(), nil)
		told()
		old.Trials.Failed(addr, 0, errRefused)
		if got := told(); got != "" {
			t.Errorf("one that is older: %s", got)
		}
		a.Trials.Answered(0)
		b.Trials.Reset(0, errRefused)
		if got, want := told(), "10.0.0.0:1 10.0.0.0:1 open 0/0;"; got != want {
			t.Errorf("told %q, want %q", got, want)
		}
		time.Sleep(terms.Open - 1)
		if _, err := p.session(0).Next(t.Context(), nil); !errors.Is(err, ErrBreakerOpen) {
			t.Errorf("while it is open: %v", err)
		}
	})
}

// What a session says counts once, whatever comes after.
func TestTrialsCountOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		cause Cause
		do    func(w *Trials, addr net.Addr)
		want  cell
	}{
		"refused":                      {CauseErrors, func(w *Trials, a net.Addr) { w.Failed(a, 0, errRefused); w.Failed(a, 0, errRefused) }, cell{1, 1}},
		"refused, for slow":            {CauseSlow, func(w *Trials, a net.Addr) { w.Failed(a, time.Millisecond, errRefused) }, cell{1, 0}},
		"timed out, for slow":          {CauseSlow, func(w *Trials, a net.Addr) { w.Failed(a, time.Minute, errRefused) }, cell{1, 1}},
		"answered, then reset":         {CauseErrors, func(w *Trials, a net.Addr) { w.Connected(a, 0); w.Answered(0); w.Reset(0, errRefused) }, cell{1, 0}},
		"answered late":                {CauseSlow, func(w *Trials, a net.Addr) { w.Connected(a, 0); w.Answered(time.Minute) }, cell{1, 1}},
		"connected late":               {CauseSlow, func(w *Trials, a net.Addr) { w.Connected(a, time.Minute); w.Answered(0) }, cell{1, 1}},
		"reset":                        {CauseFailures, func(w *Trials, a net.Addr) { w.Connected(a, 0); w.Reset(0, errRefused) }, cell{1, 1}},
		"ended in order":               {CauseErrors, func(w *Trials, a net.Addr) { w.Connected(a, 0); w.Ended(0) }, cell{1, 0}},
		"the client left":              {CauseErrors, func(w *Trials, a net.Addr) { w.Connected(a, 0); w.Left(time.Minute) }, cell{}},
		"the client left after a wait": {CauseSlow, func(w *Trials, a net.Addr) { w.Connected(a, 0); w.Left(time.Minute) }, cell{1, 1}},
		"it left before that, late":    {CauseSlow, func(w *Trials, _ net.Addr) { time.Sleep(2 * time.Second); w.Left(0) }, cell{1, 1}},
		"it left before that, soon":    {CauseSlow, func(w *Trials, _ net.Addr) { w.Left(time.Hour) }, cell{}},
		"the client left at once":      {CauseSlow, func(w *Trials, a net.Addr) { w.Connected(a, 0); w.Left(0) }, cell{}},
		"another address":              {CauseErrors, func(w *Trials, _ net.Addr) { w.Failed(tcp(9), 0, errRefused) }, cell{}},
		"two at a time, one fails":     {CauseErrors, twoTrials, cell{1, 1}},
	} {
		synctest.Test(t, func(t *testing.T) {
			terms := afterTwo
			terms.Cause, terms.Slow, terms.MinSessions = c.cause, time.Second, 1000
			p, _ := watched(t, terms, 1)
			w := p.session(0)
			addr, err := w.Next(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			c.do(w.Trials, addr)
			w.Trials.Over()
			if got := p.Breakers.of[keyOf(addr)].window.sum(); got != c.want {
				t.Errorf("%s: counted %+v, want %+v", name, got, c.want)
			}
		})
	}
}

func twoTrials(w *Trials, addr net.Addr) {
	other := tcp(8)
	w.admit("b", other)
	w.Failed(addr, 0, errRefused)
	w.Connected(other, 0)
	w.Answered(0)
	w.Failed(addr, 0, errRefused)
}

func TestPickWithBreakersAllocatesNothing(t *testing.T) {
	p, _ := watched(t, afterTwo, slices.Repeat([]int{1}, 1000)...)
	p.open(t, 5)
	_ = p.pickAny()
	if n := testing.AllocsPerRun(1000, func() { _ = p.choose(&Walk{pool: p}) }); n > 1 { // the walk
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkTrials is what a breaker adds to a session that goes well.
func BenchmarkTrials(b *testing.B) {
	p, _ := watched(b, afterTwo, 1, 1, 1)
	addr := tcp(1)
	b.ReportAllocs()
	for b.Loop() {
		t := p.Breakers.Begin(0)
		t.admit("b", addr)
		t.Connected(addr, 0)
		t.Answered(0)
		t.Over()
	}
}
