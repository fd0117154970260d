package meter_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

func TestMetricsGoOnInTheNextRegistry(t *testing.T) {
	t.Parallel()
	c := meter.Counter("tries_total", "How often it was tried.", "listener")
	for range 2 { // configs
		registry := prometheus.NewRegistry()
		for range 2 { // handlers
			if err := meter.Register(registry, c); err != nil {
				t.Fatal(err)
			}
		}
		c.WithLabelValues("a").Inc()
	}
	want := `# HELP caddy_portgate_tries_total How often it was tried.
# TYPE caddy_portgate_tries_total counter
caddy_portgate_tries_total{listener="a"} 2
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestTwoMetricsOfOneNameAreRefused(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	if err := meter.Register(registry, meter.Gauge("size", "Bytes.", "list")); err != nil {
		t.Fatal(err)
	}
	if err := meter.Register(registry, meter.Gauge("size", "Bytes.", "listener")); err == nil {
		t.Error("registered a second one with other labels")
	}
}

// A registry is asked once, however many handlers of its config have the metrics, and again after an error.
func TestRegisteredOnce(t *testing.T) {
	t.Parallel()
	var registered meter.Registered
	calls := 0
	for _, registry := range []*prometheus.Registry{prometheus.NewRegistry(), prometheus.NewRegistry()} {
		failed := registered.In(registry, func() error { calls++; return errors.ErrUnsupported })
		if !errors.Is(failed, errors.ErrUnsupported) {
			t.Error(failed)
		}
		for range 3 {
			if err := registered.In(registry, func() error { calls++; return nil }); err != nil {
				t.Error(err)
			}
		}
	}
	if calls != 4 {
		t.Errorf("registered %d times", calls)
	}
}
