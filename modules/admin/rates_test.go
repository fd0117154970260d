package admin

import (
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// observed is a measurement of some sessions, of which the test says what they move.
type observed struct {
	*rates
	sessions atomic.Pointer[[]living]
	visits   atomic.Int32 // how often a session was looked at
}

func observe(sessions ...living) *observed {
	o := new(observed)
	o.sessions.Store(&sessions)
	o.rates = &rates{each: func(f func(*session.Session)) {
		for _, l := range *o.sessions.Load() {
			o.visits.Add(1)
			f(l.Session)
		}
	}}
	return o
}

// remembers reports whether there are counts of a session's past.
func (o *observed) remembers(l living) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seen[l.Session].past != nil
}

// knows returns how many sessions are remembered.
func (o *observed) knows() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.seen)
}

// rate requires what the API tells of a session: bytes per second up; a negative number where nothing is known.
func (o *observed) rate(t *testing.T, l living, want float64) {
	t.Helper()
	up, down, last, _ := l.Traffic()
	got, gotDown, known := o.of(l.Session, up, down, last)
	if known != (want >= 0) || known && (math.Abs(got-want) > want/50 || math.Abs(gotDown-2*got) > got/100) {
		t.Errorf("%v and %v a second, known: %v, want %v", got, gotDown, known, want)
	}
}

// move has the session move so many bytes a second up, and twice as many down.
func move(l living, perSecond int64, d time.Duration) {
	for range int(d / (100 * time.Millisecond)) {
		time.Sleep(100 * time.Millisecond)
		if perSecond > 0 {
			l.move(perSecond/10, perSecond/5)
		}
	}
}

func TestRates(t *testing.T) {
	t.Parallel()
	scope, _ := newScope(t)
	var all []living
	synctest.Test(t, func(t *testing.T) {
		listener := newListener()
		start := func() living {
			l := living{(&session.Arrival{Network: "tcp", Listener: listener}).Begin(scope), newMover()}
			l.SetMover(l.mover)
			return l
		}
		l, idle := start(), start()
		all = []living{l, idle}
		o := observe(all...)
		move(l, 1000, 5*time.Second)
		o.rate(t, l, 1000) // a young one needs no measurement
		move(l, 1000, time.Minute)
		o.rate(t, l, -1)
		o.rate(t, idle, 0)
		o.look()
		o.rate(t, l, -1) // it has only begun
		move(l, 1000, time.Second)
		o.rate(t, l, 1000)
		move(l, 1000, 20*time.Second)
		o.rate(t, l, 1000)
		move(l, 9000, 5*time.Second)
		if up, _, _ := o.of(l.Session, l.up.Load(), l.down.Load(), l.mover.LastActive()); up < 4500 || up > 5500 {
			t.Errorf("%v a second, after 5 s with 1000 and 5 s with 9000", up)
		}
		move(l, 9000, 6*time.Second)
		o.rate(t, l, 9000)
		move(l, 0, 11*time.Second)
		o.rate(t, l, 0)
		o.look()
		time.Sleep(12 * time.Second)
		if o.remembers(l) {
			t.Error("counts of an idle session are remembered")
		}
		l.move(5000, 10_000) // and comes back
		if up, _, known := o.of(l.Session, l.up.Load(), l.down.Load(), l.mover.LastActive()); !known || up < 499 || up > 556 {
			t.Errorf("%v a second, known: %v, after 5000 bytes", up, known) // in 9 to 10 seconds
		}
		o.rate(t, idle, 0)
		if o.remembers(idle) {
			t.Error("counts of a session that has moved nothing are remembered")
		}
		left := all[:1]
		o.sessions.Store(&left)
		time.Sleep(2 * time.Second)
		if o.knows() != 1 {
			t.Error("a session that has ended is remembered")
		}
		time.Sleep(measureFor) // nobody asks
		synctest.Wait()
		if n := o.knows(); n != 0 {
			t.Errorf("%d sessions are remembered", n)
		}
		before := o.visits.Load()
		time.Sleep(time.Hour)
		if after := o.visits.Load(); after != before {
			t.Errorf("%d looks at sessions while nobody asks", after-before)
		}
		if !o.look() {
			t.Error("the measurement did not begin again")
		}
		time.Sleep(2 * measureFor) // so that it ends in here
	})
	for _, l := range all {
		l.End(session.End{})
	}
}

// A measurement that lasts goes on over many windows without an error that adds up.
func TestRatesOfChanging(t *testing.T) {
	t.Parallel()
	scope, _ := newScope(t)
	var all []living
	synctest.Test(t, func(t *testing.T) {
		l := living{(&session.Arrival{Network: "tcp", Listener: newListener()}).Begin(scope), newMover()}
		l.SetMover(l.mover)
		all = []living{l}
		o := observe(all...)
		for _, perSecond := range []int64{1000, 50, 0, 70_000, 10} {
			o.look()
			move(l, perSecond, 25*time.Second)
			o.rate(t, l, float64(perSecond))
		}
		time.Sleep(2 * measureFor)
	})
	all[0].End(session.End{})
}
