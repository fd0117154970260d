package relay

import (
	"context"
	"net"
	"time"
)

// task is what a loop knows of each session that it serves. It belongs to the loop's goroutine.
type task struct {
	loop      *loop
	phase     phase
	queued    bool               // in loop.ready
	cancel    context.CancelFunc // of dial, nil where it is not under way
	reason    Reason             // what ends the session; empty while it runs
	failed    error
	opened    time.Duration // start, in the loop's time
	connectBy time.Duration
	timer     timer // is of the session itself
}

type phase uint8

const (
	phaseDialing    phase = iota // dial looks for an upstream
	phaseConnecting              // a connection attempt is under way
	phaseOpen
	phaseOver
)

// cut is called by any goroutine.
func (t *task) cut(reason Reason) {
	t.loop.post(message{to: t.timer.of, what: orderCut, reason: reason})
}

// dialling is the context of a dial that is about to begin.
func (t *task) dialling() (ctx context.Context) {
	ctx, t.cancel = context.WithCancel(context.Background())
	return ctx
}

// dial finds the next address, or that there is none. It may block, so it runs in a goroutine of its
// own or in Run's.
func (t *task) dial(ctx context.Context, next func(context.Context, error) (net.Addr, error), failed error) {
	addr, err := next(ctx, failed)
	if err != nil {
		t.loop.post(message{to: t.timer.of, what: orderFail, err: err})
		return
	}
	t.loop.post(message{to: t.timer.of, what: orderConnect, addr: addr})
}

// age is the session's in this turn of the loop.
func (t *task) age() time.Duration { return t.loop.now - t.opened }

// connecting begins a connection attempt.
func (t *task) connecting(limit time.Duration) {
	t.phase = phaseConnecting
	t.connectBy = never
	if limit > 0 {
		t.connectBy = t.loop.now + limit
	}
}

// because notes what ends the session, unless that is known already.
func (t *task) because(reason Reason) (first bool) {
	first = t.reason == ""
	if first {
		t.reason = reason
	}
	return first
}

// queue has the session take its turn in a later runReady.
func (t *task) queue() {
	t.queued = true
	t.loop.ready = append(t.loop.ready, t.timer.of)
}

// close ends the session from outside.
func (t *task) close(reason Reason) {
	if t.phase == phaseOver {
		return
	}
	t.because(reason)
	if t.phase == phaseDialing {
		t.cancel() // dial comes back with what it has
		return
	}
	t.timer.of.end()
}

// leave is the last thing that a session does in its loop. Its report follows.
func (t *task) leave() {
	if t.cancel != nil {
		t.cancel()
	}
	t.loop.wheel.remove(&t.timer)
	t.phase = phaseOver
	t.loop.ended = append(t.loop.ended, t.timer.of)
}
