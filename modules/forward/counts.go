package forward

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// counts has the living sessions of each upstream, by its name as configured. All handlers share them. A session is counted from when
// its upstream was chosen, until another one is or the session ends.
var counts state.Tallies[string]

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
