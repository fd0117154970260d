package bucket

import "time"

// Pacer says when a session has to pause so that its bytes keep to limits, each with the bucket of one key. It is used by
// one goroutine at a time; the buckets may be shared.
//
// Those who share a bucket take turns, of as many bytes for each: whoever has moved that many pauses until a
// time that is behind all that was charged before. So each gets the same share, whether it moves much at
// a time or little, and who has moved little since its last pause does not wait for those who move much.
type Pacer struct {
	store    *Memory
	requests []Request
	quantum  int
	moved    int // in this quantum
}

// NewPacer returns a pacer for these buckets, of which there must be one.
func NewPacer(store *Memory, requests ...Request) *Pacer {
	p := &Pacer{store: store, requests: requests, quantum: maxQuantum}
	for i := range requests {
		p.quantum = min(p.quantum, requests[i].Limit.quantum)
	}
	return p
}

// Quantum is how many bytes may move before Moved is told.
func (p *Pacer) Quantum() int { return p.quantum }

// Moved charges n bytes and returns the time until which to pause. Without a pause that is now or earlier. With n of 0 it
// returns the pause before anything has moved.
func (p *Pacer) Moved(now time.Duration, n int) (until time.Duration) {
	for i := range p.requests {
		until = max(until, p.store.Charge(now, &p.requests[i], n))
	}
	if n == 0 {
		return until
	}
	if p.moved += n; p.moved < p.quantum {
		return now
	}
	p.moved %= p.quantum
	return until
}
