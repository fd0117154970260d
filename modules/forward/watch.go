package forward

import (
	"net"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// watch is a handler's share in what is known of its upstreams.
type watch struct {
	memory *state.Ref[remembered]        // nil where nothing is remembered
	series map[string]*state.Ref[series] // by the upstream as configured
}

// remembered is the failures that all handlers with one policy share. It outlives their configs.
type remembered struct{ *upstream.Failures }

// Destruct has nothing to release.
func (remembered) Destruct() error { return nil }

var memories = state.NewPool[upstream.Policy, remembered]()

// series are the counters of an upstream. They go with the last handler that has it; what sessions add after that is not
// shown any more.
type series struct {
	name             string
	fails, ejections prometheus.Counter
}

// Destruct removes the series.
func (s series) Destruct() error {
	fails.DeleteLabelValues(s.name)
	ejections.DeleteLabelValues(s.name)
	return nil
}

var counters = state.NewPool[string, series]()

var (
	fails     = meter.Counter("upstream_fails_total", "Attempts to reach an upstream that have failed.", "upstream")
	ejections = meter.Counter("upstream_ejections_total", "Times that an address of an upstream was taken out, so that sessions try it last.", "upstream")
	ejected   = ejectedNow{meter.Desc("upstream_ejected", "Addresses of an upstream that are out now.", "upstream")}
)

// ejectedNow makes a metric of what is remembered, whenever it is read.
type ejectedNow struct{ desc *prometheus.Desc }

// Describe implements [prometheus.Collector].
func (e ejectedNow) Describe(to chan<- *prometheus.Desc) { to <- e.desc }

// Collect implements [prometheus.Collector].
func (e ejectedNow) Collect(to chan<- prometheus.Metric) {
	out := make(map[string]int)
	memories.Each(func(_ upstream.Policy, m remembered) bool {
		m.Out(func(name string, _ net.Addr) { out[name]++ })
		return true
	})
	counters.Each(func(name string, _ series) bool {
		to <- prometheus.MustNewConstMetric(e.desc, prometheus.GaugeValue, float64(out[name]), name)
		return true
	})
}

// begin is called in Provision. After an error end releases what there is.
func (w *watch) begin(ctx caddy.Context, policy upstream.Policy, upstreams []upstream.Upstream) (err error) {
	if err := meter.Register(ctx.GetMetricsRegistry(), fails, ejections, ejected); err != nil {
		return err
	}
	w.series = make(map[string]*state.Ref[series])
	for _, u := range upstreams {
		if w.series[u.Name] != nil {
			continue
		}
		w.series[u.Name], err = counters.Acquire(u.Name, func() (series, error) {
			return series{u.Name, fails.WithLabelValues(u.Name), ejections.WithLabelValues(u.Name)}, nil
		})
		if err != nil {
			return err
		}
	}
	if policy.MaxFails > 0 {
		w.memory, err = memories.Acquire(policy, func() (remembered, error) {
			return remembered{upstream.NewFailures(policy, time.Now, report)}, nil
		})
	}
	return err
}

func (w *watch) end() {
	_ = w.memory.Release()
	for _, ref := range w.series {
		_ = ref.Release()
	}
}

// failures returns nil where nothing is remembered.
func (w *watch) failures() *upstream.Failures {
	if w.memory == nil {
		return nil
	}
	return w.memory.Value().Failures
}

// attempted notes how an attempt to reach an upstream went. It does not block: event loops call it.
func (w *watch) attempted(sess *session.Session, name string, addr net.Addr, err error) {
	if err == nil {
		w.failures().Works(addr)
		return
	}
	sess.UpstreamFailed(name, addr)
	counts := w.series[name].Value()
	counts.fails.Inc()
	if w.failures().Failed(name, addr, err) {
		counts.ejections.Inc()
	}
}

// unresolved notes that an upstream has no address to try. The lookup is what is remembered then, not an address.
func (w *watch) unresolved(sess *session.Session, name string) {
	sess.UpstreamFailed(name, nil)
	w.series[name].Value().fails.Inc()
}

// report writes to the log of the running config that an address was taken out, or is back.
func report(c upstream.Change) {
	log := logqueue.Default("forward").With(zap.String("upstream", c.Name), zap.Stringer("address", c.Addr))
	if c.Out {
		log.Warn("upstream fails, sessions try others first", zap.Int("fails", c.Fails), zap.Duration("for", c.For), zap.Error(c.Err))
		return
	}
	log.Info("upstream is back", zap.Duration("was_out", c.For))
}
