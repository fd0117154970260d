// Package descriptors counts the descriptors that the sessions of the gate networks take, so that some are always left: for the
// admin API, through which an operator ends an attack, and for other listeners.
//
// A session takes its descriptors when it is accepted, the one of its upstream socket included, and gives them back when it has ended. What
// else the process has open is counted when a config is loaded.
package descriptors

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

// PerStream is how many descriptors a session of a stream takes: the client's and the upstream's.
const PerStream = 2

// PerDatagrams is how many a session of datagrams takes: the upstream's.
const PerDatagrams = 1

// leastReserve is what the default reserve has at least: an admin request takes one, a reload a few, an event loop three.
const leastReserve = 32

var (
	sessions atomic.Int64 // descriptors that sessions have taken
	accepted atomic.Int64 // those of them that are open for sure: the clients' of streams
	others   atomic.Int64 // descriptors that are open for anything else
)

// DefaultReserve returns 5 % of the limit on descriptors, at least 32.
func DefaultReserve() int { return max(Limit()/20, leastReserve) }

// DefaultShare returns how many descriptors the sessions of one listen address may take where the config doesn't say: seven eighths
// of what is not reserved, so that there are some for the other listen addresses.
func DefaultShare(reserve int) int { return max((Limit()-reserve)/8*7, PerStream) }

// Observe counts what is open now. It is called once for each config, before its listeners are opened.
//
// A session may have opened what it has taken or not: one that waits, is held in a tarpit or connects has no upstream socket. While there are
// sessions, what is open for anything else is therefore not known exactly, but only within bounds: as long as what was counted before is
// within these it stays.
func Observe() {
	open, ok := count()
	if !ok {
		return
	}
	least := max(int64(open)-sessions.Load(), 0)    // all upstream sockets are open
	most := max(int64(open)-accepted.Load(), least) // none is
	others.Store(min(max(others.Load(), least), most))
}

// Opened notes that n descriptors were opened for something else than a session after the last Observe, or closed where n is negative: a
// socket for listening, an event loop.
func Opened(n int64) { others.Add(n) }

// Take takes n descriptors for a session, unless fewer than reserve would be left. Release gives them back. A reserve of 0 is none:
// then there is no bound but the system's.
func Take(n int64, reserve int) bool {
	taken := sessions.Add(n)
	if reserve > 0 && taken+others.Load()+int64(reserve) > int64(Limit()) {
		sessions.Add(-n)
		return false
	}
	return true
}

// Left reports whether Take would succeed now.
func Left(n int64, reserve int) bool {
	return reserve == 0 || sessions.Load()+n+others.Load()+int64(reserve) <= int64(Limit())
}

// MustTake is Take without a bound.
func MustTake(n int64) { sessions.Add(n) }

// Release gives back what Take has taken.
func Release(n int64) { sessions.Add(-n) }

// Open returns how many descriptors the process has open. It reports false where the system does not tell.
func Open() (open int, ok bool) { return count() }

// counts makes metrics of them, whenever they are read.
type counts struct{ used, limit *prometheus.Desc }

var collectors = counts{
	used:  meter.Desc("descriptors_used", "Descriptors that the process has open."),
	limit: meter.Desc("descriptors_limit", "How many descriptors the process may have open."),
}

// Register makes the metrics part of a config's registry.
func Register(registry *prometheus.Registry) error { return meter.Register(registry, collectors) }

// Describe implements [prometheus.Collector].
func (c counts) Describe(to chan<- *prometheus.Desc) {
	to <- c.used
	to <- c.limit
}

// Collect implements [prometheus.Collector].
func (c counts) Collect(to chan<- prometheus.Metric) {
	if open, ok := count(); ok {
		to <- prometheus.MustNewConstMetric(c.used, prometheus.GaugeValue, float64(open))
	}
	to <- prometheus.MustNewConstMetric(c.limit, prometheus.GaugeValue, float64(Limit()))
}

// Taken returns how many descriptors sessions have taken.
func Taken() int64 { return sessions.Load() }

// Listener counts the sessions of streams of one listen address.
type Listener struct{ sessions atomic.Int64 }

// Take takes the descriptors of one session, unless the listener has as many sessions as it may, or fewer than reserve would be left.
func (l *Listener) Take(mostSessions, reserve int) bool {
	if l.sessions.Add(1) > int64(mostSessions) || !Take(PerStream, reserve) {
		l.sessions.Add(-1)
		return false
	}
	accepted.Add(1)
	return true
}

// Release gives the descriptors of one session back. A nil listener has none.
func (l *Listener) Release() {
	if l == nil {
		return
	}
	l.sessions.Add(-1)
	accepted.Add(-1)
	Release(PerStream)
}

// Sessions returns how many sessions there are.
func (l *Listener) Sessions() int64 { return l.sessions.Load() }

// Owner is a connection that has the descriptors of its session until it is closed.
type Owner interface {
	// Descriptors hands them over: the caller has to release them when the session has ended. It returns nil if the connection has
	// none, or has given them back.
	Descriptors() *Listener
}

// Of takes the descriptors over from a connection, if it has any. The result is to be released, also where it is nil.
func Of(conn any) *Listener {
	if owner, ok := conn.(Owner); ok {
		return owner.Descriptors()
	}
	return nil
}
