package degraded_test

import (
	"errors"
	"slices"
	"strconv"
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

// What is degraded can be listed, with the reason, for as long as it is. Whoever wants to know is told when it begins and when it is over.
func TestDegradedNow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now := func() (all []degraded.Reason) {
			for _, reason := range degraded.Now() {
				if reason.What == "test of now" {
					all = append(all, reason)
				}
			}
			return all
		}
		first, second := degraded.New("test of now"), degraded.New("test of now")
		first.Begin(zap.NewNop(), "it does not answer", zap.String("host", "a"))
		time.Sleep(time.Minute)
		second.Begin(zap.NewNop(), "it does, but slowly")
		second.Begin(zap.NewNop(), "said twice")
		all := now()
		if len(all) != 2 || all[0].Message != "it does not answer" || all[0].Fields[0].String != "a" || time.Since(all[0].Since) != time.Minute ||
			all[1].Message != "it does, but slowly" || time.Since(all[1].Since) != 0 {
			t.Errorf("%+v", all)
		}
		first.End(zap.NewNop(), "it answers")
		second.Close()
		if all := now(); len(all) != 0 {
			t.Errorf("%+v", all)
		}
		mu.Lock()
		defer mu.Unlock()
		if want := []string{"true it does not answer", "true it does, but slowly", "false it answers"}; !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}

var (
	mu   sync.Mutex
	told []string // what OnChange has told of the test above
)

func init() {
	degraded.OnChange(func(begins bool, message string, fields []zap.Field) {
		if n := len(fields); fields[n-1].String == "test of now" || n > 1 && fields[n-2].String == "test of now" {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, strconv.FormatBool(begins)+" "+message)
		}
	})
}
