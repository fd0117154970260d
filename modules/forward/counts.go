package forward

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// counts has the living sessions of each upstream, by its name as configured. All handlers share them. A session is counted from when
// its upstream was chosen, until another one is or the session ends.
// The series of an upstream stay as long as there is a count: neither those that a config has nor those of a living session go, and those of an
// upstream that is not discovered any more do, though the config goes on.
var counts = state.Tallies[string]{
	Begun: func(name string) { meter.Hold("upstream", name) },
	Over:  func(name string) { meter.Release("upstream", name) },
}

// drained is the metric of what was said at run time.
var drained = drainedNow{meter.Desc("upstream_drained", "1 while an upstream gets no new sessions because somebody has said so at run time.", "upstream")}

type drainedNow struct{ desc *prometheus.Desc }

// Describe implements [prometheus.Collector].
func (d drainedNow) Describe(to chan<- *prometheus.Desc) { to <- d.desc }

// Collect implements [prometheus.Collector].
func (d drainedNow) Collect(to chan<- prometheus.Metric) {
	shown.Range(func(key, _ any) bool {
		name, value := key.(string), 0.0
		if atRunTime.shut(name) {
			value = 1
		}
		to <- prometheus.MustNewConstMetric(d.desc, prometheus.GaugeValue, value, name)
		return true
	})
}

// living is the metric of the counts.
var living = livingNow{meter.Desc("upstream_sessions_active", "Living sessions of an upstream, those that still connect to it included.", "upstream")}

type livingNow struct{ desc *prometheus.Desc }

// Describe implements [prometheus.Collector].
func (l livingNow) Describe(to chan<- *prometheus.Desc) { to <- l.desc }

// Collect implements [prometheus.Collector].
func (l livingNow) Collect(to chan<- prometheus.Metric) {
	now := make(map[string]int64)
	counts.Each(func(name string, n int64) { now[name] = n })
	shown.Range(func(key, _ any) bool {
		name := key.(string)
		to <- prometheus.MustNewConstMetric(l.desc, prometheus.GaugeValue, float64(now[name]), name)
		return true
	})
}
