package degraded_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/portgate/caddy-portgate/modules/internal/degraded"
)

// gauge returns the metric as a scrape finds it.
func gauge(t *testing.T, what string) float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := degraded.Register(registry); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, metric := range families[0].GetMetric() {
		if families[0].GetName() == "caddy_portgate_degraded" && metric.GetLabel()[0].GetValue() == what {
			return metric.GetGauge().GetValue()
		}
	}
	return -1
}

func TestSaidOnceAndWhenItIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.DebugLevel)
		log := zap.New(core)
		p := degraded.New("test store")
		if n := gauge(t, "test store"); n != 0 || p.Is() {
			t.Errorf("at first: %v", n)
		}
		p.End(log, "store answers")
		for range 3 {
			p.Begin(log, "store does not answer, counting locally", zap.Error(errors.New("refused")))
		}
		if n := gauge(t, "test store"); n != 1 || !p.Is() {
			t.Errorf("while degraded: %v", n)
		}
		time.Sleep(time.Minute)
		for range 3 {
			p.End(log, "store answers")
		}
		if n := gauge(t, "test store"); n != 0 || p.Is() {
			t.Errorf("when it is over: %v", n)
		}
		all := logs.TakeAll()
		if len(all) != 2 {
			t.Fatalf("%d entries: %v", len(all), all)
		}
		if all[0].Level != zapcore.WarnLevel || all[0].ContextMap()["error"] != "refused" || all[0].ContextMap()["degraded"] != "test store" {
			t.Errorf("at first: %v", all[0])
		}
		if all[1].Level != zapcore.InfoLevel || all[1].ContextMap()["lasted"] != time.Minute {
			t.Errorf("when it is over: %v", all[1])
		}
		p.Begin(log, "again")
		if logs.Len() != 1 {
			t.Error("the second time was not said")
		}
	})
}

// Parts of a kind are counted together, and one that goes while it is degraded is not counted for ever.
func TestPartsThatGo(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	log := zap.New(core)
	parts := []*degraded.Part{degraded.New("test list"), degraded.New("test list"), degraded.New("test list")}
	for _, p := range parts {
		p.Begin(log, "damaged")
	}
	if n := gauge(t, "test list"); n != 3 {
		t.Errorf("%v", n)
	}
	parts[0].Close()
	parts[0].Close()
	parts[0].Begin(log, "damaged")
	parts[0].End(log, "well")
	parts[1].End(log, "well")
	if n := gauge(t, "test list"); n != 1 {
		t.Errorf("%v", n)
	}
	parts[2].Close()
	if n := gauge(t, "test list"); n != 0 {
		t.Errorf("%v", n)
	}
	var messages []string
	for _, entry := range logs.All() {
		messages = append(messages, entry.Message)
	}
	if want := []string{"damaged", "damaged", "damaged", "well"}; !slices.Equal(messages, want) {
		t.Errorf("%q", messages)
	}
	var none *degraded.Part
	none.Close()
}

func TestConcurrently(t *testing.T) {
	t.Parallel()
	p := degraded.New("test race")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				p.Begin(zap.NewNop(), "")
				p.End(zap.NewNop(), "")
			}
		})
	}
	wg.Wait()
	if n := gauge(t, "test race"); n != 0 {
		t.Errorf("%v", n)
	}
}
