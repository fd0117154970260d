package meter

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// A series goes within a minute after the last who holds one of its values, and comes back with zero.
func TestSeriesGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sw := newSweeper()
		vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sessions"}, []string{"listener", "upstream", "status"})
		sw.sweep(vec, []string{"listener", "upstream", "status"})
		count := func(listener, upstream string) { vec.WithLabelValues(listener, upstream, "200").Inc() }
		mustHave := func(want int) {
			t.Helper()
			if n := testutil.CollectAndCount(vec); n != want {
				t.Errorf("%d series, want %d", n, want)
			}
		}
		config, next, session := &Values{sweeper: sw}, &Values{sweeper: sw}, &Values{sweeper: sw}
		config.Hold("listener", ":1", ":2")
		config.Hold("upstream", "a", "b")
		config.Hold("upstream", "a")
		session.Hold("listener", ":2")
		session.Hold("upstream", "b")
		count(":1", "a")
		count(":2", "a")
		count(":2", "b")
		next.Hold("listener", ":1")
		next.Hold("upstream", "a")
		config.Release()
		config.Release()
		time.Sleep(time.Minute)
		mustHave(3)
		session.Release()
		time.Sleep(goneAfter / 2)
		mustHave(3)
		time.Sleep(time.Minute)
		mustHave(1)
		if n := testutil.ToFloat64(vec.WithLabelValues(":1", "a", "200")); n != 1 {
			t.Errorf("the one that stays is %v", n)
		}

		next.Release()
		time.Sleep(goneAfter - time.Second)
		next.Hold("listener", ":1") // in time
		next.Hold("upstream", "a")
		time.Sleep(time.Hour)
		mustHave(1)
		next.Release()
		time.Sleep(time.Minute)
		mustHave(0)
		synctest.Wait()
		if len(sw.holders)+len(sw.gone) > 0 {
			t.Errorf("left: %v, %v", sw.holders, sw.gone)
		}
		next.Hold("listener", ":1")
		count(":1", "a")
		if n := testutil.ToFloat64(vec.WithLabelValues(":1", "a", "200")); n != 1 {
			t.Errorf("the one that comes back is %v", n)
		}
		next.Release()
		time.Sleep(time.Minute)
	})
}

// However the times at which values go are spread, each goes in time.
func TestSeriesGoInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sw := newSweeper()
		gone := make(map[string]time.Time)
		sw.onGone("listener", func(value string) { gone[value] = time.Now() })
		released := make(map[string]time.Time)
		for i := range 100 {
			name, v := fmt.Sprint(i), &Values{sweeper: sw}
			v.Hold("listener", name)
			time.Sleep(time.Second)
			v.Release()
			released[name] = time.Now()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		for name, at := range released {
			if took := gone[name].Sub(at); took < goneAfter || took > time.Minute {
				t.Errorf("%s went after %v", name, took)
			}
		}
	})
}

// looked counts how often somebody goes through its series.
type looked struct {
	*prometheus.CounterVec
	times int
}

func (l *looked) Collect(to chan<- prometheus.Metric) {
	l.times++
	l.CounterVec.Collect(to)
}

// Where thousands of handlers go together, each with values of its own, nobody goes through all series for each value.
func TestSeriesGoTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sw := newSweeper()
		vec := &looked{CounterVec: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sessions"}, []string{"listener"})}
		sw.sweep(vec, []string{"listener"})
		stays := &Values{sweeper: sw}
		stays.Hold("listener", "stays")
		vec.WithLabelValues("stays")
		var all []*Values
		for i := range 1000 {
			v := &Values{sweeper: sw}
			v.Hold("listener", fmt.Sprint(i))
			vec.WithLabelValues(fmt.Sprint(i))
			all = append(all, v)
		}
		for _, v := range all {
			v.Release()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if vec.times != 1 {
			t.Errorf("went through all series %d times", vec.times)
		}
		if n := testutil.CollectAndCount(vec); n != 1 || len(sw.gone)+len(sw.departures) > 0 {
			t.Errorf("%d series are left, %d values and %d departures", n, len(sw.gone), len(sw.departures))
		}
		stays.Release()
		time.Sleep(time.Minute)
	})
}

func TestValuesConcurrently(t *testing.T) {
	t.Parallel()
	sw := newSweeper()
	v := &Values{sweeper: sw}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 200 {
				v.Hold("listener", fmt.Sprint(i%10))
				if i%50 == 0 {
					v.Release()
				}
			}
		})
	}
	wg.Wait()
	v.Release()
	sw.mu.Lock()
	defer sw.mu.Unlock()
	if len(sw.holders) != 0 {
		t.Errorf("%v", sw.holders)
	}
}

func BenchmarkHold(b *testing.B) {
	v := new(Values)
	v.Hold("listener", ":1")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			v.Hold("listener", ":1")
		}
	})
}
