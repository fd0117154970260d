package upstream

import (
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// The share is of the upstreams that may get sessions, in whole ones, rounded down.
func TestMaxEjected(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		share    float64
		of, want int
	}{
		{0.5, 1, 0},
		{0.5, 2, 1},
		{0.5, 3, 1},
		{0.5, 4, 2},
		{0.29, 100, 29},
		{0.3, 10, 3},
		{0.1, 9, 0},
		{0.01, 100, 1},
		{0.99, 100, 99},
		{1, 4, 4},
		{0, 4, 4},
	} {
		p := poolOf(t, "round_robin", slices.Repeat([]int{1}, c.of)...)
		if p.MaxEjected = c.share; p.maxEjected() != c.want {
			t.Errorf("%v of %d: %d, want %d", c.share, c.of, p.maxEjected(), c.want)
		}
	}
}

// gets are the upstreams that get sessions at their first try.
func (p *Pool) gets(t *testing.T) (gets []int) {
	t.Helper()
	for range 40 * len(p.upstreams) {
		w := p.session(0)
		if _, err := w.Next(t.Context(), nil); err != nil {
			continue
		}
		w.Trials.Over()
		if !slices.Contains(gets, w.Position()) {
			gets = append(gets, w.Position())
		}
	}
	slices.Sort(gets)
	return gets
}

// Whatever fails, in whatever order: no more than max_ejected of the upstreams get no sessions because of failures, one at least gets some, and those
// that have failed first are ejected.
func TestEjectionKeepsToItsShare(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(3, 14))
		spared, ejected := 0, 0
		for range 300 {
			n := 1 + random.IntN(7)
			p := tiered(t, "round_robin", slices.Repeat([]int{0}, n)...)
			p.MaxEjected = float64(1+random.IntN(100)) / 100
			p.Breakers = NewBreakers(afterTwo, time.Now, nil)
			open := -1
			if random.IntN(3) == 0 {
				open = random.IntN(n)
				p.open(t, open)
			}
			var failed []int
			for _, i := range random.Perm(n)[:random.IntN(n+1)] {
				p.fail(i)
				failed = append(failed, i)
				time.Sleep(time.Millisecond)
			}
			gets := p.gets(t)
			var healthy, failing []int // in the order of failures
			for i := range n {
				if i != open && !slices.Contains(failed, i) {
					healthy = append(healthy, i)
				}
			}
			for _, i := range failed {
				if i != open {
					failing = append(failing, i)
				}
			}
			out := 0
			for _, i := range failing {
				if !slices.Contains(gets, i) {
					out++
				}
			}
			most := int(p.MaxEjected*float64(n) + 1e-9)
			switch {
			case n == 1 && open == 0:
				if len(gets) > 0 {
					t.Fatalf("its breaker is open, and it gets sessions")
				}
				continue
			case len(gets) == 0 || out > most:
				t.Fatalf("%v of %d: failing %v, open %d: sessions go to %v", p.MaxEjected, n, failing, open, gets)
			case len(healthy) == 0 && out > 0:
				t.Fatalf("nothing works, and %d of %v get no sessions", out, failing)
			case len(healthy) > 0 && !slices.Equal(gets, sorted(healthy, failing[min(most, len(failing)):])):
				t.Fatalf("%v of %d: failing %v, open %d: sessions go to %v", p.MaxEjected, n, failing, open, gets)
			}
			ejected += out
			spared += len(failing) - out
		}
		if spared < 50 || ejected < 50 {
			t.Errorf("%d spared, %d ejected: the histories show little", spared, ejected)
		}
	})
}

func sorted(all ...[]int) []int {
	s := slices.Concat(all...)
	slices.Sort(s)
	return s
}

// An upstream stays ejected when the session that tries it again fails, though others have failed after it.
func TestEjectedStaysEjected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := tiered(t, "round_robin", 0, 0, 0, 0)
		p.MaxEjected = 0.25
		p.fail(1)
		time.Sleep(time.Second)
		p.fail(2)
		if got := p.gets(t); !slices.Equal(got, []int{0, 2, 3}) {
			t.Errorf("sessions go to %v", got)
		}
		time.Sleep(time.Minute)
		p.Failures.out(tcp(1), false)
		p.fail(1)
		if got := p.gets(t); !slices.Equal(got, []int{0, 2, 3}) {
			t.Errorf("after another failure sessions go to %v", got)
		}
		p.Failures.Works(tcp(1))
		p.fail(2)
		if got := p.gets(t); !slices.Equal(got, []int{0, 1, 3}) {
			t.Errorf("when it is back sessions go to %v", got)
		}
	})
}
