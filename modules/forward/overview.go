package forward

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portgate/caddy-portgate/modules/forward/relay"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/overview"
)

func init() {
	overview.TellMappings(mappings)
	if relay.HasLoops {
		overview.TellLag(relay.Lag)
	}
}

// mappings returns what the handlers forward. Of those of a config and of the next one which takes its place it has those of the next one.
func mappings() (all []overview.Mapping) {
	for _, of := range (listing{}).sources() {
		var upstreams []string
		for i := range of.roster.pool.Len() {
			upstreams = append(upstreams, of.roster.pool.At(i).Name)
		}
		for _, addr := range of.as.addresses {
			network, listener := gate.SessionOf(addr, 0)
			all = append(all, overview.Mapping{
				Network: network, Listener: listener, Ports: max(addr.PortRangeSize(), 1), Address: addressOf(addr, listener),
				Handler: "forward", Upstream: upstreams,
			})
		}
	}
	return all
}

// addressOf returns a listen address as sessions have it, and a range of ports as it is configured.
func addressOf(addr caddy.NetworkAddress, first string) string {
	if addr.PortRangeSize() <= 1 {
		return first
	}
	addr.Network = ""
	return addr.String()
}

// lagNow makes a metric of the lag, whenever it is read.
type lagNow struct{ desc *prometheus.Desc }

var eventLoopLag = lagNow{meter.Desc("event_loop_lag_seconds", "The longest time in the last 15 to 30 seconds that an event loop took for a turn.")}

// Describe implements [prometheus.Collector].
func (l lagNow) Describe(to chan<- *prometheus.Desc) { to <- l.desc }

// Collect implements [prometheus.Collector].
func (l lagNow) Collect(to chan<- prometheus.Metric) {
	if relay.HasLoops {
		to <- prometheus.MustNewConstMetric(l.desc, prometheus.GaugeValue, relay.Lag().Seconds())
	}
}
