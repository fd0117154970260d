package acl

import (
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

// metrics outlive the configs: they are made once and registered again with each config's registry.
type metrics struct {
	decisions   *prometheus.CounterVec
	entries     *prometheus.GaugeVec
	loaded      *prometheus.GaugeVec
	loadErrors  *prometheus.CounterVec
	storeErrors *prometheus.CounterVec
	badLines    *prometheus.GaugeVec
	damaged     *prometheus.GaugeVec
	maskedLines *prometheus.GaugeVec
	registered  meter.Registered

	mu    sync.Mutex
	lists map[string][]*list // by name
}

var collectors = &metrics{
	decisions:   meter.Counter("acl_decisions_total", "What access control lists have decided about clients, and by which rule.", "listener", "rule", "action"),
	entries:     meter.Gauge("acl_list_entries", "Entries of a list.", "list"),
	loaded:      meter.Gauge("acl_list_last_success_timestamp_seconds", "When a list was last loaded, or found to be unchanged.", "list"),
	loadErrors:  meter.Counter("acl_list_load_errors_total", "How often a list could not be loaded, so that its last good content stayed in use.", "list"),
	storeErrors: meter.Counter("acl_list_store_errors_total", "How often a list could not be stored. It was in force all the same.", "list"),
	badLines:    meter.Gauge("acl_list_bad_lines", "Lines of a list that are not understood, and left out.", "list"),
	damaged:     meter.Gauge("acl_list_damaged", "Whether what was stored of a list could not all be read; the log says what.", "list"),
	maskedLines: meter.Gauge("acl_list_masked_lines", "Lines of a list with bits set behind the prefix, which are taken as its network.", "list"),
	lists:       make(map[string][]*list),
}

func (m *metrics) register(registry *prometheus.Registry) error {
	return m.registered.In(registry, func() error {
		if err := degraded.Register(registry); err != nil {
			return err
		}
		return meter.Register(registry, m.decisions, m.entries, m.loaded, m.loadErrors, m.storeErrors, m.badLines, m.maskedLines, m.damaged)
	})
}

// use is called for each list. Several lists may have one name: URLs that differ in their query, a file that is both denied
// and allowed, or, during a reload that changes the interval, the old list and the new one.
func (m *metrics) use(l *list) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lists[l.name] = append(m.lists[l.name], l)
}

// forget removes a list that nobody uses any more.
func (m *metrics) forget(l *list) {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := slices.DeleteFunc(m.lists[l.name], func(other *list) bool { return other == l })
	if m.lists[l.name] = left; len(left) > 0 {
		return
	}
	delete(m.lists, l.name)
	for _, gauge := range []*prometheus.GaugeVec{m.entries, m.loaded, m.badLines, m.maskedLines, m.damaged} {
		gauge.DeleteLabelValues(l.name)
	}
	m.loadErrors.DeleteLabelValues(l.name)
	m.storeErrors.DeleteLabelValues(l.name)
}

// all returns the lists that are in use, in the order of their names.
func (m *metrics) all() []*list {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*list
	for _, name := range slices.Sorted(maps.Keys(m.lists)) {
		all = append(all, m.lists[name]...)
	}
	return all
}
