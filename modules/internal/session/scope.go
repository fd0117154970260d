package session

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/global"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/recheck"
)

// Scope is what the sessions of one handler share.
type Scope struct {
	// GracePeriod is what a busy session is given when the process stops.
	GracePeriod time.Duration
	// DrainTimeout bounds the sessions of a config that was replaced. Zero is no bound.
	DrainTimeout time.Duration

	// config ends with the config. Of its caddy.Context no more is kept: a session that outlives its
	// config by days would keep all modules of it in memory.
	config  context.Context
	log     *zap.Logger
	metrics *metrics
	drained atomic.Bool // DrainTimeout has passed
	queue   int         // entries that may wait for a destination of the log
	sampler sampler
}

// NewScope is called in Provision. It registers the metrics with the config's registry.
func NewScope(ctx caddy.Context, gracePeriod, drainTimeout time.Duration) (*Scope, error) {
	if err := collectors.register(ctx.GetMetricsRegistry()); err != nil {
		return nil, err
	}
	options, err := global.Of(ctx)
	if err != nil {
		return nil, err
	}
	return &Scope{
		GracePeriod:  gracePeriod,
		DrainTimeout: drainTimeout,
		config:       ctx.Context,
		log:          accessLog(ctx, options.AccessLog.Queue),
		metrics:      collectors,
		queue:        options.AccessLog.Queue,
		sampler:      sampler{perSecond: options.AccessLog.Sample},
	}, nil
}

// Register makes the metrics part of the config's registry. NewScope does so too; a listener needs it where
// no handler of the config has a scope.
func Register(ctx caddy.Context) error { return collectors.register(ctx.GetMetricsRegistry()) }

// Replaced is called in Cleanup: the config of these sessions is no longer the running one. They go
// on, until DrainTimeout if that is set. Where no other config runs, the process stops, and they have
// GracePeriod instead.
func (sc *Scope) Replaced() {
	if caddy.ActiveContext().Context == nil {
		lastLog.Store(sc.log)
		return
	}
	if sc.DrainTimeout > 0 {
		time.AfterFunc(sc.DrainTimeout, sc.drain)
	}
	recheck.RequestAll() // by what the running config has
}

// drain closes the sessions, and has those closed that begin from now on: their connections were accepted
// before the config was replaced, and have waited for a matcher since.
func (sc *Scope) drain() {
	sc.drained.Store(true)
	living.each(func(s *Session) {
		if s.scope == sc {
			s.Close(ReasonDrain)
		}
	})
}

// accessLog returns the access log of a config. It never blocks.
func accessLog(ctx caddy.Context, queue int) *zap.Logger {
	return logqueue.WrapAccess(ctx.Logger(new(layer4.App)).Named("log.access"), queue)
}

// lastLog is the access log of the config that ran when the process began to stop.
var lastLog atomic.Pointer[zap.Logger]

// logger returns the access log of the session's config, or, once that was replaced, of the running
// one: what a session has to say belongs where the operator looks now.
func (sc *Scope) logger() *zap.Logger {
	if sc.config.Err() == nil {
		return sc.log
	}
	if running := caddy.ActiveContext(); running.Context != nil {
		return accessLog(running, sc.queue)
	}
	if last := lastLog.Load(); last != nil {
		return last
	}
	return sc.log
}

func (sc *Scope) logEnd(s *Session, e *End, duration time.Duration) {
	skipped, ok := sc.sampler.take(e, s.served(e), time.Now())
	if !ok {
		return
	}
	entry := sc.logger().Check(zap.InfoLevel, "session")
	if entry == nil {
		return
	}
	fields := make([]zap.Field, 0, 16)
	fields = append(fields,
		zap.Stringer("session_id", s.ID),
		zap.String("network", s.Network),
		zap.String("listener", s.Listener),
	)
	if s.Client.IsValid() {
		fields = append(fields,
			zap.Stringer("client_ip", s.Client.Addr()),
			zap.Uint16("client_port", s.Client.Port()),
		)
	}
	fields = append(fields,
		zap.String("upstream", s.upstreamAddr()),
		zap.Int64("bytes_up", s.up.counted),
		zap.Int64("bytes_down", s.down.counted),
	)
	if _, ok := s.mover.(DatagramMover); ok {
		fields = append(fields,
			zap.Int64("datagrams_up", s.datagramsUp),
			zap.Int64("datagrams_down", s.datagramsDown),
		)
	}
	fields = append(fields,
		zap.Duration("duration", duration),
		zap.Duration("connect_duration", e.Connect),
		zap.Int("status", e.Status),
		zap.String("reason", e.Reason),
	)
	if len(s.failed) > 0 {
		fields = append(fields, zap.Strings("failed_upstreams", s.failed))
	}
	if s.rule != "" {
		fields = append(fields, zap.String("rule", s.rule))
	}
	if skipped > 0 {
		fields = append(fields, zap.Int64("skipped", skipped))
	}
	if e.Err != nil {
		fields = append(fields, zap.NamedError("error", e.Err))
	}
	entry.Write(fields...)
}
