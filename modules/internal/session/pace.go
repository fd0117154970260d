package session

import "time"

// Pacer bounds the rate of one direction of one session's bytes. It is used by one goroutine at a time.
type Pacer interface {
	// Turn is how many bytes may move before Moved is told: at least one.
	Turn() int
	// Moved is told that n bytes have moved, and returns for how long no more are to. With n of 0 it is asked
	// before anything has moved.
	Moved(n int) (pause time.Duration)
}

// Limits are what handlers hold a session to while it lasts. Those that are nil hold it to nothing.
type Limits struct {
	// PaceUp and PaceDown are for streams: from the client to the upstream, and back.
	PaceUp, PaceDown Pacer

	// AllowUp and AllowDown are for datagrams, each of which they are asked about: it is dropped where they say no.
	// They must not block.
	AllowUp, AllowDown func(size int) bool
}

// Limit holds the session to further limits, beside those of other handlers. It is called before the session's
// bytes begin to move.
func (s *Session) Limit(l Limits) {
	s.limits.PaceUp = slower(s.limits.PaceUp, l.PaceUp)
	s.limits.PaceDown = slower(s.limits.PaceDown, l.PaceDown)
	s.limits.AllowUp = both(s.limits.AllowUp, l.AllowUp)
	s.limits.AllowDown = both(s.limits.AllowDown, l.AllowDown)
}

// Limits returns what the session is held to.
func (s *Session) Limits() Limits { return s.limits }

// slower returns a pacer that both agree to.
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

func (p pacers) Turn() int { return min(p[0].Turn(), p[1].Turn()) }

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
