package session

import (
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestMetrics(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	registry := newRegistry(t)
	s, m := begin(t, sc), newMover()
	s.SetMover(m)
	check := func(name string, labels map[string]string, want float64, wantSamples int) {
		t.Helper()
		labels["listener"] = s.Listener
		if got, samples := value(t, registry, "caddy_portgate_"+name, labels); got != want || samples != wantSamples {
			t.Errorf("%s%v is %v in %d samples, want %v in %d", name, labels, got, samples, want, wantSamples)
		}
	}
	check("sessions_active", map[string]string{}, 1, 1)
	check("sessions_total", map[string]string{}, 0, 0)
	check("bytes_total", map[string]string{}, 0, 0)

	s.SetUpstream("up:"+s.Listener, nil, nil)
	m.up.Store(3)
	m.down.Store(4)
	s.End(End{Status: StatusDone, Connected: true, Connect: time.Millisecond})
	up := map[string]string{"upstream": "up:" + s.Listener}
	check("sessions_active", map[string]string{}, 0, 1)
	check("sessions_total", map[string]string{"upstream": up["upstream"], "status": "200"}, 1, 1)
	check("sessions_total", map[string]string{}, 1, 1)
	check("session_duration_seconds", map[string]string{}, 1, 1)
	check("connect_duration_seconds", up, 1, 1)
	check("bytes_total", map[string]string{"direction": "up"}, 3, 1)
	check("bytes_total", map[string]string{"direction": "down"}, 4, 1)
}

func TestMetricsOfASessionThatWasNeverConnected(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	registry := newRegistry(t)
	s := begin(t, sc)
	label := "refused:" + s.Listener
	s.SetMover(newMover())
	s.SetUpstream(label, nil, nil)
	s.End(End{Status: StatusNoUpstream, Connect: time.Second, Err: errDial})
	for name, want := range map[string]float64{"sessions_total": 1, "bytes_total": 0, "connect_duration_seconds": 0} {
		if got, _ := value(t, registry, "caddy_portgate_"+name, map[string]string{"upstream": label}); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

// Several handlers of a config register the same metrics, and so does every config after it.
func TestRegisterAgain(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	registry := newRegistry(t)
	for range 10 {
		if err := collectors.register(registry); err != nil {
			t.Fatal(err)
		}
	}
	s := begin(t, sc)
	for range 10 {
		if n, samples := value(t, newRegistry(t), "caddy_portgate_sessions_active", map[string]string{"listener": s.Listener}); n != 1 || samples != 1 {
			t.Errorf("%v active in %d samples", n, samples)
		}
	}
}

// Whoever reads the counter, and however often: each byte is counted once.
func TestBytesGrowWhileASessionLives(t *testing.T) {
	t.Parallel()
	sc, logs, _ := newScope(t, 0, 0)
	first, second := newRegistry(t), newRegistry(t)
	s, m := begin(t, sc), newMover()
	s.SetMover(m)
	s.SetUpstream("a:1", nil, nil)
	check := func(up, down int64) {
		t.Helper()
		for _, registry := range []prometheus.Gatherer{first, second, first} {
			for direction, want := range map[string]int64{"up": up, "down": down} {
				labels := map[string]string{"listener": s.Listener, "upstream": "a:1", "direction": direction}
				if got, _ := value(t, registry, "caddy_portgate_bytes_total", labels); got != float64(want) {
					t.Errorf("%s: %v bytes, want %d", direction, got, want)
				}
			}
		}
	}
	check(0, 0)
	for step := range int64(5) {
		m.up.Store(step * 1000)
		m.down.Store(step)
		check(step*1000, step)
	}
	m.up.Store(4500)
	s.End(End{Status: StatusDone, Connected: true})
	check(4500, 4)
	fields := logs.All()[0].ContextMap()
	if fields["bytes_up"] != int64(4500) || fields["bytes_down"] != int64(4) {
		t.Errorf("the access log has %v", fields)
	}
}

// Only the upstream that was connected to in the end has moved anything.
func TestBytesBelongToTheLastUpstream(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	registry := newRegistry(t)
	s, m := begin(t, sc), newMover()
	s.SetMover(m)
	for _, label := range []string{"refuses:1", "refuses:1", "serves:2"} {
		s.SetUpstream(label, nil, nil)
		_, _ = value(t, registry, "caddy_portgate_bytes_total", nil)
	}
	m.up.Store(7)
	for label, want := range map[string]float64{"refuses:1": 0, "serves:2": 7} {
		labels := map[string]string{"listener": s.Listener, "upstream": label}
		if got, _ := value(t, registry, "caddy_portgate_bytes_total", labels); got != want {
			t.Errorf("%s: %v bytes, want %v", label, got, want)
		}
	}
}

// Bytes move, sessions end and new ones begin while the counter is read through the registries of two
// configs. It never goes back, and has every byte once in the end.
func TestBytesUnderConcurrency(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	const workers, sessions, steps = 4, 50, 100
	label := newLabel()
	labels := map[string]string{"upstream": label}

	var scraping, moving sync.WaitGroup
	done := make(chan struct{})
	for _, registry := range []prometheus.Gatherer{newRegistry(t), newRegistry(t)} {
		scraping.Go(func() {
			for last := 0.0; ; {
				got, _ := value(t, registry, "caddy_portgate_bytes_total", labels)
				if got < last {
					t.Errorf("%v after %v", got, last)
				}
				last = got
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for range workers {
		moving.Go(func() {
			for range sessions {
				s, m := beginOn(t, sc, label), newMover()
				s.SetMover(m)
				s.SetUpstream(label, nil, nil)
				for range steps {
					m.up.Add(1)
					m.down.Add(2)
				}
				s.End(End{Status: StatusDone, Connected: true})
			}
		})
	}
	moving.Wait()
	close(done)
	scraping.Wait()
	if got, _ := value(t, newRegistry(t), "caddy_portgate_bytes_total", labels); got != 3*workers*sessions*steps {
		t.Errorf("%v bytes, want %d", got, 3*workers*sessions*steps)
	}
}

// A scrape costs little for sessions that are idle: there may be many.
func BenchmarkScrapeIdleSessions(b *testing.B) {
	sc, _, _ := newScope(b, 0, 0)
	for range 10000 {
		s := beginOn(b, sc, "idle:1")
		s.SetMover(newMover())
		s.SetUpstream("idle:1", nil, nil)
	}
	for b.Loop() {
		living.count()
	}
}
