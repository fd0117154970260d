// Package logqueue keeps logs from holding up what they report on. A destination may take no more for a while or for good:
// a full pipe that nobody reads, a collector that stalls. Entries therefore wait in a queue of their destination, from
// which one goroutine writes them. What finds the queue full is dropped, counted and reported.
//
// Whatever may log while it accepts, relays, holds a lock or runs a shared timer uses a logger of this package.
package logqueue

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

// kind tells entries that have room of their own: however many sessions end, a warning finds some.
type kind int

const (
	access kind = iota // of the access log
	other
	kinds
)

// otherLimit is how many entries other than those of the access log may wait for a destination.
const otherLimit = 1000

// entry is something to write. Its write may block. What fails to be written is lost.
type entry interface{ write() error }

// queue has what is to be written to one destination. There is one while there is something to write, and its goroutine
// ends with it. One that writes to a destination that takes no more can't be ended; there is never a second.
type queue struct {
	waiting []item
	left    [kinds]atomic.Int64 // put and not written yet
	dropped atomic.Int64
	full    *degraded.Part // nil before the first is dropped
}

type item struct {
	entry
	kind kind
}

var queues struct {
	mu            sync.Mutex
	byDestination map[destination]*queue
	empty         []chan struct{} // closed when there is no queue
}

var (
	accessDropped = meter.Counter("access_log_dropped_total", "Access log entries that were dropped because their destination took no more.")
	otherDropped  = meter.Counter("log_dropped_total", "Other log entries of Portgate that were dropped because their destination took no more.")
)

// Register makes the metrics part of a config's registry.
func Register(registry *prometheus.Registry) error {
	dropped(access).Add(0)
	dropped(other).Add(0)
	return meter.Register(registry, accessDropped, otherDropped)
}

func dropped(k kind) prometheus.Counter {
	if k == access {
		return accessDropped.WithLabelValues()
	}
	return otherDropped.WithLabelValues()
}

// elsewhere counts entries that were dropped after they had passed the queues.
var elsewhere atomic.Int64

// CountDropped has [Dropped] count entries that a log writer has dropped, which has a queue and metrics of its own.
func CountDropped(n int) { elsewhere.Add(int64(n)) }

// Dropped returns how many entries of all kinds were dropped since the process began, here or by log writers.
func Dropped() (n int64) {
	n = elsewhere.Load()
	for k := range kinds {
		var read dto.Metric
		if dropped(k).Write(&read) == nil {
			n += int64(read.GetCounter().GetValue())
		}
	}
	return n
}

// put has e written to its destination soon, unless limit entries of its kind wait already. It does not block.
func put(to destination, k kind, limit int, e entry) (ok bool) {
	q, ok := queueFor(to, k, limit, e)
	if ok {
		return true
	}
	dropped(k).Inc()
	if q.dropped.Add(1) == 1 {
		q.full.Begin(Default("portgate.log"), "a log does not take its entries, the queue is full and further ones are dropped", zap.Int("queue", limit))
	}
	return false
}

func queueFor(to destination, k kind, limit int, e entry) (*queue, bool) {
	queues.mu.Lock()
	defer queues.mu.Unlock()
	q := queues.byDestination[to]
	if q == nil {
		if queues.byDestination == nil {
			queues.byDestination = make(map[destination]*queue)
		}
		q = new(queue)
		queues.byDestination[to] = q
		go q.drain(to)
	}
	if q.left[k].Load() >= int64(limit) {
		if q.full == nil {
			q.full = degraded.New("log")
		}
		return q, false
	}
	q.left[k].Add(1)
	q.waiting = append(q.waiting, item{e, k})
	return q, true
}

// drain writes what there is, and ends when there is no more.
func (q *queue) drain(to destination) {
	var batch []item
	for {
		clear(batch)
		if batch = q.take(to, batch[:0]); batch == nil {
			break
		}
		for i := range batch {
			if err := batch[i].write(); err != nil {
				lost(batch[i].kind, err)
			}
			q.left[batch[i].kind].Add(-1)
		}
	}
	if q.full != nil { // which nobody sets any more
		q.full.End(Default("portgate.log"), "a log takes its entries again", zap.Int64("dropped", q.dropped.Load()))
		q.full.Close() // who has found the queue full may be late with Begin
	}
}

// take returns what waits and leaves spare for what comes. Where nothing waits it removes the queue and returns nil.
func (q *queue) take(to destination, spare []item) []item {
	queues.mu.Lock()
	defer queues.mu.Unlock()
	if len(q.waiting) > 0 {
		batch := q.waiting
		q.waiting = spare
		return batch
	}
	delete(queues.byDestination, to)
	if len(queues.byDestination) == 0 {
		for _, waiter := range queues.empty {
			close(waiter)
		}
		queues.empty = nil
	}
	return nil
}

// Flush waits until everything is written, but not longer than timeout: then it counts what is left as dropped, and
// returns how much that is. A process that stops calls it.
func Flush(timeout time.Duration) (left int) {
	queues.mu.Lock()
	if len(queues.byDestination) == 0 {
		queues.mu.Unlock()
		return 0
	}
	empty := make(chan struct{})
	queues.empty = append(queues.empty, empty)
	queues.mu.Unlock()

	expired := time.NewTimer(timeout)
	defer expired.Stop()
	select {
	case <-empty:
		return 0
	case <-expired.C:
	}
	queues.mu.Lock()
	defer queues.mu.Unlock()
	for _, q := range queues.byDestination {
		for k := range kinds {
			n := q.left[k].Load()
			dropped(k).Add(float64(n))
			left += int(n)
		}
	}
	return left
}
