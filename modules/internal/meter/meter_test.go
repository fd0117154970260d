package meter_test

import (
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
