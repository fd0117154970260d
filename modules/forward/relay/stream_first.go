package relay

import (
	"sync/atomic"
	"time"
)

// First tells of the first byte of an upstream.
type First struct {
	// Tell is called once: when the first byte has come, or, where none comes, at the end with the reason for that. waited is how long there was
	// silence: since the client's last byte was sent to the upstream, or since that was connected. Event loops call it: it must not block.
	Tell func(waited time.Duration, ended Reason)

	// Late is how long a byte may take, once the client has sent something. Where it takes longer, and where a client gives up after that, Tell is
	// called without waiting for it. Zero: Tell waits.
	Late time.Duration
}

// firstByte is a [First] of a relay. The engine has it, so that a relay of which nobody wants to know it is no larger. All methods may be called
// where it is nil.
type firstByte struct {
	First
	of   *Relay
	told atomic.Bool
}

// newFirst returns nil where nobody wants to know.
func (r *Relay) newFirst() *firstByte {
	if r.cfg.First == nil {
		return nil
	}
	return &firstByte{First: *r.cfg.First, of: r}
}

// tell is called at an age of the relay.
func (f *firstByte) tell(age time.Duration, ended Reason) {
	if f != nil && f.told.CompareAndSwap(false, true) {
		f.Tell(max(age-f.of.activeAt(), 0), ended)
	}
}

// awaited reports whether nobody was told yet. It costs as good as nothing.
func (f *firstByte) awaited() bool { return f != nil && !f.told.Load() }

// lateAt is the age at which the first byte is late, if nothing is sent until then.
func (f *firstByte) lateAt() time.Duration {
	if !f.awaited() || f.Late <= 0 || f.of.up.Load() == 0 {
		return never
	}
	return later(f.of.activeAt(), f.Late)
}

// tellLate tells of a byte that is late.
func (f *firstByte) tellLate(age time.Duration) {
	if f.lateAt() <= age {
		f.tell(age, "")
	}
}

// givesUp is called at the first FIN. A client that has waited for long enough, and then sends it, does not count on an answer any more.
func (f *firstByte) givesUp(fin Reason, age time.Duration) {
	if fin == ClientFIN && f.awaited() && f.Late > 0 && age-f.of.activeAt() >= f.Late {
		f.tell(age, "")
	}
}
