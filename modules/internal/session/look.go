package session

import (
	"math"
	"net"
	"time"
)

// State is what a living session is doing.
type State string

// The states of a living session.
const (
	StateWaiting    State = "waiting"    // for its turn, or for an upstream that has room
	StateConnecting State = "connecting" // no upstream has been reached yet
	StateForwarding State = "forwarding" // it has an upstream
	StateRefused    State = "refused"    // its client is told so, or is ignored for a moment
	StateClosing    State = "closing"    // somebody has asked for its end before it had an upstream
)

// States are all of them.
var States = [...]string{
	string(StateWaiting), string(StateConnecting), string(StateForwarding), string(StateRefused), string(StateClosing),
}

// Refusing is a Mover of a session that is refused and does not end at once.
type Refusing interface {
	Mover
	Refuses()
}

// Look is what is known of a living session at one moment. Its names are those of the access log.
type Look struct {
	State           State
	Upstream        string   // that it has, or tries; an address where there is one
	Label           string   // the upstream as configured
	FailedUpstreams []string // not to be changed
	Rule            string
	BytesUp         int64
	BytesDown       int64
	Datagrams       bool // whether it moves datagrams, which are counted then
	DatagramsUp     int64
	DatagramsDown   int64
	Connect         time.Duration // until it had an upstream; 0 before, and for datagrams
	LastActive      time.Time
	Replaced        bool // its config is no longer the running one
}

// Look returns what is known of the session now. It reports false where the session has ended. Nothing on the way of a byte waits for
// it: what has moved is read from counters.
func (s *Session) Look() (l Look, living bool) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return l, false
	}
	m, addr := s.mover, s.upstream
	l = Look{
		State: s.stateLocked(), Label: s.label, Rule: s.rule, Connect: s.connected.duration(),
		BytesUp: s.up.counted, BytesDown: s.down.counted,
	}
	if s.troubles != nil {
		l.FailedUpstreams = s.troubles.failed // which only grows
	}
	s.mu.Unlock()
	l.Upstream = addressOr(addr, l.Label)
	l.Replaced = s.Replaced()
	if l.LastActive = s.Begun(); m == nil {
		return l, true
	}
	l.LastActive = m.LastActive()
	l.BytesUp, l.BytesDown = m.Moved()
	if m, ok := m.(DatagramMover); ok {
		l.Datagrams = true
		l.DatagramsUp, l.DatagramsDown = m.Datagrams()
	}
	return l, true
}

func (s *Session) stateLocked() State {
	switch s.mover.(type) {
	case nil:
		if s.troubles != nil && s.troubles.closing != "" {
			return StateClosing
		}
		return StateWaiting
	case Refusing:
		return StateRefused
	case DatagramMover:
		if s.upstream != nil {
			return StateForwarding
		}
		return StateConnecting
	}
	switch {
	case s.connected > 0:
		return StateForwarding
	case s.counted == nil:
		return StateWaiting
	}
	return StateConnecting
}

// Traffic returns how many bytes have moved, and when the last one did. It reports false where the session has ended.
func (s *Session) Traffic() (up, down int64, lastActive time.Time, living bool) {
	s.mu.Lock()
	m, living := s.mover, !s.ended
	up, down = s.up.counted, s.down.counted
	s.mu.Unlock()
	if m == nil {
		return up, down, s.Begun(), living
	}
	up, down = m.Moved()
	return up, down, m.LastActive(), living
}

// microseconds is a duration in 4 bytes, which a session has room for. The longest stands for all that are longer.
type microseconds uint32

// sinceInMicroseconds is never 0.
func sinceInMicroseconds(t time.Time) microseconds {
	return microseconds(min(max(time.Since(t).Microseconds(), 1), math.MaxUint32))
}

func (m microseconds) duration() time.Duration { return time.Duration(m) * time.Microsecond }

func addressOr(addr net.Addr, label string) string {
	if addr == nil {
		return label
	}
	return addr.String()
}
