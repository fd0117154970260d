package session

import (
	"errors"
	"net"
	"regexp"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/state"
)

func TestBeginIsOncePerConnection(t *testing.T) {
	t.Parallel()
	first, logs, _ := newScope(t, 0, 0)
	second, otherLogs, _ := newScope(t, 0, 0)
	label := newLabel()
	cx := wrap(gateConn{conn{nil, tcpAddr("127.0.0.1:80"), tcpAddr("192.0.2.1:1234")}, label})
	s := Begin(cx, first)
	if again := Begin(cx, second); again != s {
		t.Error("another handler got another session")
	}
	if wrapped := Begin(cx.Wrap(struct{ net.Conn }{cx}), second); wrapped != s {
		t.Error("behind a wrapper there was another session")
	}
	registry := newRegistry(t)
	labels := map[string]string{"listener": label}
	if n, _ := value(t, registry, "caddy_portgate_sessions_active", labels); n != 1 || !isLiving(s) {
		t.Errorf("%v active, living: %v", n, isLiving(s))
	}
	s.End(End{Status: StatusDone})
	if n, _ := value(t, registry, "caddy_portgate_sessions_active", labels); n != 0 || isLiving(s) {
		t.Errorf("after the end: %v active, living: %v", n, isLiving(s))
	}
	if logs.Len() != 1 || otherLogs.Len() != 0 {
		t.Errorf("%d and %d entries: a session belongs to the handler that began it", logs.Len(), otherLogs.Len())
	}
	if other := Begin(wrap(cx.Conn), first); other == s {
		t.Error("another connection got the same session")
	} else {
		other.End(End{})
	}
}

func TestEndIsOnce(t *testing.T) {
	t.Parallel()
	sc, logs, _ := newScope(t, 0, 0)
	s, m, registry := begin(t, sc), newMover(), newRegistry(t)
	s.SetMover(m)
	s.SetUpstream("a:1", nil, nil)
	m.up.Store(10)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { s.End(End{Status: StatusDone, Connected: true}) })
	}
	wg.Wait()
	labels := map[string]string{"listener": s.Listener}
	for name, want := range map[string]float64{
		"sessions_total": 1, "sessions_active": 0, "bytes_total": 10, "session_duration_seconds": 1,
	} {
		if got, _ := value(t, registry, "caddy_portgate_"+name, labels); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if logs.Len() != 1 || isLiving(s) {
		t.Errorf("%d entries, living: %v", logs.Len(), isLiving(s))
	}
}

// What comes late changes nothing any more.
func TestNothingChangesAfterTheEnd(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	s, m, registry := begin(t, sc), newMover(), newRegistry(t)
	s.SetMover(m)
	s.SetUpstream("before:1", tcpAddr("10.0.0.1:1"), nil)
	m.up.Store(5)
	s.End(End{})
	m.up.Store(50)
	s.SetUpstream("after:1", tcpAddr("10.0.0.2:1"), nil)
	s.SetMover(newMover())
	s.Close(ReasonDrain)
	s.count() // a scrape that found it before
	if got, samples := value(t, registry, "caddy_portgate_bytes_total", map[string]string{"listener": s.Listener}); got != 5 || samples != 2 {
		t.Errorf("%v bytes in %d samples", got, samples)
	}
	if s.upstreamAddr() != "10.0.0.1:1" {
		t.Errorf("upstream is %s", s.upstreamAddr())
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	s, m := begin(t, sc), newMover()
	s.SetMover(m)
	if got := m.closedWith(); got != "" {
		t.Errorf("closed with %q", got)
	}
	s.Close("one")
	s.Close("two")
	if one, two, three := m.closedWith(), m.closedWith(), m.closedWith(); one != "one" || two != "two" || three != "" {
		t.Errorf("closed with %q, %q, %q", one, two, three)
	}
}

// Who asks while the handler is still about to begin is not forgotten.
func TestCloseBeforeThereIsAMover(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	s, m := begin(t, sc), newMover()
	s.Close("first")
	s.Close("second")
	s.SetMover(m)
	if first, second := m.closedWith(), m.closedWith(); first != "first" || second != "" {
		t.Errorf("closed with %q and %q", first, second)
	}
}

// However a Close and a SetMover meet, the mover is closed.
func TestCloseWhileThereComesAMover(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	for range 1000 {
		s, m := beginOn(t, sc, "close:1"), newMover()
		var wg sync.WaitGroup
		wg.Go(func() { s.Close("now") })
		wg.Go(func() { s.SetMover(m) })
		wg.Wait()
		if got := m.closedWith(); got != "now" {
			t.Fatalf("closed with %q", got)
		}
	}
}

// A Close may come while the entry of a session that has ended is written. The race detector watches.
func TestCloseWhileASessionEnds(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	for range 100 {
		s := beginOn(t, sc, "close:2")
		var wg sync.WaitGroup
		wg.Go(func() { s.End(End{Status: StatusLimited, Reason: ReasonLimited}) })
		wg.Go(func() { s.Close(ReasonDrain) })
		wg.Wait()
		s.mu.Lock()
		before := s.troubles
		s.mu.Unlock()
		s.Close(ReasonShutdown)
		if s.troubles != before {
			t.Fatal("a session that has ended is changed")
		}
	}
}

func TestLastActive(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	s, m := begin(t, sc), newMover()
	if !s.LastActive().Equal(s.Begun()) {
		t.Error("before there is a mover, a session is active since its start")
	}
	then := time.Unix(1, 0)
	m.active.Store(&then)
	s.SetMover(m)
	if !s.LastActive().Equal(then) {
		t.Errorf("got %v", s.LastActive())
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	var mu sync.Mutex
	seen := make(map[string]bool)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				s := Begin(wrap(conn{nil, tcpAddr("127.0.0.1:1"), tcpAddr("127.0.0.1:2")}), sc)
				s.End(End{})
				mu.Lock()
				seen[s.ID.String()] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != 800 {
		t.Errorf("%d different IDs of 800 sessions", len(seen))
	}
	for id := range seen {
		if !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(id) {
			t.Errorf("%q is not 16 hexadecimal digits", id)
		}
	}
	if got := ID(0xab).String(); got != "00000000000000ab" {
		t.Errorf("got %s", got)
	}
}

var errDial = errors.New("dial tcp 127.0.0.1:1: connect: connection refused")

// acceptedConn knows when it was accepted, as those of gate networks do.
type acceptedConn struct {
	gateConn
	at time.Time
}

func (c acceptedConn) AcceptedAt() time.Time { return c.at }

// What a connection waits before its session begins is a part of its duration: from its accept where the listener tells, else from
// when a handler first had it wait. Before it begins, nothing is idle.
func TestDurationCountsWhatWasBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sc, logs, _ := newScope(t, 0, 0)
		plain := gateConn{conn{nil, tcpAddr("127.0.0.1:80"), tcpAddr("192.0.2.1:1234")}, newLabel()}
		told, untold := wrap(acceptedConn{plain, time.Now()}), wrap(plain)
		direct := &Arrival{Conn: plain, Listener: plain.listener}
		time.Sleep(time.Second)
		for range 2 { // handlers, one after another
			ArrivalOf(told).Waits()
			ArrivalOf(untold).Waits()
			time.Sleep(time.Second)
		}
		direct.Waits()
		time.Sleep(time.Second)
		atOnce := &Arrival{Conn: plain, Listener: plain.listener}
		for i, a := range []*Arrival{ArrivalOf(told), ArrivalOf(untold), direct, atOnce} {
			s := a.Begin(sc)
			if !s.LastActive().Equal(time.Now()) || !s.Begun().Equal(time.Now()) {
				t.Errorf("%d: last active at %v, begun at %v", i, s.LastActive(), s.Begun())
			}
			time.Sleep(time.Second)
			s.End(End{Status: StatusDone})
			want := []time.Duration{5 * time.Second, 5 * time.Second, 4 * time.Second, time.Second}[i]
			if got := logs.All()[i].ContextMap()["duration"]; got != want {
				t.Errorf("%d: %v, want %v", i, got, want)
			}
		}
	})
}

// A place that is reserved is the session's until it ends or has another one, and there are no more than there may be.
func TestReserve(t *testing.T) {
	t.Parallel()
	var all state.Tallies[string]
	a, b := all.Hold("a"), all.Hold("b")
	sc, _, _ := newScope(t, 0, 0)
	one, two := begin(t, sc), begin(t, sc)
	for range 2 {
		if !one.Reserve(a, 1) {
			t.Fatal("the only session has no place")
		}
	}
	if two.Reserve(a, 1) || !two.Reserve(a, 2) {
		t.Fatal("wrong")
	}
	one.SetUpstream("a", nil, a)
	if n := a.Living().Load(); n != 2 {
		t.Errorf("%d live", n)
	}
	if !one.Reserve(b, 1) || two.Reserve(b, 1) {
		t.Error("wrong")
	}
	two.Uncount()
	if a, b := a.Living().Load(), b.Living().Load(); a != 0 || b != 1 {
		t.Errorf("%d and %d live", a, b)
	}
	one.End(End{})
	two.End(End{})
	if one.Reserve(a, 1) || a.Living().Load() != 0 || b.Living().Load() != 0 {
		t.Error("a session that has ended is counted")
	}
}
