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

// The empty value of a label is none: the series of others have it, too, and go with their other values only.
func TestSeriesWithoutAValueStay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sw := newSweeper()
		vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sessions"}, []string{"listener", "upstream"})
		sw.sweep(vec, []string{"listener", "upstream"})
		gone, stays := &Values{sweeper: sw}, &Values{sweeper: sw}
		for listener, of := range map[string]*Values{":1": gone, ":2": stays} {
			of.Hold("listener", listener)
			vec.WithLabelValues(listener, "").Inc()
		}
		gone.Hold("upstream", "") // a session that had none
		gone.Release()
		time.Sleep(time.Hour)
		if n := testutil.CollectAndCount(vec); n != 1 {
			t.Errorf("%d series, want that of the listener which is still there", n)
		}
		stays.Release()
		time.Sleep(time.Hour)
		if n := testutil.CollectAndCount(vec); n != 0 {
			t.Errorf("%d series are left", n)
		}
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

// Values that are released one by one, as those of a list of upstreams, are removed together: each by itself would look through all the others,
// while sessions wait for the lock.
func TestValuesReleasedOneByOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sw, names := newSweeper(), 0
		sw.onGone("upstream", func(string) { names++ })
		vec := &looked{CounterVec: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sessions"}, []string{"upstream", "status"})}
		sw.sweep(vec, []string{"upstream", "status"})
		for i := range 2000 {
			v := labelValue{"upstream", fmt.Sprint(i)}
			for range 2 { // the second time it is among those that are to be removed
				sw.hold(v)
				vec.WithLabelValues(v.value, "200")
				vec.WithLabelValues(v.value, "502")
				time.Sleep(100 * time.Microsecond)
				sw.release(map[labelValue]struct{}{v: {}})
			}
		}
		sw.hold(labelValue{"upstream", "7"})
		sw.mu.Lock()
		if n := len(sw.departures); n != 1 {
			t.Errorf("%d departures", n)
		}
		sw.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := testutil.CollectAndCount(vec.CounterVec); n != 2 || names != 1999 || len(sw.gone)+len(sw.departures) > 0 {
			t.Errorf("%d series are left, %d values, %d departures; %d names were removed", n, len(sw.gone), len(sw.departures), names)
		}
		if vec.times != 1 {
			t.Errorf("went through all series %d times", vec.times)
		}
	})
}

// A source that has other upstreams each second does not fill the memory: those that have gone first are removed early.
func TestGoneValuesAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sw := newSweeper()
		gone := make(map[string]bool)
		sw.onGone("upstream", func(value string) { gone[value] = true })
		const each = maxGone / 4
		for round := range 12 {
			for i := range each {
				v := labelValue{"upstream", fmt.Sprint(round, " ", i)}
				sw.hold(v)
				sw.release(map[labelValue]struct{}{v: {}})
			}
			time.Sleep(together)
			synctest.Wait()
			sw.mu.Lock()
			n, first, last := len(sw.gone), gone["0 0"], gone[fmt.Sprint(round, " 0")]
			sw.mu.Unlock()
			if n > maxGone {
				t.Fatalf("round %d: %d values that nobody holds", round, n)
			}
			if last || round == 11 && !first {
				t.Errorf("round %d: removed: the first %t, the last %t", round, first, last)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		sw.mu.Lock()
		defer sw.mu.Unlock()
		if len(gone) != 12*each || len(sw.gone)+len(sw.departures) > 0 {
			t.Errorf("%d were removed, %d are left", len(gone), len(sw.gone))
		}
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
