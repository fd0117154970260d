package relay

import (
	"context"
	"fmt"
	"net"
	"time"
)

// loopSession is a session that a loop serves: a [loopStream] or a [loopPackets]. The loop's goroutine calls its
// methods.
type loopSession interface {
	// handle does what a message of another goroutine says.
	handle(*message)
	// inbox is the kind of inbox for its messages.
	inbox() int
	// serve moves up to one quantum of bytes or datagrams. It is called for sessions in loop.ready.
	serve()
	// checkLimits is called when a time limit may have passed.
	checkLimits()
	// end closes the sockets and removes the session from the loop.
	end()
	// report tells the owner that the session has ended. It may block, so it is called in a goroutine of its own.
	report()
	// title is the name of the session, for the message of a panic.
	title() fmt.Stringer
}

// loopSocket is a socket of a session. The loop finds it by the slot of an epoll event.
type loopSocket interface {
	// onEvents takes the events of one epoll_wait. Events of another generation are for an older socket in the same slot.
	onEvents(events, generation uint32)
}

// message is how other goroutines ask a loop to do something for a session.
type message struct {
	to     loopSession
	what   order
	addr   net.Addr
	err    error
	reason Reason
}

type order uint8

const (
	orderConnect order = iota // connect to addr
	orderFail                 // end: Next has returned err
	orderCut                  // end because of reason
	orderTime                 // set the timer for the time limits
	orderAsk                  // there is trouble with the upstream: ask Next again
	orderPort                 // a port may be free
	orderWait                 // Next has the client wait
)

// obey does what a message says to a session of either kind.
func (m *message) obey(s interface {
	connectTo(addr net.Addr)
	fail(err error)
	close(reason Reason)
	setTimer()
},
) {
	switch m.what {
	case orderConnect:
		s.connectTo(m.addr)
	case orderFail:
		s.fail(m.err)
	case orderCut:
		s.close(m.reason)
	case orderTime:
		s.setTimer()
	}
}

// loopState is what the loop keeps for a session of either kind. Only the loop's goroutine uses it, except cut,
// dialContext and dial.
type loopState struct {
	loop      *loop
	phase     phase
	queued    bool               // in loop.ready
	cancel    context.CancelFunc // ends the dial that runs; nil where none does
	reason    Reason             // why the session ends; empty while it runs
	failed    error              // the error of Next
	opened    time.Duration      // when the relay was made, in the loop's time
	connectAt time.Duration      // when the last socket to an upstream was opened, in the loop's time
	connectBy time.Duration      // when the connection attempt times out, in the loop's time
	timer     timer              // timer.of is the session itself
}

type phase uint8

const (
	phaseDialing    phase = iota // Next is asked for an upstream
	phaseConnecting              // a connection attempt runs
	phaseOpen                    // the upstream is connected
	phaseOver                    // the session has left the loop
)

// cut may be called by any goroutine.
func (s *loopState) cut(reason Reason) {
	s.loop.post(message{to: s.timer.of, what: orderCut, reason: reason})
}

// dialContext returns the context for a dial that is about to begin. s.cancel ends it.
func (s *loopState) dialContext() (ctx context.Context) {
	ctx, s.cancel = context.WithCancel(context.Background())
	return ctx
}

// dial asks next for an address and posts the answer to the loop. Next may block, so dial runs in the caller's
// goroutine or in one of its own, never in the loop's.
func (s *loopState) dial(ctx context.Context, next func(context.Context, error) (net.Addr, error), failed error) {
	addr, err := next(ctx, failed)
	if err != nil {
		s.loop.post(message{to: s.timer.of, what: orderFail, err: err})
		return
	}
	s.loop.post(message{to: s.timer.of, what: orderConnect, addr: addr})
}

// age is how old the relay is in this round of the loop.
func (s *loopState) age() time.Duration { return s.loop.now - s.opened }

// startConnecting notes that a connection attempt begins, which may take until limit.
func (s *loopState) startConnecting(limit time.Duration) {
	s.phase = phaseConnecting
	s.connectAt, s.connectBy = s.loop.now, never
	if limit > 0 {
		s.connectBy = later(s.loop.now, limit)
	}
}

// setReason notes why the session ends. The first reason counts.
func (s *loopState) setReason(reason Reason) (first bool) {
	first = s.reason == ""
	if first {
		s.reason = reason
	}
	return first
}

// queue asks the loop to serve the session again in a later round.
func (s *loopState) queue() {
	s.queued = true
	s.loop.ready = append(s.loop.ready, s.timer.of)
}

// close ends the session for a reason from outside. While Next is asked, the session ends with its answer.
func (s *loopState) close(reason Reason) {
	if s.phase == phaseOver {
		return
	}
	s.setReason(reason)
	if s.phase == phaseDialing {
		s.cancel()
		return
	}
	s.timer.of.end()
}

// leave removes the session from the loop. The loop calls report at the end of the round.
func (s *loopState) leave() {
	if s.cancel != nil {
		s.cancel()
	}
	s.loop.wheel.remove(&s.timer)
	s.phase = phaseOver
	s.loop.ended = append(s.loop.ended, s.timer.of)
}
