package ratelimit

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

// metrics outlive the configs: they are made once and registered again with each config's registry.
// Every label value comes from the config; none is, or depends on, a client's address.
type metrics struct {
	decisions     *prometheus.CounterVec
	storeErrors   *prometheus.CounterVec
	storeDuration *prometheus.HistogramVec
	kept          keptMetrics
	registered    meter.Registered
}

// From a Redis on the same machine to the longest timeout.
var storeBuckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .02, .05, .1, 1, 10}

var collectors = &metrics{
	decisions:     meter.Counter("ratelimit_decisions_total", "What limits have decided.", "listener", "limit", "result"),
	storeErrors:   meter.Counter("ratelimit_store_errors_total", "Calls of Redis that have failed.", "name"),
	storeDuration: meter.Histogram("ratelimit_store_duration_seconds", "How long calls of Redis took.", storeBuckets, "name"),
	kept: keptMetrics{
		keys:    meter.Desc("ratelimit_keys", "Keys on this machine whose buckets are not full, or whose counts not zero.", "name"),
		open:    meter.Desc("ratelimit_store_breaker_open", "1 while Redis is not asked because it does not answer.", "name"),
		waiting: meter.Desc("ratelimit_waiting", "Connections that wait for their turn.", "name"),
	},
}

func (m *metrics) register(registry *prometheus.Registry) error {
	return m.registered.In(registry, func() error {
		return meter.Register(registry, m.decisions, m.storeErrors, m.storeDuration, m.kept)
	})
}

// keptMetrics are collected from the buckets when they are read. Handlers without a name are counted together.
type keptMetrics struct{ keys, open, waiting *prometheus.Desc }

// Describe implements [prometheus.Collector].
func (k keptMetrics) Describe(to chan<- *prometheus.Desc) {
	to <- k.keys
	to <- k.open
	to <- k.waiting
}

// Collect implements [prometheus.Collector].
func (k keptMetrics) Collect(to chan<- prometheus.Metric) {
	keys, waiting, open := make(map[string]int), make(map[string]int), make(map[string]float64)
	kept.Each(func(_ string, b *buckets) bool {
		keys[b.name] += b.memory.Len(now())
		waiting[b.name] += b.queue.len()
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
	for name, n := range waiting {
		to <- prometheus.MustNewConstMetric(k.waiting, prometheus.GaugeValue, float64(n), name)
	}
	for name, is := range open {
		to <- prometheus.MustNewConstMetric(k.open, prometheus.GaugeValue, is, name)
	}
}
