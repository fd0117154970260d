package acl

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics outlive the configs: they are made once and registered again with each config's registry.
type metrics struct {
	decisions  *prometheus.CounterVec
	entries    *prometheus.GaugeVec
	loaded     *prometheus.GaugeVec
	loadErrors *prometheus.CounterVec
}

const namespace, subsystem = "caddy", "portgate"

var collectors = &metrics{
	decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "acl_decisions_total",
		Help: "What access control lists have decided about clients, and by which rule.",
	}, []string{"listener", "rule", "action"}),
	entries: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "acl_list_entries",
		Help: "Entries of a list.",
	}, []string{"list"}),
	loaded: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "acl_list_last_success_timestamp_seconds",
		Help: "When a list was last loaded, or found to be unchanged.",
	}, []string{"list"}),
	loadErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "acl_list_load_errors_total",
		Help: "How often a list could not be loaded, so that its last good content stayed in use.",
	}, []string{"list"}),
}

// register makes the collectors part of a config's registry. Several handlers of one config share it.
func (m *metrics) register(registry *prometheus.Registry) error {
	for _, c := range []prometheus.Collector{m.decisions, m.entries, m.loaded, m.loadErrors} {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(c); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}

// forget removes a list that nobody uses any more.
func (m *metrics) forget(list string) {
	m.entries.DeleteLabelValues(list)
	m.loaded.DeleteLabelValues(list)
	m.loadErrors.DeleteLabelValues(list)
}
