// Package ratelimit is the handler that limits how many connections a client opens in a time and has at once, and how many
// datagrams and bytes it moves in a time.
package ratelimit

import (
	"fmt"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/fastpath"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
	"github.com/portgate/caddy-portgate/modules/internal/refusal"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/state"
	"github.com/portgate/caddy-portgate/modules/internal/throttle"
	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

func init() {
	caddy.RegisterModule(new(Handler))
}

// Handler calls the next handler for a connection that all of its limits admit. A connection that one limit refuses is
// charged to none.
type Handler struct {
	// Name is what metrics and logs call the handler. Handlers with the same name share their limits, across servers and
	// reloads, and in Redis across machines. A handler without a name keeps its counts over a reload if it stays in the same
	// position.
	Name string `json:"name,omitempty"`

	// Connections limits how many connections come in a time.
	Connections []Rate `json:"connections,omitempty"`

	// Datagrams limits how many datagrams come in a time. Those that are too many are dropped.
	Datagrams []Rate `json:"datagrams,omitempty"`

	// Concurrent limits how many connections there are at once.
	Concurrent []Count `json:"concurrent,omitempty"`

	// Bandwidth limits how many bytes move in a time.
	Bandwidth []Bandwidth `json:"bandwidth,omitempty"`

	// Algorithm is what happens to connections that come too early: `token_bucket` refuses them, `leaky_bucket` holds
	// them until it is their turn, in the order in which they came. Default: `token_bucket`.
	Algorithm string `json:"algorithm,omitempty"`

	// MaxDelay is how long `leaky_bucket` may hold a connection; it refuses those that would have to wait longer.
	// At most 1m. Default: 1s.
	MaxDelay *caddy.Duration `json:"max_delay,omitempty"`

	// OnLimit is what happens to a connection that is refused. Default: `"close"`.
	//
	//   - `"close"`: it is closed
	//   - `"reset"`: it is reset
	//   - `"drop"`: the client is told nothing. On TCP this takes the capability CAP_NET_ADMIN; without it, it is `reset`
	//   - `"respond"`: the client is sent an HTTP response with status 429 and Retry-After, and the connection is closed
	//   - `"respond", "text"`: the client is sent the text, of at most 1,024 bytes, and the connection is closed
	OnLimit []string `json:"on_limit,omitempty"`

	// IPv6Prefix is how many bits of an IPv6 address tell clients apart. Default: 64.
	IPv6Prefix *int `json:"ipv6_prefix,omitempty"`

	// MaxKeys is how many clients have buckets of their own on this machine; each takes less than 96 bytes. When all buckets
	// are in use, further clients share some. Default: 1000000.
	MaxKeys *int `json:"max_keys,omitempty"`

	// Store is where connections and concurrent are kept. Default: in memory.
	Store *Store `json:"store,omitempty"`

	// DryRun decides, counts and logs everything, and refuses and delays nobody. Default: false.
	DryRun bool `json:"dry_run,omitempty"`

	// TrustLayer4ProxyProtocol lets the handler stand behind caddy-l4's handler proxy_protocol, which believes a header from
	// anybody in v0.1.2: a client then chooses the address that it is judged by. It is for networks in which nobody but
	// load balancers can connect. Default: such a config is refused.
	TrustLayer4ProxyProtocol bool `json:"trust_layer4_proxy_protocol,omitempty"`

	limits     limits
	ipv6Prefix int
	maxKeys    int
	buckets    *state.Ref[*buckets]
	settings   settings
	scope      *session.Scope
	log        *zap.Logger
	wouldLimit quiet
	inFront    bool // of an HTTP site

	written string // the JSON that this handler was made of
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "layer4.handlers.rate_limit",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision finds the handler's buckets, or makes them.
func (h *Handler) Provision(ctx caddy.Context) error {
	err := h.provision(ctx)
	if err != nil && h.Name != "" && checkName(h.Name) == nil {
		return fmt.Errorf("rate_limit %s: %w", h.Name, err)
	}
	return err
}

func (h *Handler) provision(ctx caddy.Context) error {
	if err := h.check(); err != nil {
		return err
	}
	at := placement.Find(ctx, "rate_limit", h.written)
	h.written = "" // the finding has it, once for all that are alike
	if err := placement.CheckGuard(ctx, at, h.TrustLayer4ProxyProtocol); err != nil {
		return err
	}
	if err := collectors.register(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	h.log = logqueue.Logger(ctx)
	h.ipv6Prefix, h.maxKeys = defaultIPv6Prefix, defaultMaxKeys
	if h.IPv6Prefix != nil {
		h.ipv6Prefix = *h.IPv6Prefix
	}
	if h.MaxKeys != nil {
		h.maxKeys = *h.MaxKeys
	}
	if h.action() == refusal.Drop && !refusal.CanDrop() {
		h.log.Warn("on_limit drop needs the capability CAP_NET_ADMIN for TCP, limited clients are reset instead")
	}
	h.inFront = placement.AppOf(ctx) == nil
	var err error
	if h.scope, err = session.NewScope(ctx, 0, 0); err != nil {
		return err
	}
	if h.buckets, err = h.acquire(ctx, at); err != nil {
		return err
	}
	if h.limits, err = h.compile(h.buckets.Value().id); err != nil {
		return err
	}
	h.scope.Hold("limit", h.limits.names()...)
	h.settings.limits, h.settings.log, h.settings.maxKeys = h.limits, h.log, h.maxKeys
	h.buckets.Value().use(&h.settings)
	if h.canServe() {
		fastpath.Offer(ctx, at, h)
	}
	return nil
}

// canServe reports whether the handler decides at once, and by addresses alone, as the fast path needs it.
func (h *Handler) canServe() bool {
	return h.Algorithm != leakyBucket && !h.onRedis() && !h.limits.dynamic()
}

// Handle calls the next handler, at once or when the turn of the connection has come, or refuses the connection.
func (h *Handler) Handle(cx *layer4.Connection, next layer4.Handler) error {
	v := &visitor{
		Arrival: session.ArrivalOf(cx),
		expand:  func(text string) string { return cx.Replacer().ReplaceAll(text, "") },
	}
	d, held, waiter := h.decide(v)
	if d.Refused {
		h.refuse(v, d).Wait() // layer4 closes the connection when this returns
		return nil
	}
	if waiter != nil && !h.waits(cx, v, waiter, held, &h.limits.arrivals[d.Limit]) {
		return nil
	}
	t := h.throttle(v, held)
	if t == nil {
		return next.Handle(cx)
	}
	v.Throttle(t)
	if h.inFront || h.limits.moving() {
		cx.Conn = throttle.Wrap(cx.Conn, v.Network, t)
	}
	err := next.Handle(cx)
	if held != nil && !v.Begun() && !(h.inFront && wasGivenAway(err)) {
		held.release()
	}
	return err
}

// Serve is Handle for a connection that is only known by its addresses.
func (h *Handler) Serve(a *session.Arrival) (next bool) {
	v := &visitor{Arrival: a}
	d, held, _ := h.decide(v) // nobody waits where canServe is true
	if d.Refused {
		h.refuse(v, d)
		return false
	}
	if t := h.throttle(v, held); t != nil {
		a.Throttle(t)
	}
	return true
}

// decide asks the limits on arrivals, and counts their decision. The holding is to be released when the connection ends; it
// is nil if nothing is held. The waiter is nil if the connection need not wait.
func (h *Handler) decide(v *visitor) (bucket.Decision, *holding, *waiter) {
	if len(h.limits.arrivals) == 0 {
		return bucket.Decision{}, nil, nil
	}
	asked := questions.Get().(*[bucket.MaxRequests]bucket.Request)
	defer questions.Put(asked)
	requests := asked[:len(h.limits.arrivals)]
	counts := 0
	for i := range h.limits.arrivals {
		requests[i] = h.request(&h.limits.arrivals[i], v)
		if requests[i].Limit.Kind() == bucket.Count {
			counts++
		}
	}
	b := h.buckets.Value()
	store := b.store()
	d := store.Decide(now(), requests)
	var held *holding
	if !d.Refused && counts > 0 {
		held = newHolding(store, requests, counts)
	}
	if h.DryRun {
		d.Delay = 0
	}
	var w *waiter
	if d.Delay > 0 {
		if w = b.queue.join(store, requests); w == nil {
			held.release()
			d, held = bucket.Decision{Refused: true, Limit: d.Limit, Retry: d.Delay}, nil
		}
	}
	h.count(v, d)
	if d.Refused && h.DryRun {
		h.wouldRefuse(v, d)
		return bucket.Decision{}, nil, nil
	}
	return d, held, w
}

// questions are reused, so that a decision allocates nothing.
var questions = sync.Pool{New: func() any { return new([bucket.MaxRequests]bucket.Request) }}

// holding is what the limits on concurrent connections count for one connection.
type holding struct {
	store    bucket.Store
	requests []bucket.Request
	once     sync.Once
}

func newHolding(store bucket.Store, requests []bucket.Request, counts int) *holding {
	h := &holding{store: store, requests: make([]bucket.Request, 0, counts)}
	for i := range requests {
		if requests[i].Limit.Kind() == bucket.Count {
			h.requests = append(h.requests, requests[i])
		}
	}
	return h
}

// release ends the counting. It may be called more than once, also of nil.
func (h *holding) release() {
	if h != nil {
		h.once.Do(func() { h.store.Release(now(), h.requests) })
	}
}

// count adds the decision to the metrics: for each limit if all admit, else for the one that refuses.
func (h *Handler) count(v *visitor, d bucket.Decision) {
	h.scope.Hold("listener", v.Listener)
	counter := func(l *limit, result string) {
		collectors.decisions.WithLabelValues(v.Listener, l.name, result).Inc()
	}
	switch {
	case d.Failed && d.Refused:
		counter(&h.limits.arrivals[d.Limit], "failed")
	case d.Refused && h.DryRun:
		counter(&h.limits.arrivals[d.Limit], "dry_run")
	case d.Refused:
		counter(&h.limits.arrivals[d.Limit], "refused")
	default:
		for i := range h.limits.arrivals {
			if d.Delay > 0 && i == d.Limit {
				counter(&h.limits.arrivals[i], "delayed")
			} else {
				counter(&h.limits.arrivals[i], "admitted")
			}
		}
	}
}

// wouldRefuse logs a connection that passes because of dry_run.
func (h *Handler) wouldRefuse(v *visitor, d bucket.Decision) {
	if skipped, ok := h.wouldLimit.take(); ok {
		h.log.Info("would refuse", zap.String("limit", h.limits.arrivals[d.Limit].name), zap.String("listener", v.Listener),
			zap.Stringer("client_ip", v.Client.Addr()), zap.Int64("skipped", skipped))
	}
}

// Cleanup releases the buckets. They are kept if the new config has the handler too.
func (h *Handler) Cleanup() error {
	if h.scope != nil {
		h.scope.Replaced()
	}
	if h.buckets != nil {
		h.buckets.Value().leave(&h.settings)
	}
	if err := h.buckets.Release(); err != nil {
		return fmt.Errorf("rate_limit: %w", err)
	}
	return nil
}

// wasGivenAway tells by the error of a handler whether somebody else closes the connection now: the listener in front of an
// HTTP site gives it to that. The error has no name that could be compared with.
func wasGivenAway(err error) bool { return err != nil && err.Error() == "hijacked connection" }

// Interface guards
var (
	_ caddy.Provisioner  = (*Handler)(nil)
	_ caddy.CleanerUpper = (*Handler)(nil)
	_ layer4.NextHandler = (*Handler)(nil)
	_ fastpath.Step      = (*Handler)(nil)
)
