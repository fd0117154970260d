package session

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics outlive the configs: they are made once and registered again with each config's registry.
// Every label value comes from the config; none is, or depends on, a client's address.
type metrics struct {
	sessions *prometheus.CounterVec
	active   *prometheus.GaugeVec
	bytes    bytesMoved
	duration *prometheus.HistogramVec
	connect  *prometheus.HistogramVec

	datagrams datagramsMoved
}

const namespace, subsystem = "caddy", "portgate"

// Sessions last from a refused dial to days; connects from a loopback to a timeout.
var (
	durationBuckets = []float64{.001, .01, .1, 1, 10, 60, 600, 3600, 86400}
	connectBuckets  = []float64{.0005, .001, .005, .01, .05, .1, .5, 1, 3, 10}
)

var collectors = &metrics{
	sessions: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "sessions_total",
		Help: "Sessions that have ended.",
	}, []string{"listener", "upstream", "status"}),
	active: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "sessions_active",
		Help: "Sessions under way.",
	}, []string{"listener"}),
	bytes: bytesMoved{prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "bytes_total",
		Help: "Bytes moved by sessions: up from the client, down to it.",
	}, []string{"listener", "upstream", "direction"})},
	duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "session_duration_seconds",
		Help: "How long sessions lasted.", Buckets: durationBuckets,
	}, []string{"listener"}),
	connect: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "connect_duration_seconds",
		Help: "Time until an upstream was connected, attempts that failed included.", Buckets: connectBuckets,
	}, []string{"upstream"}),
	datagrams: newDatagramsMoved(),
}

// register makes the collectors part of a config's registry. Several handlers of one config share it.
func (m *metrics) register(registry *prometheus.Registry) error {
	for _, c := range []prometheus.Collector{m.sessions, m.active, m.bytes, m.duration, m.connect, m.datagrams} {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(c); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}

// bytesMoved is a counter that is brought up to date whenever it is read, because a session may last for days.
// Moving a byte costs nothing for it.
type bytesMoved struct{ *prometheus.CounterVec }

// Collect implements [prometheus.Collector].
func (b bytesMoved) Collect(to chan<- prometheus.Metric) {
	living.count()
	b.CounterVec.Collect(to)
}

// traffic is what one session adds to bytes_total in one direction.
type traffic struct {
	total   prometheus.Counter // nil before there is an upstream
	counted int64
}

// reach adds what is new since the last time.
func (t *traffic) reach(moved int64) {
	if moved > t.counted {
		t.total.Add(float64(moved - t.counted))
		t.counted = moved
	}
}

func (m *metrics) traffic(listener, upstream string) (up, down prometheus.Counter) {
	return m.bytes.WithLabelValues(listener, upstream, "up"), m.bytes.WithLabelValues(listener, upstream, "down")
}

func (m *metrics) count(s *Session, e *End, duration time.Duration) {
	m.active.WithLabelValues(s.Listener).Dec()
	m.sessions.WithLabelValues(s.Listener, s.label, strconv.Itoa(e.Status)).Inc()
	m.duration.WithLabelValues(s.Listener).Observe(duration.Seconds())
	if e.Connected {
		m.connect.WithLabelValues(s.label).Observe(e.Connect.Seconds())
	}
}
