package upstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// The errors of a session that gets no upstream because of a [Queue].
var (
	ErrQueueFull    = errors.New("the queue is full")
	ErrQueueTimeout = errors.New("no upstream had room in time")
)

// MaxQueue is the largest number of sessions that a queue may have.
const MaxQueue = 1_000_000

// lookAgain is how often the first in a queue looks whether there is room: most of what makes room calls [Queue.Look], but time alone may
// bring an upstream back.
const lookAgain = 100 * time.Millisecond

// QueueConfig is what a queue has to know.
type QueueConfig struct {
	// Most is how many sessions wait at once. Those beyond are refused.
	Most int
	// Longest is how long one waits.
	Longest time.Duration
	// Full is called when the first session is refused because the queue is full, and Over when half of it is free again, with how many were
	// refused and how long that took. They must not block. They may be nil.
	Full func()
	Over func(refused int64, lasted time.Duration)
	// Now is the clock.
	Now func() time.Time
}

// Queue is the sessions that wait while all upstreams have as many sessions as they may, in order of arrival. Only the first one looks for an
// upstream: so nobody is overtaken, and an upstream that has room again does not wake all of them.
type Queue struct {
	cfg     QueueConfig
	waiting atomic.Int64 // changes with mu

	mu          sync.Mutex
	first, last *Place
	refused     int64     // since the queue was full; 0 while it is not
	since       time.Time // it was full
}

// Place is one session's place in a queue.
type Place struct {
	queue        *Queue
	before, next *Place
	until        time.Time
	look         chan struct{} // has room for one: it is to look again
	left         bool
}

// NewQueue returns an empty queue.
func NewQueue(cfg QueueConfig) *Queue { return &Queue{cfg: cfg} }

// Waiting is how many sessions wait.
func (q *Queue) Waiting() int64 { return q.waiting.Load() }

// Enter puts a session at the end of the queue. It does not block. A queue that is full refuses it with [ErrQueueFull]. Whoever has a place calls Wait or
// Leave.
func (q *Queue) Enter() (*Place, error) {
	q.mu.Lock()
	if q.waiting.Load() >= int64(q.cfg.Most) {
		begins := q.refused == 0
		if begins {
			q.since = q.cfg.Now()
		}
		q.refused++
		q.mu.Unlock()
		if begins && q.cfg.Full != nil {
			q.cfg.Full()
		}
		return nil, fmt.Errorf("%w: %d wait", ErrQueueFull, q.cfg.Most)
	}
	p := &Place{queue: q, before: q.last, until: q.cfg.Now().Add(q.cfg.Longest), look: make(chan struct{}, 1)}
	if q.last == nil {
		q.first = p
	} else {
		q.last.next = p
	}
	q.last = p
	q.waiting.Add(1)
	q.mu.Unlock()
	return p, nil
}

// Look has the first in the queue look whether there is room. It does not block, and costs as good as nothing while nobody waits.
func (q *Queue) Look() {
	if q.waiting.Load() == 0 {
		return
	}
	q.mu.Lock()
	q.lookLocked()
	q.mu.Unlock()
}

func (q *Queue) lookLocked() {
	if q.first == nil {
		return
	}
	select {
	case q.first.look <- struct{}{}:
	default: // it will look anyhow
	}
}

// Wait returns nil as soon as it is the session's turn and claim reports true. It returns an error that is [ErrQueueTimeout] where that takes too
// long, and the error of ctx where that ends. Then the session has left the queue. claim must not block.
func (p *Place) Wait(ctx context.Context, claim func() bool) error {
	defer p.Leave()
	late := time.NewTimer(p.until.Sub(p.queue.cfg.Now()))
	defer late.Stop()
	for {
		var again <-chan time.Time
		if ctx.Err() == nil && p.isFirst() {
			if claim() {
				return nil
			}
			again = time.After(lookAgain)
		}
		select {
		case <-p.look:
		case <-again:
		case <-late.C:
			return fmt.Errorf("%w: waited for %v", ErrQueueTimeout, p.queue.cfg.Longest)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *Place) isFirst() bool {
	p.queue.mu.Lock()
	defer p.queue.mu.Unlock()
	return p.queue.first == p
}

// Leave gives the place up. The next one looks whether there is room for it, too. Further calls do nothing.
func (p *Place) Leave() {
	q := p.queue
	q.mu.Lock()
	if p.left {
		q.mu.Unlock()
		return
	}
	p.left = true
	if p.before == nil {
		q.first = p.next
	} else {
		p.before.next = p.next
	}
	if p.next == nil {
		q.last = p.before
	} else {
		p.next.before = p.before
	}
	waiting := q.waiting.Add(-1)
	if p.before == nil {
		q.lookLocked()
	}
	refused, since := q.refused, q.since
	over := refused > 0 && waiting <= int64(q.cfg.Most/2)
	if over {
		q.refused = 0
	}
	q.mu.Unlock()
	if over && q.cfg.Over != nil {
		q.cfg.Over(refused, q.cfg.Now().Sub(since))
	}
}
