// Package throttle holds back the bytes and datagrams of a connection: the limits that one handler sets on a connection
// which a later one serves.
package throttle

import (
	"sync/atomic"
	"time"
)

// Pacer bounds the rate of one direction of one session's bytes. It is used by one goroutine at a time.
type Pacer interface {
	// Quantum returns how many bytes may move before Moved is called: at least one.
	Quantum() int
	// Moved reports that n bytes have moved, and returns how long to wait before more may move. It is called with
	// n of 0 before anything has moved.
	Moved(n int) (pause time.Duration)
}

// Limits bound what a session moves while it lasts. A nil field bounds nothing.
type Limits struct {
	// PaceUp and PaceDown are for streams: from the client to the upstream, and back.
	PaceUp, PaceDown Pacer

	// AllowUp and AllowDown are for datagrams: each is called with the size of a datagram, which is dropped where
	// the function returns false. They must not block.
	AllowUp, AllowDown func(size int) bool
}

// Add adds the limits of another handler. From then on both hold.
func (l *Limits) Add(other Limits) {
	l.PaceUp = slower(l.PaceUp, other.PaceUp)
	l.PaceDown = slower(l.PaceDown, other.PaceDown)
	l.AllowUp = both(l.AllowUp, other.AllowUp)
	l.AllowDown = both(l.AllowDown, other.AllowDown)
}

// slower returns a pacer that keeps to both.
func slower(a, b Pacer) Pacer {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return pacers{a, b}
}

type pacers [2]Pacer

func (p pacers) Quantum() int { return min(p[0].Quantum(), p[1].Quantum()) }

func (p pacers) Moved(n int) time.Duration { return max(p[0].Moved(n), p[1].Moved(n)) }

// both returns a function that allows what both allow. The second is not asked about what the first refuses.
func both(a, b func(int) bool) func(int) bool {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return func(size int) bool { return a(size) && b(size) }
}

// Throttle is what one handler sets on a connection that a later one serves. When the connection gets a session, the
// session keeps to the limits; until then [Conn] does.
type Throttle struct {
	Limits

	// End is called once the session has ended, or when a connection that never had one is closed. It may be called
	// more than once. It may be nil.
	End func()

	taken atomic.Bool // by a session
}

// Take makes the caller responsible for the limits: a [Conn] with this throttle does nothing from then on.
func (t *Throttle) Take() Limits {
	t.taken.Store(true)
	return t.Limits
}

// Release calls End.
func (t *Throttle) Release() {
	if t.End != nil {
		t.End()
	}
}
