package forward

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/session"
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
	counts   []*session.Count // of the upstreams with a limit
	stops    []func()         // end the watch of these
	replaced atomic.Bool      // no config has it
	released atomic.Bool
}

// newQueue returns a queue that looks for room whenever a session of one of the upstreams has ended.
func newQueue(most int, longest time.Duration, upstreams []upstream.Upstream) *queue {
	var names []string
	for i := range upstreams {
		if upstreams[i].MaxSessions > 0 {
			names = append(names, upstreams[i].Name)
		}
	}
	fields := []zap.Field{zap.Int("waiting", most), zap.Strings("upstreams", names[:min(len(names), 8)])}
	q := &queue{Queue: upstream.NewQueue(upstream.QueueConfig{
		Most: most, Longest: longest, Now: time.Now,
		Full: func() {
			logqueue.Default("forward").Warn("the queue for upstreams is full, further sessions are refused", fields...)
		},
		Over: func(refused int64, lasted time.Duration) {
			logqueue.Default("forward").Info("the queue for upstreams has room again",
				append(slices.Clone(fields), zap.Int64("refused", refused), zap.Duration("lasted", lasted))...)
		},
	})}
	for i := range upstreams {
		limit := upstreams[i].MaxSessions
		if limit == 0 {
			continue
		}
		count := counts.Hold(upstreams[i].Name)
		q.counts = append(q.counts, count)
		q.stops = append(q.stops, count.Watch(func(living int64) {
			if living < limit {
				q.Look()
			}
		}))
	}
	return q
}

// Destruct releases the counts, once nobody waits any more.
func (q *queue) Destruct() error {
	q.replaced.Store(true)
	q.left()
	return nil
}

// left is called when a session has left the queue.
func (q *queue) left() {
	if q.replaced.Load() && q.Waiting() == 0 && q.released.CompareAndSwap(false, true) {
		for _, stop := range q.stops {
			stop()
		}
		for _, count := range q.counts {
			count.Release()
		}
	}
}

// beginQueue acquires the queue, where the handler has one.
func (h *Handler) beginQueue(canonical string, upstreams []upstream.Upstream) (err error) {
	if h.Queue == nil {
		return nil
	}
	h.queueRef, err = queues.Acquire(canonical, func() (*queue, error) {
		return newQueue(h.Queue.Count, time.Duration(h.Queue.Duration), upstreams), nil
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
