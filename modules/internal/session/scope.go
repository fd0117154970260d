package session

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/configs"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/global"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
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
	config   context.Context
	log      *zap.Logger
	metrics  *metrics
	drained  atomic.Bool  // DrainTimeout has passed
	values   meter.Values // that the config or a living session of it has
	sessions atomic.Int64 // living ones
	over     atomic.Bool  // the config has ended
	ending   sync.Mutex

	queue   int // entries that may wait for a destination of the log
	sampler sampler
}

// common is what the scopes of one config share: there may be one for each of thousands of handlers and listeners.
type common struct {
	log     *zap.Logger
	options global.Options
	err     error
	made    sync.Once

	mu     sync.Mutex
	scopes []*Scope
	over   bool                      // the config has ended
	held   map[caddy.Module]struct{} // what has routes, and its listeners held
	values meter.Values              // of these listeners
}

// commons are found by the channel that is closed with the config. Each goes with its config.
var commons sync.Map

func commonOf(ctx caddy.Context) (*common, error) {
	key := ctx.Done()
	known, loaded := commons.Load(key)
	if !loaded { // NewContext has made one that can be done, so this goes
		if known, loaded = commons.LoadOrStore(key, new(common)); !loaded {
			configs.Watch(ctx)
			context.AfterFunc(ctx.Context, func() {
				commons.Delete(key)
				known.(*common).end()
			})
		}
	}
	c := known.(*common)
	c.made.Do(func() {
		if c.options, c.err = global.Of(ctx); c.err == nil {
			c.log = accessLog(ctx, c.options.AccessLog.Queue)
		}
	})
	return c, c.err
}

// add has a scope end with the config.
func (c *common) add(sc *Scope) {
	c.mu.Lock()
	over := c.over
	if !over {
		c.scopes = append(c.scopes, sc)
	}
	c.mu.Unlock()
	if over {
		sc.end()
	}
}

// end is called when the config has ended.
func (c *common) end() {
	c.mu.Lock()
	c.over = true
	scopes := c.scopes
	c.scopes = nil
	c.values.Release()
	c.mu.Unlock()
	for _, sc := range scopes {
		sc.end()
	}
}

// holdListeners holds the listeners of the app or the site that a handler is provisioned for, once for all handlers.
func (c *common) holdListeners(ctx caddy.Context) {
	root := placement.RootOf(ctx)
	if root == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, held := c.held[root]; held || c.over {
		return
	}
	if c.held == nil {
		c.held = make(map[caddy.Module]struct{})
	}
	c.held[root] = struct{}{}
	c.values.Hold("listener", listenersOf(ctx)...)
}

// NewScope is called in Provision. It registers the metrics with the config's registry.
func NewScope(ctx caddy.Context, gracePeriod, drainTimeout time.Duration) (*Scope, error) {
	if err := collectors.register(ctx.GetMetricsRegistry()); err != nil {
		return nil, err
	}
	shared, err := commonOf(ctx)
	if err != nil {
		return nil, err
	}
	shared.holdListeners(ctx)
	sc := &Scope{
		GracePeriod:  gracePeriod,
		DrainTimeout: drainTimeout,
		config:       ctx.Context,
		log:          shared.log,
		metrics:      collectors,
		queue:        shared.options.AccessLog.Queue,
		sampler:      sampler{perSecond: shared.options.AccessLog.Sample},
	}
	shared.add(sc)
	return sc, nil
}

// end is called when the config has ended.
func (sc *Scope) end() {
	sc.over.Store(true)
	sc.forgetValues()
}

// listenersOf returns the listeners of the app that a handler is provisioned for. Those of gate networks are held by themselves.
func listenersOf(ctx caddy.Context) (all []string) {
	add := func(addr caddy.NetworkAddress) {
		if _, ok := gate.Parse(addr.Network); ok {
			return
		}
		for offset := range addr.PortRangeSize() {
			_, listener := gate.SessionOf(addr, offset)
			all = append(all, listener)
		}
	}
	for _, addr := range placement.SiteListens(ctx) {
		add(addr)
	}
	if app := placement.AppOf(ctx); app != nil {
		repl := caddy.NewReplacer()
		for _, server := range app.Servers {
			for _, listen := range server.Listen {
				if addr, err := caddy.ParseNetworkAddress(repl.ReplaceAll(listen, "")); err == nil { // else it is layer4's to refuse
					add(addr)
				}
			}
		}
	}
	return all
}

// Hold keeps the series with these values of a label, until the config has ended and its last session too. Whoever counts
// something by a listener, an upstream, a rule or a limit says so first: in Provision what the config has, so that an
// idle one keeps its values over reloads, and later what only a connection tells.
func (sc *Scope) Hold(label string, values ...string) {
	sc.values.Hold(label, values...)
	if sc.over.Load() {
		sc.forgetValues()
	}
}

// forgetValues gives back the label values of a config that has ended, unless a session lives.
func (sc *Scope) forgetValues() {
	sc.ending.Lock()
	defer sc.ending.Unlock()
	if sc.sessions.Load() == 0 {
		sc.values.Release()
	}
}

// begins is called for each session before it counts anything.
func (sc *Scope) begins(listener string) {
	sc.sessions.Add(1)
	sc.values.Hold("listener", listener)
	if sc.over.Load() { // forgetValues may have found no session just now
		sc.ending.Lock()
		defer sc.ending.Unlock()
		sc.values.Hold("listener", listener)
	}
}

// ends is called for each session when it has counted everything.
func (sc *Scope) ends() {
	if sc.sessions.Add(-1) == 0 && sc.over.Load() {
		sc.forgetValues()
	}
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
	if s.troubles != nil && len(s.troubles.failed) > 0 {
		fields = append(fields, zap.Strings("failed_upstreams", s.troubles.failed))
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
