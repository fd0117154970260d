package forward

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// The reasons of sessions for which a queue had no upstream.
const (
	reasonQueueFull    = "queue_full"
	reasonQueueTimeout = "queue_timeout"
)

var queued = meter.Gauge("upstream_queued", "Sessions that wait in a queue for an upstream.", "listener")

// queues of all configs, by the JSON of their handlers. Handlers that are alike share one, and so does the next config that has such a
// handler: those who wait keep their places.
var queues = state.NewPool[string, *queue]()

// queue is the sessions that wait for upstreams of one kind of handler.
type queue struct {
	*upstream.Queue
	replaced atomic.Bool              // no config has it
	names    atomic.Pointer[[]string] // of the first few upstreams that are watched, for logs

	mu       sync.Mutex
	rooms    map[room]func() // those that are watched, with what ends that
	released bool
}

// room is an upstream with a limit.
type room struct {
	name string
	most int64
}

// maxNamed bounds the upstreams that the log names.
const maxNamed = 8

// newQueue returns a queue that looks for room whenever a session of an upstream has ended that watch was called with.
func newQueue(most int, longest time.Duration) *queue {
	q := &queue{rooms: make(map[room]func())}
	q.names.Store(new([]string))
	fields := func(more ...zap.Field) []zap.Field {
		return append([]zap.Field{zap.Int("waiting", most), zap.Strings("upstreams", *q.names.Load())}, more...)
	}
	q.Queue = upstream.NewQueue(upstream.QueueConfig{
		Most: most, Longest: longest, Now: time.Now,
		Full: func() {
			logqueue.Default("forward").Warn("the queue for upstreams is full, further sessions are refused", fields()...)
		},
		Over: func(refused int64, lasted time.Duration) {
			logqueue.Default("forward").Info("the queue for upstreams has room again",
				fields(zap.Int64("refused", refused), zap.Duration("lasted", lasted))...)
		},
	})
	return q
}

// watch has the queue look for room at these upstreams, and no longer at others. Handlers that share a queue are alike, so they get the same
// upstreams from their sources, one after another.
func (q *queue) watch(upstreams []upstream.Upstream) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.released {
		return
	}
	wanted, names := make(map[room]struct{}), []string(nil)
	for i := range upstreams {
		r := room{upstreams[i].Name, upstreams[i].MaxSessions}
		if r.most == 0 {
			continue
		}
		wanted[r] = struct{}{}
		if len(names) < maxNamed {
			names = append(names, r.name)
		}
		if q.rooms[r] == nil {
			q.rooms[r] = q.watchRoom(r)
		}
	}
	q.names.Store(&names)
	for r, stop := range q.rooms {
		if _, is := wanted[r]; !is {
			stop()
			delete(q.rooms, r)
		}
	}
}

// watchRoom has the queue look whenever a session of an upstream has ended.
func (q *queue) watchRoom(r room) (stop func()) {
	count := counts.Hold(r.name)
	unwatch := count.Watch(func(living int64) {
		if living < r.most {
			q.Look()
		}
	})
	return func() {
		unwatch()
		count.Release()
	}
}

// Destruct ends the watch, once nobody waits any more.
func (q *queue) Destruct() error {
	q.replaced.Store(true)
	q.left()
	return nil
}

// left is called when a session has left the queue.
func (q *queue) left() {
	if !q.replaced.Load() || q.Waiting() > 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.released = true
	for r, stop := range q.rooms {
		stop()
		delete(q.rooms, r)
	}
}

// beginQueue acquires the queue, where the handler has one.
func (h *Handler) beginQueue(canonical string) (err error) {
	if h.Queue == nil {
		return nil
	}
	h.queueRef, err = queues.Acquire(canonical, func() (*queue, error) {
		return newQueue(h.Queue.Count, time.Duration(h.Queue.Duration)), nil
	})
	if err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	h.queue = h.queueRef.Value()
	return nil
}

// look has those who wait look for room, after upstreams have changed.
func (h *Handler) look() {
	if h.queue != nil {
		h.queue.Look()
	}
}
