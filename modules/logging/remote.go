package logging

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	_ "github.com/portgate/caddy-portgate/modules/internal/session" // its exit function, which ends sessions and has their entries written, goes before
	"github.com/portgate/caddy-portgate/modules/internal/state"
	"github.com/portgate/caddy-portgate/modules/logging/delivery"
)

const (
	defaultQueue, maxQueue = 10_000, 1_000_000
	defaultFlushInterval   = caddy.Duration(time.Second)
	defaultTimeout         = caddy.Duration(10 * time.Second)

	// queueBytes is what entries may take that wait, however few they are.
	queueBytes = 64 << 20
	// A batch is what a collector takes with ease: Elasticsearch by default up to 100 MB, Fluentd chunks of 8 MB.
	batchEntries, batchBytes = 1000, 1 << 20
	// The first pause is for a collector that restarts, the longest for one that is away.
	minPause, maxPause = 500 * time.Millisecond, 30 * time.Second

	// closeTimeout is how long entries are still sent after a reload has closed their log. Nobody waits for it.
	closeTimeout = 10 * time.Second
	// stopTimeout is how long a process that stops waits for all its collectors together.
	stopTimeout = 2 * time.Second
	// rejectedEvery is how often a log says that a collector rejects entries.
	rejectedEvery = time.Minute
)

var (
	sentTotal    = meter.Counter("log_writer_sent_total", "Log entries that a collector has taken.", "name")
	droppedTotal = meter.Counter("log_writer_dropped_total", "Log entries that did not get to a collector, and why.", "name", "reason")
	waitingNow   = meter.Gauge("log_writer_waiting", "Log entries that wait for a collector, or are being sent.", "name")
)

// registerMetrics makes the metrics part of a config's registry.
func registerMetrics(registry *prometheus.Registry) error {
	if err := degraded.Register(registry); err != nil {
		return err
	}
	return meter.Register(registry, sentTotal, droppedTotal, waitingNow)
}

// sending are the options that writers have in common.
type sending struct {
	queue    int
	interval *caddy.Duration
	timeout  caddy.Duration
}

func (s sending) options() (delivery.Options, error) {
	o := delivery.Options{
		Entries: s.queue, Bytes: queueBytes, BatchEntries: batchEntries, BatchBytes: batchBytes,
		Interval: time.Duration(defaultFlushInterval), Timeout: time.Duration(s.timeout), MinPause: minPause, MaxPause: maxPause,
	}
	if o.Entries == 0 {
		o.Entries = defaultQueue
	}
	if o.Entries < 1 || o.Entries > maxQueue {
		return o, fmt.Errorf(`queue: "%d": expected a whole number from 1 to %d`, o.Entries, maxQueue)
	}
	if s.interval != nil {
		o.Interval = time.Duration(*s.interval)
	}
	if o.Timeout == 0 {
		o.Timeout = time.Duration(defaultTimeout)
	}
	return o, nil
}

// sendingOptions are those of a Caddyfile.
func sendingOptions(queue *int, interval **caddy.Duration, timeout *caddy.Duration) []caddyfile.Option {
	return []caddyfile.Option{
		{Name: "queue", Min: 1, Max: 1, Set: func(args []string) (err error) {
			*queue, err = caddyfile.ParseCount(args[0], 1, maxQueue)
			return err
		}},
		{Name: "flush_interval", Min: 1, Max: 1, Set: func(args []string) error {
			parsed, err := caddyfile.ParseDuration(args[0])
			*interval = &parsed
			return err
		}},
		{Name: "timeout", Min: 1, Max: 1, Set: func(args []string) (err error) {
			if *timeout, err = caddyfile.ParseDuration(args[0]); err == nil && *timeout == 0 {
				err = fmt.Errorf("%q: expected a duration of more than 0", args[0])
			}
			return err
		}},
	}
}

// keyOf returns a key of a writer for what it is configured to be. Caddy logs it, so it is a hash.
func keyOf(name string, parts ...any) string {
	hash := sha256.Sum256(fmt.Appendf(nil, "%q", parts))
	return name + " " + hex.EncodeToString(hash[:8])
}

// remote is what sends to one collector. Configs that have the same writer share it.
type remote struct {
	key, name string
	queue     *delivery.Queue

	sent, full, rejected, stopped prometheus.Counter
	waiting                       prometheus.Gauge

	failing, crowded *degraded.Part
	dropped          atomic.Int64 // since the queue was full
	mu               sync.Mutex
	refused          int // entries since the log has said so
	refusedSaid      time.Time
}

// remotes are those that configs use. Caddy opens a writer once and never closes it (v2.11.9), so it is the modules that hold them.
var remotes = state.NewPool[string, *remote]()

// sends are those that send: those of configs, and those that are gone but not empty yet.
var sends struct {
	mu       sync.RWMutex
	all      map[*remote]struct{}
	byKey    map[string]*remote // the youngest of each key
	deadline time.Time          // of a process that stops
}

// acquireRemote returns what sends to a collector. name is what an operator knows it by, and has no secret.
func acquireRemote(key, name string, sender func() delivery.Sender, options delivery.Options) (*state.Ref[*remote], error) {
	return remotes.Acquire(key, func() (*remote, error) { return newRemote(key, name, sender(), options), nil })
}

func newRemote(key, name string, sender delivery.Sender, options delivery.Options) *remote {
	meter.Hold("name", name)
	dropped := func(cause delivery.Cause) prometheus.Counter {
		return droppedTotal.WithLabelValues(name, string(cause))
	}
	r := &remote{
		key: key, name: name,
		sent: sentTotal.WithLabelValues(name),
		full: dropped(delivery.Full), rejected: dropped(delivery.Rejected), stopped: dropped(delivery.Stopped),
		waiting: waitingNow.WithLabelValues(name),
		failing: degraded.New("log_writer"), crowded: degraded.New("log"),
	}
	r.queue = delivery.New(sender, options, delivery.Observer{
		Put: r.waiting.Inc, Sent: r.onSent, Dropped: r.onDropped, Failed: r.onFailed, Worked: r.onWorked,
	})
	sends.mu.Lock()
	defer sends.mu.Unlock()
	if sends.all == nil {
		sends.all, sends.byKey = make(map[*remote]struct{}), make(map[string]*remote)
	}
	sends.all[r], sends.byKey[key] = struct{}{}, r
	return r
}

// Destruct is called when no config has the writer any more. What waits is still sent for a while. A process that stops does this before its
// sessions end, whose entries are still to come.
func (r *remote) Destruct() error {
	if caddy.Exiting() {
		return nil
	}
	done := r.queue.Close(closeTimeout)
	go func() {
		<-done
		r.failing.Close()
		r.crowded.Close()
		meter.Release("name", r.name)
		sends.mu.Lock()
		defer sends.mu.Unlock()
		delete(sends.all, r)
		if sends.byKey[r.key] == r {
			delete(sends.byKey, r.key)
		}
	}()
	return nil
}

// log is for what happens to entries. It may lead to the same collector, which gets to know in time.
func (r *remote) log() *zap.Logger {
	return logqueue.Default("portgate.log").With(zap.String("writer", r.name))
}

func (r *remote) onSent(n int) {
	r.sent.Add(float64(n))
	r.waiting.Sub(float64(n))
}

func (r *remote) onDropped(n int, cause delivery.Cause, err error) {
	r.waiting.Sub(float64(n))
	logqueue.CountDropped(n)
	switch cause {
	case delivery.Full:
		r.full.Add(float64(n))
		r.dropped.Add(int64(n))
		if r.crowded.Is() {
			return // thousands are dropped a second
		}
		r.crowded.Begin(r.log(), "a collector does not take log entries as fast as they come, the queue is full and further ones are dropped")
	case delivery.Rejected:
		r.rejected.Add(float64(n))
		r.sayRejected(n, err)
	case delivery.Stopped:
		r.stopped.Add(float64(n))
	}
}

// sayRejected logs what a collector rejects, once in a while.
func (r *remote) sayRejected(n int, err error) {
	r.mu.Lock()
	r.refused += n
	if time.Since(r.refusedSaid) < rejectedEvery {
		r.mu.Unlock()
		return
	}
	n, r.refused, r.refusedSaid = r.refused, 0, time.Now()
	r.mu.Unlock()
	r.log().Warn("a collector rejects log entries, they are dropped", zap.Int("entries", n), zap.Error(err))
}

func (r *remote) onFailed(err error) {
	r.failing.Begin(r.log(), "log entries can't be sent, they wait", zap.Error(err))
}

func (r *remote) onWorked() {
	r.failing.End(r.log(), "log entries can be sent again")
	if r.crowded.Is() && r.queue.Waiting() == 0 {
		r.crowded.End(r.log(), "a collector has taken all log entries that found room", zap.Int64("dropped", r.dropped.Swap(0)))
	}
}

// line is what Caddy writes to: it outlives the configs, and finds what sends.
type line struct{ key, name string }

// Write implements [io.Writer]. It never fails, and it does not block, except that the last words of a process that stops are waited for as long
// as it waits for its collectors.
func (l *line) Write(b []byte) (int, error) {
	sends.mu.RLock()
	r, deadline := sends.byKey[l.key], sends.deadline
	sends.mu.RUnlock()
	if r == nil { // the last words of a config that is gone, and of what it has sent in the end
		meter.Hold("name", l.name)
		droppedTotal.WithLabelValues(l.name, string(delivery.Stopped)).Inc()
		meter.Release("name", l.name)
		logqueue.CountDropped(1)
		return len(b), nil
	}
	r.queue.Put(b)
	if !deadline.IsZero() {
		r.queue.Flush(time.Until(deadline))
	}
	return len(b), nil
}

// Close implements [io.Closer]. It is for the modules to say when there is no more to send.
func (l *line) Close() error { return nil }

func init() { caddy.OnExit(func(context.Context) { flushRemotes(stopTimeout) }) }

// flushRemotes waits until all collectors have what there is, but not longer than timeout.
func flushRemotes(timeout time.Duration) {
	sends.mu.Lock()
	sends.deadline = time.Now().Add(timeout)
	var flushes sync.WaitGroup
	for r := range sends.all {
		flushes.Go(func() {
			if left := r.queue.Flush(timeout); left > 0 {
				r.log().Warn("the process stops before a collector has taken all log entries", zap.String("entries", strconv.Itoa(left)))
			}
		})
	}
	sends.mu.Unlock()
	flushes.Wait()
	logqueue.Flush(100 * time.Millisecond) // what was just said
}
