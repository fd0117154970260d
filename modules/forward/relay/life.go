package relay

import (
	"sync"
	"sync/atomic"
	"time"
)

// life is the part that [Relay] and [PacketRelay] share: beginning, Close, and when something was last moved.
type life struct {
	start      time.Time
	connect    time.Duration // how long it took to get an upstream, or to give up
	lastActive atomic.Int64  // nanoseconds since start

	mu     sync.Mutex
	engine engine // nil before Run
	closed Reason // the reason of a Close before Run
}

// engine moves the bytes of a relay: an event loop or goroutines.
type engine interface {
	// cut has both connections closed in order. It does not block.
	cut(Reason)
}

// Close ends the relay. Both connections are closed in order: the kernel still sends what was written to them. Done gets the
// reason, unless the relay had ended before. Close does not block.
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

// begin sets the engine. It returns the reason of a Close that came before, if there was one.
func (l *life) begin(e engine) Reason {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.engine = e
	return l.closed
}

// age is the time since New.
func (l *life) age() time.Duration { return time.Since(l.start) }

// touch notes that bytes were moved at that age. A pause of a Pacer counts as moving until its end.
func (l *life) touch(age time.Duration) {
	if int64(age) > l.lastActive.Load() {
		l.lastActive.Store(int64(age))
	}
}

// activeAt is the age at which bytes were last moved.
func (l *life) activeAt() time.Duration { return time.Duration(l.lastActive.Load()) }
