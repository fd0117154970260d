package session

import (
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// stopping is a process that is told to stop while it has sessions.
type stopping struct {
	registry
	start time.Time
}

func newStopping() *stopping {
	return &stopping{start: time.Now()}
}

// relayed is a session in a stopping process.
type relayed struct {
	session  *Session
	stopping *stopping
	busy     time.Duration // until then, since the stop
	stubborn bool          // does not end when it is closed
	once     sync.Once
	closedAt time.Duration
	reason   string
}

// add adds a session that is busy until then: long before the stop, where that is negative.
func (st *stopping) add(grace, busy time.Duration) *relayed {
	r := &relayed{stopping: st, busy: busy}
	r.session = &Session{scope: &Scope{GracePeriod: grace}, Start: time.Now(), mover: r}
	st.registry.add(r.session)
	return r
}

func (r *relayed) LastActive() time.Time {
	return r.stopping.start.Add(min(r.busy, time.Since(r.stopping.start)))
}

func (r *relayed) Moved() (up, down int64) { return 0, 0 }

func (r *relayed) Close(reason string) {
	r.once.Do(func() {
		r.closedAt, r.reason = time.Since(r.stopping.start), reason
		if !r.stubborn {
			r.stopping.remove(r.session)
		}
	})
}

// mustBeClosed requires that the session was closed then, or at the next look after it.
func (r *relayed) mustBeClosed(t *testing.T, at time.Duration) {
	t.Helper()
	if r.reason != ReasonShutdown || r.closedAt < at || r.closedAt > at+stopPoll {
		t.Errorf("closed with %q after %v, want %v", r.reason, r.closedAt, at)
	}
}

// stop returns how long it took.
func (st *stopping) stop() time.Duration {
	st.shutdown()
	return time.Since(st.start)
}

// A connection that waits without a session, and ends because the process stops, is waited for, and so is its session. One that never
// ends holds the process up for no longer than a session would.
func TestStopWaitsForSessionsToBegin(t *testing.T) {
	t.Parallel()
	for _, ends := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			st := newStopping()
			done := st.await()
			if ends {
				time.AfterFunc(10*time.Millisecond, func() {
					r := st.add(0, -time.Hour)
					time.AfterFunc(100*time.Millisecond, func() { st.remove(r.session) })
					r.stubborn = true
					done()
				})
			}
			least, most := 110*time.Millisecond, 110*time.Millisecond+stopPoll
			if !ends {
				least, most = idleAtStop, idleAtStop+2*stopPoll
			}
			if took := st.stop(); took < least || took > most {
				t.Errorf("took %v, want from %v to %v", took, least, most)
			}
		})
	}
}

func TestStopWithoutSessions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		if took := newStopping().stop(); took != 0 {
			t.Errorf("took %v", took)
		}
	})
}

func TestStopClosesIdleSessionsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStopping()
		idle, long := st.add(time.Hour, -time.Second), st.add(time.Hour, -10*time.Hour)
		if took := st.stop(); took > stopPoll {
			t.Errorf("took %v", took)
		}
		idle.mustBeClosed(t, 0)
		long.mustBeClosed(t, 0)
	})
}

func TestStopGivesEachBusySessionItsGrace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStopping()
		sessions := make(map[time.Duration]*relayed)
		for _, grace := range []time.Duration{0, 300 * time.Millisecond, 3 * time.Second, 10 * time.Second} {
			sessions[grace] = st.add(grace, time.Minute)
		}
		if took := st.stop(); took < 10*time.Second || took > 10*time.Second+2*stopPoll {
			t.Errorf("took %v", took)
		}
		for grace, r := range sessions {
			r.mustBeClosed(t, grace)
		}
	})
}

// The longest duration that can be configured is as long as one is busy, and not no time at all.
func TestStopWithTheLongestGrace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStopping()
		busy := st.add(math.MaxInt64, 5*time.Second)
		if took := st.stop(); took > 6*time.Second+stopPoll {
			t.Errorf("took %v", took)
		}
		busy.mustBeClosed(t, 6*time.Second)
	})
}

func TestStopClosesBusySessionsWhenTheyBecomeIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStopping()
		almost, later := st.add(time.Hour, -400*time.Millisecond), st.add(time.Hour, 5*time.Second)
		if took := st.stop(); took > 6*time.Second+stopPoll {
			t.Errorf("took %v", took)
		}
		almost.mustBeClosed(t, 600*time.Millisecond)
		later.mustBeClosed(t, 6*time.Second)
	})
}

// A connection that was accepted just before may begin its session only now.
func TestStopSeesSessionsThatBeginDuringIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStopping()
		st.add(2*time.Second, time.Minute)
		time.AfterFunc(1500*time.Millisecond, func() { st.add(2*time.Second, time.Minute) })
		if took := st.stop(); took < 2*time.Second || took > 2*time.Second+2*stopPoll {
			t.Errorf("took %v", took)
		}
		if left := st.list(); len(left) != 0 {
			t.Errorf("%d left", len(left))
		}
	})
}

// A session whose handler is still connecting is closed when there is something to close.
func TestStopRemembersSessionsWithoutAMover(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStopping()
		r := st.add(time.Second, 0)
		r.session.mover = nil
		time.AfterFunc(1500*time.Millisecond, func() { r.session.SetMover(r) })
		if took := st.stop(); took > 1500*time.Millisecond+stopPoll {
			t.Errorf("took %v", took)
		}
		r.mustBeClosed(t, 1500*time.Millisecond)
	})
}

// A session that can't be closed holds the process up no longer than a second after the last grace period.
func TestStopEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStopping()
		short, long := st.add(time.Second, time.Minute), st.add(3*time.Second, -time.Hour)
		short.stubborn, long.stubborn = true, true
		if took := st.stop(); took < 4*time.Second || took > 4*time.Second+2*stopPoll {
			t.Errorf("took %v", took)
		}
		short.mustBeClosed(t, time.Second)
		long.mustBeClosed(t, 0)
	})
}

// heldWriter writes when it is allowed to.
type heldWriter struct {
	allowed chan struct{}
	written []byte
}

func (w *heldWriter) Write(b []byte) (int, error) {
	<-w.allowed
	w.written = append(w.written, b...)
	return len(b), nil
}

// The process must not end before the access log entries of its last sessions are written. This test is
// alone with the registry of the process, since it is not parallel.
func TestStopWaitsForTheAccessLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc, _, _ := newScope(t, time.Second, 0)
		held := &heldWriter{allowed: make(chan struct{})}
		sc.log = zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg"}), zapcore.AddSync(held), zap.InfoLevel))
		s, m := begin(t, sc), newMover()
		s.SetMover(m)
		go func() { s.End(End{Reason: <-m.closed}) }()

		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			living.shutdown()
		}()
		time.Sleep(1500 * time.Millisecond) // it is closed after 1s, and given up after 2s
		select {
		case <-stopped:
			t.Error("stopped before the entry was written")
		default:
		}
		close(held.allowed)
		<-stopped
		if len(held.written) == 0 {
			t.Error("no entry")
		}
	})
}
