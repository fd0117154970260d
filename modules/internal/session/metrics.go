package session

import (
	"cmp"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/portgate/caddy-portgate/modules/internal/configs"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/events"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
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

	registered meter.Registered
}

// Sessions last from a refused dial to days; connects from a loopback to a timeout.
var (
	durationBuckets = []float64{.001, .01, .1, 1, 10, 60, 600, 3600, 86400}
	connectBuckets  = []float64{.0005, .001, .005, .01, .05, .1, .5, 1, 3, 10}
)

var collectors = &metrics{
	sessions:  meter.Counter("sessions_total", "Sessions that have ended.", "listener", "upstream", "status"),
	active:    meter.Gauge("sessions_active", "Sessions under way.", "listener"),
	bytes:     bytesMoved{meter.Counter("bytes_total", "Bytes moved by sessions: up from the client, down to it.", "listener", "upstream", "direction")},
	duration:  meter.Histogram("session_duration_seconds", "How long sessions lasted.", durationBuckets, "listener"),
	connect:   meter.Histogram("connect_duration_seconds", "What attempts to connect to an upstream took, those that failed included.", connectBuckets, "upstream"),
	datagrams: datagramsMoved{listeners.NewCollector()},
}

func (m *metrics) register(registry *prometheus.Registry) error {
	return m.registered.In(registry, func() error {
		for _, register := range []func(*prometheus.Registry) error{degraded.Register, logqueue.Register, configs.Register, events.Register, descriptors.Register} {
			if err := register(registry); err != nil {
				return err
			}
		}
		return meter.Register(registry, m.sessions, m.active, m.bytes, m.duration, m.connect, m.datagrams)
	})
}

// bytesMoved is a counter that is brought up to date whenever it is read, because a session may last for days.
// Moving a byte costs nothing for it.
type bytesMoved struct{ *prometheus.CounterVec }

// Collect implements [prometheus.Collector].
func (b bytesMoved) Collect(to chan<- prometheus.Metric) {
	living.count()
	b.CounterVec.Collect(to)
}

// datagramsMoved is brought up to date in the same way.
type datagramsMoved struct{ listeners.Collector }

// Collect implements [prometheus.Collector].
func (d datagramsMoved) Collect(to chan<- prometheus.Metric) {
	living.count()
	d.Collector.Collect(to)
}

// traffic is what one session adds to bytes_total in one direction.
type traffic struct {
	total   prometheus.Counter // nil before there is an upstream
	counted int64
}

// reach adds what is new since the last time, and returns how much that is.
func (t *traffic) reach(moved int64) (added int64) {
	if added = moved - t.counted; added <= 0 {
		return 0
	}
	t.total.Add(float64(added))
	t.counted = moved
	return added
}

func (m *metrics) traffic(listener, upstream string) (up, down prometheus.Counter) {
	return m.bytes.WithLabelValues(listener, upstream, "up"), m.bytes.WithLabelValues(listener, upstream, "down")
}

func (m *metrics) count(s *Session, e *End, duration time.Duration) {
	m.active.WithLabelValues(s.Listener).Dec()
	m.sessions.WithLabelValues(s.Listener, s.label, strconv.Itoa(e.Status)).Inc()
	m.duration.WithLabelValues(s.Listener).Observe(duration.Seconds())
	if e.Connected {
		m.connect.WithLabelValues(s.label).Observe(cmp.Or(s.dialed, e.Connect).Seconds())
	}
}
