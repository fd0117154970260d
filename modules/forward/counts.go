package forward

import (
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// counts has the living sessions of each upstream, by its name as configured. All handlers share them. A session is counted from when
// its upstream was chosen, until another one is or the session ends.
var counts state.Tallies[string]

// counted is what a handler holds of them, by the position of the upstream in its pool.
type counted struct {
	of      []*session.Count
	release sync.Once
}

// begin is called in Provision.
func (c *counted) begin(upstreams []upstream.Upstream) {
	c.of = make([]*session.Count, len(upstreams))
	for i := range upstreams {
		c.of[i] = counts.Hold(upstreams[i].Name)
		upstreams[i].Living = c.of[i].Living()
	}
}

// end releases what begin holds. Sessions may go on, and begin.
func (c *counted) end() {
	c.release.Do(func() {
		for _, count := range c.of {
			count.Release()
		}
	})
}

// set says which upstream a session has now, and counts it there.
func (c *counted) set(sess *session.Session, walk *upstream.Walk, addr net.Addr) {
	name, _ := walk.Current()
	var count *session.Count
	if position := walk.Position(); position >= 0 {
		count = c.of[position]
	}
	sess.SetUpstream(name, addr, count)
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
