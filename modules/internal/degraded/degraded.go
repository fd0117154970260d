// Package degraded is how a part that runs otherwise than configured says so: once in the log, at WARN with the reason, in
// the metric caddy_portgate_degraded and in the list of all for as long as it lasts, and once more in the log when it is over.
package degraded

import (
	"slices"
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
	reason reason
	closed bool
}

// reason is why a part is degraded.
type reason struct {
	message string
	fields  []zap.Field
}

// degraded counts the parts that are degraded. Like all metrics it outlives the configs.
var degraded = meter.Gauge("degraded", "Parts that run otherwise than configured; the log says why.", "what")

// now has the parts that are degraded.
var now struct {
	mu    sync.Mutex
	parts map[*Part]struct{}
}

// changed does not change once the process has begun.
var changed []func(begins bool, message string, fields []zap.Field)

// OnChange has f called when a part begins to be degraded and when that is over, with what the log says. It is to be called by an init function; f
// must not block.
func OnChange(f func(begins bool, message string, fields []zap.Field)) { changed = append(changed, f) }

// Reason is why a part is degraded.
type Reason struct {
	What    string
	Since   time.Time
	Message string
	Fields  []zap.Field // not to be changed
}

// Now returns what is degraded, the longest first.
func Now() (all []Reason) {
	now.mu.Lock()
	parts := make([]*Part, 0, len(now.parts))
	for p := range now.parts {
		parts = append(parts, p)
	}
	now.mu.Unlock()
	for _, p := range parts {
		p.mu.Lock()
		if !p.since.IsZero() {
			all = append(all, Reason{p.what, p.since, p.reason.message, p.reason.fields})
		}
		p.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b Reason) int { return a.Since.Compare(b.Since) })
	return all
}

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
	p.since, p.reason = time.Now(), reason{message, slices.Clone(fields)}
	degraded.WithLabelValues(p.what).Inc()
	now.mu.Lock()
	if now.parts == nil {
		now.parts = make(map[*Part]struct{})
	}
	now.parts[p] = struct{}{}
	now.mu.Unlock()
	p.mu.Unlock()
	p.tell(log.Warn, true, message, fields)
}

func (p *Part) tell(log func(string, ...zap.Field), begins bool, message string, fields []zap.Field) {
	fields = append(slices.Clip(fields), zap.String("degraded", p.what))
	log(message, fields...)
	for _, f := range changed {
		f(begins, message, fields)
	}
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
	p.tell(log.Info, false, message, append(slices.Clip(fields), zap.Duration("lasted", time.Since(since))))
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
	p.since, p.reason = time.Time{}, reason{}
	degraded.WithLabelValues(p.what).Dec()
	now.mu.Lock()
	delete(now.parts, p)
	now.mu.Unlock()
}
