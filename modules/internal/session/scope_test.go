package session

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
)

func TestDrain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		drained, _, _ := newScope(t, 0, 5*time.Second)
		later, _, _ := newScope(t, 0, time.Minute)
		unbounded, _, _ := newScope(t, 0, 0)
		running, _, _ := newScope(t, 0, time.Second)
		movers := make(map[*Scope][]*mover)
		for _, sc := range []*Scope{drained, later, unbounded, running} {
			for range 3 {
				m := newMover()
				begin(t, sc).SetMover(m)
				movers[sc] = append(movers[sc], m)
			}
		}
		mustBeClosed := func(sc *Scope, want string) {
			t.Helper()
			synctest.Wait()
			for _, m := range movers[sc] {
				if got := m.closedWith(); got != want {
					t.Errorf("closed with %q, want %q", got, want)
				}
			}
		}
		drained.Replaced()
		later.Replaced()
		unbounded.Replaced()
		mustBeClosed(drained, "")
		time.Sleep(5*time.Second - 1)
		mustBeClosed(drained, "")
		time.Sleep(1 * time.Nanosecond)
		mustBeClosed(drained, ReasonDrain)
		mustBeClosed(later, "")
		time.Sleep(time.Hour)
		mustBeClosed(later, ReasonDrain)
		mustBeClosed(unbounded, "")
		mustBeClosed(running, "")
	})
}

// A connection may wait for a matcher longer than the sessions of its config may.
func TestDrainSessionsThatBeginLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sc, _, _ := newScope(t, 0, time.Second)
		without := begin(t, sc) // its handler is slow to begin
		sc.Replaced()

		before, m := begin(t, sc), newMover()
		before.SetMover(m)
		if got := m.closedWith(); got != "" {
			t.Errorf("closed with %q before drain_timeout", got)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := m.closedWith(); got != ReasonDrain {
			t.Errorf("closed with %q", got)
		}
		for name, s := range map[string]*Session{"a mover": without, "a session": begin(t, sc)} {
			m := newMover()
			s.SetMover(m)
			if got := m.closedWith(); got != ReasonDrain {
				t.Errorf("%s that came late: closed with %q", name, got)
			}
		}
	})
}

// However a session's begin and the drain meet, it is closed.
func TestDrainWhileSessionsBegin(t *testing.T) {
	t.Parallel()
	for range 50 {
		sc, _, _ := newScope(t, 0, time.Nanosecond)
		sc.Replaced()
		m := newMover()
		beginOn(t, sc, "drain:1").SetMover(m)
		select {
		case <-m.closed:
		case <-time.After(10 * time.Second):
			t.Fatal("not closed")
		}
	}
}

// drain_timeout is for configs that are replaced. Where the process stops, grace_period counts. No other
// test runs meanwhile, since this one is not parallel.
func TestNoDrainWhereTheProcessStops(t *testing.T) {
	stop(t)
	synctest.Test(t, func(t *testing.T) {
		sc, _, _ := newScope(t, time.Minute, time.Second)
		m := newMover()
		begin(t, sc).SetMover(m)
		sc.Replaced()
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := m.closedWith(); got != "" {
			t.Errorf("closed with %q", got)
		}
	})
}

// stop stops Caddy for the rest of the test.
func stop(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if err := caddy.Load([]byte(quiet), true); err != nil {
			t.Error(err)
		}
	})
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestNewScopeFailsWhereAMetricIsTaken(t *testing.T) {
	t.Parallel()
	ctx, unload := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer unload()
	ctx.GetMetricsRegistry().MustRegister(prometheus.NewCounter(prometheus.CounterOpts{
		Name: "caddy_portgate_bytes_total", Help: "Somebody else's.",
	}))
	if sc, err := NewScope(ctx, 0, 0); err == nil || sc != nil {
		t.Errorf("got %v, %v", sc, err)
	}
}
