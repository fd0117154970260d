package session

import (
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

// DropReason is why a datagram was dropped.
type DropReason int

// The reasons for which a listener drops what clients have sent, and then those of whoever forwards it.
const (
	DropQueueFull       DropReason = iota // more than a session may have waiting for its handler
	DropAcceptQueue                       // more new sessions than handlers have taken
	DropSessionLimit                      // all sessions that there may be are in use
	DropClientLimit                       // all sessions that this client may have are in use
	DropTruncated                         // larger than a datagram can be received
	DropUpstreamFull                      // the upstream socket takes no more
	DropUpstreamRefused                   // nobody listens at the upstream's address
	DropLimited                           // a rate limit
	DropReplyRatio                        // more replies than an unproven client may get
	DropSendFailed                        // the system did not send it to the client
	dropReasons
)

func (r DropReason) String() string {
	return [...]string{
		"queue_full", "accept_queue", "session_limit", "client_limit", "truncated",
		"upstream_full", "upstream_refused", "limited", "reply_ratio", "send_failed",
	}[r]
}

// Datagrams counts what goes through one listener. Who moves or drops a datagram adds to it; metrics are
// made of it when they are read.
type Datagrams struct {
	Up      atomic.Int64 // received from clients, those that are then dropped included
	Dropped [dropReasons]atomic.Int64
	Evicted atomic.Int64 // sessions that made room for others

	_    [64]byte     // what follows is added to by other processors than what is before
	Down atomic.Int64 // sent to clients
}

// datagrams has the counts of each listener. Like metrics they outlive the configs, whose listen addresses
// are all that it has keys of.
var datagrams struct {
	mu         sync.Mutex
	byListener map[string]*Datagrams
}

// DatagramsOf returns the counts of a listener, whose address is as the config has it.
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

// Register makes the metrics part of the config's registry. NewScope does so too; a listener needs it where
// no handler of the config has a scope.
func Register(ctx caddy.Context) error { return collectors.register(ctx.GetMetricsRegistry()) }

// datagramsMoved makes metrics of [Datagrams].
type datagramsMoved struct{ total, dropped, evicted *prometheus.Desc }

func newDatagramsMoved() datagramsMoved {
	return datagramsMoved{
		total:   meter.Desc("datagrams_total", "Datagrams moved: up from clients, down to them.", "listener", "direction"),
		dropped: meter.Desc("datagrams_dropped_total", "Datagrams that were dropped.", "listener", "reason"),
		evicted: meter.Desc("udp_sessions_evicted_total", "UDP sessions that made room for others.", "listener"),
	}
}

// Describe implements [prometheus.Collector].
func (m datagramsMoved) Describe(to chan<- *prometheus.Desc) {
	to <- m.total
	to <- m.dropped
	to <- m.evicted
}

// Collect implements [prometheus.Collector].
func (m datagramsMoved) Collect(to chan<- prometheus.Metric) {
	living.count()
	datagrams.mu.Lock()
	defer datagrams.mu.Unlock()
	count := func(desc *prometheus.Desc, n *atomic.Int64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n.Load()), labels...)
	}
	for listener, d := range datagrams.byListener {
		count(m.total, &d.Up, listener, "up")
		count(m.total, &d.Down, listener, "down")
		for reason := range dropReasons {
			count(m.dropped, &d.Dropped[reason], listener, reason.String())
		}
		count(m.evicted, &d.Evicted, listener)
	}
}
