package forward

import (
	"errors"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/forward/relay"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/events"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// guard is what keeps a handler's sessions from upstreams that fare badly: its options, and its share in what is known.
type guard struct {
	maxEjected float64
	terms      upstream.Terms // the zero Terms where there is no breaker
	slowStart  time.Duration

	breakers *state.Ref[guarded]
	release  func() // of the returns
}

// guardKey is what handlers have in common that share breakers.
type guardKey struct {
	upstream.Terms
	tls string // see [special.spoken]
}

// guarded is the breakers that all handlers with the same key share. It outlives their configs.
type guarded struct{ *upstream.Breakers }

// Destruct has nothing to release.
func (guarded) Destruct() error { return nil }

var breakers = state.NewPool[guardKey, guarded]()

// returns remembers which upstreams came back, for all handlers. Whoever takes something out says so when it is back: [upstream.Returns.Address] for an address,
// [upstream.Returns.Upstream] for an upstream as configured.
var returns = upstream.NewReturns(time.Now)

var (
	breakerStates = breakersNow{meter.Desc("upstream_breaker_state", "Addresses of an upstream whose breaker is in a state now.", "upstream", "state")}
	refusals      = meter.Counter("upstream_refusals_total", "Sessions that were refused before an upstream was tried.", "listener", "reason")
)

// begin is called in Provision. After an error end releases what there is.
func (g *guard) begin(tls string) (err error) {
	if g.slowStart > 0 {
		g.release = returns.Hold(g.slowStart)
	}
	if g.terms != (upstream.Terms{}) {
		g.breakers, err = breakers.Acquire(guardKey{g.terms, tls}, func() (guarded, error) {
			return guarded{upstream.NewBreakers(g.terms, time.Now, reportBreaker)}, nil
		})
	}
	return err
}

var errReset = errors.New("the upstream has reset the connection before its first byte")

func (g *guard) end() {
	_ = g.breakers.Release()
	if g.release != nil {
		g.release()
	}
}

// watched returns nil where there is no breaker.
func (g *guard) watched() *upstream.Breakers {
	if g.breakers == nil {
		return nil
	}
	return g.breakers.Value().Breakers
}

// trials begins those of a session, nil where there is no breaker.
func (g *guard) trials(sess *session.Session) *upstream.Trials {
	if g.breakers == nil {
		return nil
	}
	client := uint64(0)
	if sess.Client.IsValid() {
		client = upstream.HashIP(sess.Client.Addr())
	}
	return g.watched().Begin(client)
}

// set has a pool go by it.
func (g *guard) set(p *upstream.Pool) {
	p.MaxEjected, p.Breakers, p.SlowStart, p.Returns = g.maxEjected, g.watched(), g.slowStart, returns
}

// firstOf has the breaker hear of the first byte that comes from a session's upstream, nil where there is no breaker.
func (g *guard) firstOf(trials *upstream.Trials) *relay.First {
	if trials == nil {
		return nil
	}
	return &relay.First{Late: g.terms.Slow, Tell: func(waited time.Duration, ended relay.Reason) {
		switch ended {
		case "":
			trials.Answered(waited)
			return
		case relay.UpstreamReset:
			trials.Reset(waited, errReset)
		case relay.ClientFIN, relay.UpstreamFIN:
			trials.Ended(waited)
		default:
			trials.Left(waited)
		}
		trials.Over()
	}}
}

// breakersNow makes a metric of the states, whenever it is read.
type breakersNow struct{ desc *prometheus.Desc }

// Describe implements [prometheus.Collector].
func (b breakersNow) Describe(to chan<- *prometheus.Desc) { to <- b.desc }

// Collect implements [prometheus.Collector].
func (b breakersNow) Collect(to chan<- prometheus.Metric) {
	type series struct {
		name  string
		state upstream.BreakerState
	}
	now, used := make(map[series]int), false
	breakers.Each(func(_ guardKey, g guarded) bool {
		used = true
		g.NotClosed(func(name string, _ net.Addr, state upstream.BreakerState) { now[series{name, state}]++ })
		return true
	})
	if !used {
		return
	}
	shown.Range(func(key, _ any) bool {
		name := key.(string)
		for _, state := range []upstream.BreakerState{upstream.BreakerOpen, upstream.BreakerHalfOpen} {
			n := float64(now[series{name, state}])
			to <- prometheus.MustNewConstMetric(b.desc, prometheus.GaugeValue, n, name, state.String())
		}
		return true
	})
}

// reportBreaker writes to the log of the running config that the state of a breaker has changed. It does not block: event loops call it.
func reportBreaker(c upstream.BreakerChange) {
	log := logqueue.Default("forward")
	fields := []zap.Field{zap.String("upstream", c.Name), zap.Stringer("address", c.Addr), zap.Stringer("breaker", c.Terms.Cause)}
	switch c.State {
	case upstream.BreakerOpen:
		fields = append(fields, zap.Duration("for", c.Terms.Open))
		if c.Sessions > 0 {
			fields = append(fields, zap.Int("sessions", c.Sessions), zap.Int("bad", c.Bad))
		}
		if c.Err != nil {
			fields = append(fields, zap.Error(c.Err))
		}
		events.Report(log, events.BreakerOpen, events.Warn, "the breaker of an upstream is open, it gets no sessions", fields...)
	case upstream.BreakerHalfOpen:
		log.Info("the breaker of an upstream is half open, it is tried", append(fields, zap.Int("probes", c.Terms.HalfOpen))...)
	default:
		events.Report(log, events.BreakerClosed, events.Info, "the breaker of an upstream is closed, it gets sessions again", fields...)
		returns.Address(c.Addr)
	}
}
