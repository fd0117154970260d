// Package meter makes Prometheus metrics with the prefix caddy_portgate_. A metric is made once, as a package variable, and
// registered with the registry of each config that uses it, so its values outlive configs.
package meter

import (
	"errors"
	"sync/atomic"
	"weak"

	"github.com/prometheus/client_golang/prometheus"
)

const namespace, subsystem = "caddy", "portgate"

// Counter returns a counter for each combination of the labels.
func Counter(name, help string, labels ...string) *prometheus.CounterVec {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}, labels)
	swept.sweep(vec, labels)
	return vec
}

// Gauge returns a gauge for each combination of the labels.
func Gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	vec := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}, labels)
	swept.sweep(vec, labels)
	return vec
}

// Histogram returns a histogram for each combination of the labels. The buckets are upper bounds, in order.
func Histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	vec := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: namespace, Subsystem: subsystem, Name: name, Help: help, Buckets: buckets,
	}, labels)
	swept.sweep(vec, labels)
	return vec
}

// Desc describes a metric of a collector that computes its values when it is scraped.
func Desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, subsystem, name), help, labels, nil)
}

// Register adds the collectors to a config's registry. It may be called again for the same registry, by each handler of the
// config.
func Register(registry *prometheus.Registry, all ...prometheus.Collector) error {
	for _, c := range all {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(c); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}

// Registered remembers in which registry metrics are. A config may have thousands of handlers with the same metrics, and a registry
// describes and hashes each metric to find out that it has it. The zero value is ready to use.
type Registered struct {
	last atomic.Pointer[weak.Pointer[prometheus.Registry]]
}

// In calls register, unless it has succeeded for this registry just before.
func (r *Registered) In(registry *prometheus.Registry, register func() error) error {
	this := weak.Make(registry)
	if last := r.last.Load(); last != nil && *last == this {
		return nil
	}
	if err := register(); err != nil {
		return err
	}
	r.last.Store(&this)
	return nil
}
