package forward

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/events"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// watch is a handler's share in what is known of its upstreams.
type watch struct {
	memory *state.Ref[remembered] // nil where nothing is remembered
	outs   outs
}

// outs are the listeners for which all upstreams were out when the last session came. Each has its own: sessions of others may go to
// other ports of the upstreams, or send datagrams.
type outs struct {
	count atomic.Int32
	by    sync.Map // by outOf
}

type outOf struct{ network, listener string }

// memoryKey is what handlers have in common that share failures.
type memoryKey struct {
	upstream.Policy
	tls string // see [special.spoken]
}

// remembered is the failures that all handlers with one key share. It outlives their configs.
type remembered struct{ *upstream.Failures }

// Destruct has nothing to release.
func (remembered) Destruct() error { return nil }

var memories = state.NewPool[memoryKey, remembered]()

var (
	fails     = meter.Counter("upstream_fails_total", "Attempts to reach an upstream that have failed.", "upstream")
	ejections = meter.Counter("upstream_ejections_total", "Times that an address of an upstream was taken out, so that sessions try it last.", "upstream")
	ejected   = ejectedNow{meter.Desc("upstream_ejected", "Addresses of an upstream that are out now.", "upstream")}
)

var allOut = meter.Counter("upstreams_all_out_total", "Sessions for which all upstreams were out, so that one of them was tried all the same.", "listener")

// registered tells where these are registered.
var registered meter.Registered

// shown are the upstreams that have series. They go when nobody has held them for half a minute.
var shown sync.Map

func init() { meter.Forget("upstream", func(name string) { shown.Delete(name) }) }

// series returns the counters of an upstream. They are looked up each time, because they may have gone since the config ended.
func (w *watch) series(name string) (failed, takenOut prometheus.Counter) {
	if !counts.Has(name) { // a session that has begun long ago tries it: the series go soon
		meter.Hold("upstream", name)
		defer meter.Release("upstream", name)
	}
	shown.LoadOrStore(name, nil)
	return fails.WithLabelValues(name), ejections.WithLabelValues(name)
}

// ejectedNow makes a metric of what is remembered, whenever it is read.
type ejectedNow struct{ desc *prometheus.Desc }

// Describe implements [prometheus.Collector].
func (e ejectedNow) Describe(to chan<- *prometheus.Desc) { to <- e.desc }

// Collect implements [prometheus.Collector].
func (e ejectedNow) Collect(to chan<- prometheus.Metric) {
	out := make(map[string]int)
	memories.Each(func(_ memoryKey, m remembered) bool {
		m.Out(func(name string, _ net.Addr) { out[name]++ })
		return true
	})
	shown.Range(func(key, _ any) bool {
		name := key.(string)
		to <- prometheus.MustNewConstMetric(e.desc, prometheus.GaugeValue, float64(out[name]), name)
		return true
	})
}

// registerMetrics adds all metrics of the module to a config's registry.
func registerMetrics(registry *prometheus.Registry) error {
	return registered.In(registry, func() error {
		return meter.Register(registry, fails, ejections, ejected, lookups, localErrors, allOut, living, drained, ofSources, queued,
			keptTotal, keptReady, breakerStates, refusals, checksTotal, upstreamUp, eventLoopLag)
	})
}

// begin is called in Provision. After an error end releases what there is.
func (w *watch) begin(ctx caddy.Context, policy upstream.Policy, tls string) (err error) {
	if err := registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if policy.MaxFails > 0 {
		w.memory, err = memories.Acquire(memoryKey{policy, tls}, func() (remembered, error) {
			return remembered{upstream.NewFailures(policy, time.Now, report)}, nil
		})
	}
	return err
}

func (w *watch) end() { _ = w.memory.Release() }

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
	failed, takenOut := w.series(name)
	failed.Inc()
	if w.failures().Failed(name, addr, err) {
		takenOut.Inc()
	}
}

// unresolved notes that an upstream has no address to try. The lookup is what is remembered then, not an address.
func (w *watch) unresolved(sess *session.Session, name string) {
	sess.UpstreamFailed(name, nil)
	failed, _ := w.series(name)
	failed.Inc()
}

// chosen notes that a session's first upstream was chosen.
func (w *watch) chosen(sess *session.Session, walk *upstream.Walk) {
	out := walk.AllOut()
	if out {
		allOut.WithLabelValues(sess.Listener).Inc()
	}
	if !w.outs.changes(sess, out) {
		return
	}
	log := logqueue.Default("forward").With(zap.String("listener", sess.Listener))
	if out {
		log.Warn("all upstreams are out, so all are tried")
	} else {
		log.Info("an upstream is back, where all were out")
	}
}

// changes notes whether all upstreams are out for a session, and reports whether that was otherwise before. It costs as good as nothing
// while they are not.
func (o *outs) changes(sess *session.Session, out bool) bool {
	at := outOf{sess.Network, sess.Listener}
	if out {
		_, before := o.by.LoadOrStore(at, nil)
		if !before {
			o.count.Add(1)
		}
		return !before
	}
	if o.count.Load() == 0 {
		return false
	}
	_, before := o.by.LoadAndDelete(at)
	if before {
		o.count.Add(-1)
	}
	return before
}

// report writes to the log of the running config that an address was taken out, or is back.
func report(c upstream.Change) {
	log, fields := logqueue.Default("forward"), []zap.Field{zap.String("upstream", c.Name), zap.Stringer("address", c.Addr)}
	if c.Out {
		events.Report(log, events.UpstreamDown, events.Warn, "upstream fails, sessions try others first",
			append(fields, zap.Int("fails", c.Fails), zap.Duration("for", c.For), zap.Error(c.Err))...)
		return
	}
	events.Report(log, events.UpstreamUp, events.Info, "upstream is back", append(fields, zap.Duration("was_out", c.For))...)
	returns.Address(c.Addr)
}
