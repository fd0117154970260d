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

// firstByte is a [First] of a relay.
type firstByte struct {
	First
	told atomic.Bool
}

// tellFirst is called at an age of the relay.
func (r *Relay) tellFirst(age time.Duration, ended Reason) {
	if f := r.first; f != nil && f.told.CompareAndSwap(false, true) {
		f.Tell(max(age-r.activeAt(), 0), ended)
	}
}

// awaitsFirst reports whether nobody was told yet. It costs as good as nothing.
func (r *Relay) awaitsFirst() bool { return r.first != nil && !r.first.told.Load() }

// lateAt is the age at which the first byte is late, if nothing is sent until then.
func (r *Relay) lateAt() time.Duration {
	if !r.awaitsFirst() || r.first.Late <= 0 || r.up.Load() == 0 {
		return never
	}
	return later(r.activeAt(), r.first.Late)
}

// tellLate tells of a byte that is late.
func (r *Relay) tellLate(age time.Duration) {
	if r.lateAt() <= age {
		r.tellFirst(age, "")
	}
}

// givesUp is called at the first FIN. A client that has waited for long enough, and then sends it, does not count on an answer any more.
func (r *Relay) givesUp(fin Reason, age time.Duration) {
	if fin == ClientFIN && r.awaitsFirst() && r.first.Late > 0 && age-r.activeAt() >= r.first.Late {
		r.tellFirst(age, "")
	}
}
