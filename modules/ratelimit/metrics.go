package ratelimit

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics outlive the configs: they are made once and registered again with each config's registry.
// Every label value comes from the config; none is, or depends on, a client's address.
type metrics struct {
	decisions     *prometheus.CounterVec
	storeErrors   *prometheus.CounterVec
	storeDuration *prometheus.HistogramVec
	kept          keptMetrics
}

const namespace, subsystem = "caddy", "portgate"

// From a Redis on the same machine to the longest timeout.
var storeBuckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .02, .05, .1, 1, 10}

var collectors = &metrics{
	decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "ratelimit_decisions_total",
		Help: "What limits have decided.",
	}, []string{"listener", "limit", "result"}),
	storeErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "ratelimit_store_errors_total",
		Help: "Calls of Redis that have failed.",
	}, []string{"name"}),
	storeDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "ratelimit_store_duration_seconds",
		Help: "How long calls of Redis took.", Buckets: storeBuckets,
	}, []string{"name"}),
	kept: keptMetrics{
		keys: prometheus.NewDesc(prometheus.BuildFQName(namespace, subsystem, "ratelimit_keys"),
			"Keys on this machine whose buckets are not full, or whose counts not zero.", []string{"name"}, nil),
		open: prometheus.NewDesc(prometheus.BuildFQName(namespace, subsystem, "ratelimit_store_breaker_open"),
			"1 while Redis is not asked because it does not answer.", []string{"name"}, nil),
	},
}

// register makes the collectors part of a config's registry. Several handlers of one config share it.
func (m *metrics) register(registry *prometheus.Registry) error {
	for _, c := range []prometheus.Collector{m.decisions, m.storeErrors, m.storeDuration, m.kept} {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(c); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}

// keptMetrics are looked up when they are read. Handlers without a name are one.
type keptMetrics struct{ keys, open *prometheus.Desc }

// Describe implements [prometheus.Collector].
func (k keptMetrics) Describe(to chan<- *prometheus.Desc) {
	to <- k.keys
	to <- k.open
}

// Collect implements [prometheus.Collector].
func (k keptMetrics) Collect(to chan<- prometheus.Metric) {
	keys, open := make(map[string]int), make(map[string]float64)
	kept.Each(func(_ string, b *buckets) bool {
		keys[b.name] += b.memory.Len(now())
		if b.redis == nil {
			return true
		}
		keys[b.name] += b.redis.Held()
		open[b.name] += 0
		if b.redis.Open() {
			open[b.name] = 1
		}
		return true
	})
	for name, n := range keys {
		to <- prometheus.MustNewConstMetric(k.keys, prometheus.GaugeValue, float64(n), name)
	}
	for name, is := range open {
		to <- prometheus.MustNewConstMetric(k.open, prometheus.GaugeValue, is, name)
	}
}
