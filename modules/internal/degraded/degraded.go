// Package degraded is how a part that runs otherwise than configured says so: once in the log, at WARN with the reason, in
// the metric caddy_portgate_degraded for as long as it lasts, and once more in the log when it is over.
package degraded

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

// Part is what may run otherwise than configured: one store, one list, one listener. Create one with New.
type Part struct {
	what string

	mu     sync.Mutex
	since  time.Time // zero while all is well
	closed bool
}

// degraded counts the parts that are degraded. Like all metrics it outlives the configs.
var degraded = meter.Gauge("degraded", "Parts that run otherwise than configured; the log says why.", "what")

// Register makes the metric part of a config's registry.
func Register(registry *prometheus.Registry) error { return meter.Register(registry, degraded) }

// New returns a part that is well. What names its kind in the metric, such as "store": a word of the code, never of a client.
func New(what string) *Part {
	degraded.WithLabelValues(what)
	return &Part{what: what}
}

// Begin says that the part is degraded from now on. The first call after New or End logs message at WARN, which says what
// is done instead, with the fields, which say why; further calls do nothing. A log of the data path has to be one of
// [logqueue.Logger].
func (p *Part) Begin(log *zap.Logger, message string, fields ...zap.Field) {
	p.mu.Lock()
	if p.closed || !p.since.IsZero() {
		p.mu.Unlock()
		return
	}
	p.since = time.Now()
	degraded.WithLabelValues(p.what).Inc()
	p.mu.Unlock()
	log.Warn(message, append(fields, zap.String("degraded", p.what))...)
}

// End says that the part is well again, if it was degraded. It logs message at INFO, with how long it took.
func (p *Part) End(log *zap.Logger, message string, fields ...zap.Field) {
	p.mu.Lock()
	since := p.since
	p.wellLocked()
	p.mu.Unlock()
	if since.IsZero() {
		return
	}
	log.Info(message, append(fields, zap.String("degraded", p.what), zap.Duration("lasted", time.Since(since)))...)
}

// Is tells whether the part is degraded.
func (p *Part) Is() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.since.IsZero()
}

// Close is called when the part goes, which nobody has to be told. It counts no more, and nothing begins any more. A nil
// part can be closed.
func (p *Part) Close() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.wellLocked()
}

func (p *Part) wellLocked() {
	if p.since.IsZero() {
		return
	}
	p.since = time.Time{}
	degraded.WithLabelValues(p.what).Dec()
}
