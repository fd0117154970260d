package relay

import (
	"sync"
	"sync/atomic"
	"time"
)

// life is what a [Relay] and a [PacketRelay] have in common: they begin, are closed, and are silent for too long.
type life struct {
	start      time.Time
	connect    time.Duration // until there was an upstream, or none
	lastActive atomic.Int64  // nanoseconds since start

	mu     sync.Mutex
	engine engine // nil before Run
	closed Reason // by Close before there was an engine
}

// engine is what moves a relay's bytes.
type engine interface {
	// cut closes both connections in order, soon.
	cut(Reason)
}

// Close ends the relay: both connections are closed in order, after the kernel has sent what they
// were given. Done gets the reason, unless the relay had ended before. Close does not block.
func (l *life) Close(reason Reason) {
	l.mu.Lock()
	e := l.engine
	if e == nil && l.closed == "" {
		l.closed = reason
	}
	l.mu.Unlock()
	if e != nil {
		e.cut(reason)
	}
}

// begin makes e the engine. It returns the reason with which the relay was closed before.
func (l *life) begin(e engine) Reason {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.engine = e
	return l.closed
}

// age is the time since New.
func (l *life) age() time.Duration { return time.Since(l.start) }

// touch notes that bytes moved at that age, or will not before because of a Pacer.
func (l *life) touch(age time.Duration) {
	if int64(age) > l.lastActive.Load() {
		l.lastActive.Store(int64(age))
	}
}

// activeAt is the age at which bytes last moved.
func (l *life) activeAt() time.Duration { return time.Duration(l.lastActive.Load()) }
