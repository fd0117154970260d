package acl

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

// metrics outlive the configs: they are made once and registered again with each config's registry.
type metrics struct {
	decisions  *prometheus.CounterVec
	entries    *prometheus.GaugeVec
	loaded     *prometheus.GaugeVec
	loadErrors *prometheus.CounterVec
}

var collectors = &metrics{
	decisions:  meter.Counter("acl_decisions_total", "What access control lists have decided about clients, and by which rule.", "listener", "rule", "action"),
	entries:    meter.Gauge("acl_list_entries", "Entries of a list.", "list"),
	loaded:     meter.Gauge("acl_list_last_success_timestamp_seconds", "When a list was last loaded, or found to be unchanged.", "list"),
	loadErrors: meter.Counter("acl_list_load_errors_total", "How often a list could not be loaded, so that its last good content stayed in use.", "list"),
}

func (m *metrics) register(registry *prometheus.Registry) error {
	return meter.Register(registry, m.decisions, m.entries, m.loaded, m.loadErrors)
}

// forget removes a list that nobody uses any more.
func (m *metrics) forget(list string) {
	m.entries.DeleteLabelValues(list)
	m.loaded.DeleteLabelValues(list)
	m.loadErrors.DeleteLabelValues(list)
}
