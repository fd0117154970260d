package listeners

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

// DropReason is why a datagram was dropped.
type DropReason int

// The reasons of a listener, and then those of whoever forwards its datagrams.
const (
	DropQueueFull       DropReason = iota // more than a session may have waiting for its handler
	DropAcceptQueue                       // more new sessions than handlers have taken
	DropSessionLimit                      // all sessions that there may be are in use
	DropClientLimit                       // all sessions that this client may have are in use
	DropTruncated                         // larger than a datagram can be received
	DropProxyHeader                       // no valid header of a load balancer in front of it
	DropUpstreamFull                      // the upstream socket takes no more
	DropUpstreamRefused                   // nobody listens at the upstream's address
	DropLimited                           // a rate limit
	DropReplyRatio                        // more replies than an unproven client may get
	DropSendFailed                        // the system did not send it to the client
	DropReasons                           // how many there are
)

func (r DropReason) String() string {
	return [...]string{
		"queue_full", "accept_queue", "session_limit", "client_limit", "truncated", "proxy_header",
		"upstream_full", "upstream_refused", "limited", "reply_ratio", "send_failed",
	}[r]
}

// Datagrams counts what goes through one listener. Whoever moves or drops a datagram adds to it; a [Collector] reads it.
type Datagrams struct {
	Up      atomic.Int64 // received from clients, those that are then dropped included
	Dropped [DropReasons]atomic.Int64
	Evicted atomic.Int64 // sessions that made room for others

	_    [64]byte     // what follows is added to by other processors than what is before
	Down atomic.Int64 // sent to clients
}

// datagrams has the counts of each listener. Like metrics they outlive the configs; the keys are their listen addresses.
var datagrams struct {
	mu         sync.Mutex
	byListener map[string]*Datagrams
}

func init() {
	meter.Forget("listener", func(listener string) {
		datagrams.mu.Lock()
		defer datagrams.mu.Unlock()
		delete(datagrams.byListener, listener)
	})
}

// DatagramsOf returns the counts of a listener, whose address is as the config has it. They stay for as long as somebody
// holds the address, see [meter.Values].
func DatagramsOf(listener string) *Datagrams {
	datagrams.mu.Lock()
	defer datagrams.mu.Unlock()
	d := datagrams.byListener[listener]
	if d == nil {
		if datagrams.byListener == nil {
			datagrams.byListener = make(map[string]*Datagrams)
		}
		d = new(Datagrams)
		datagrams.byListener[listener] = d
	}
	return d
}

// Collector makes metrics of the [Datagrams] of all listeners.
type Collector struct{ total, dropped, evicted *prometheus.Desc }

// NewCollector returns a collector.
func NewCollector() Collector {
	return Collector{
		total:   meter.Desc("datagrams_total", "Datagrams moved: up from clients, down to them.", "listener", "direction"),
		dropped: meter.Desc("datagrams_dropped_total", "Datagrams that were dropped.", "listener", "reason"),
		evicted: meter.Desc("udp_sessions_evicted_total", "UDP sessions that made room for others.", "listener"),
	}
}

// Describe implements [prometheus.Collector].
func (m Collector) Describe(to chan<- *prometheus.Desc) {
	to <- m.total
	to <- m.dropped
	to <- m.evicted
}

// Collect implements [prometheus.Collector].
func (m Collector) Collect(to chan<- prometheus.Metric) {
	datagrams.mu.Lock()
	defer datagrams.mu.Unlock()
	count := func(desc *prometheus.Desc, n *atomic.Int64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n.Load()), labels...)
	}
	for listener, d := range datagrams.byListener {
		count(m.total, &d.Up, listener, "up")
		count(m.total, &d.Down, listener, "down")
		for reason := range DropReasons {
			count(m.dropped, &d.Dropped[reason], listener, reason.String())
		}
		count(m.evicted, &d.Evicted, listener)
	}
}
