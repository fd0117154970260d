// Package forward is the handler that forwards a connection to an upstream.
package forward

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/forward/relay"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/fastpath"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/global"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

func init() {
	caddy.RegisterModule(new(Handler))
}

// Handler forwards connections to upstreams, byte for byte. It ends the route: a config with a handler behind it is
// refused. A FIN is passed on as a FIN and a reset as a reset, in each direction. If no upstream can be reached, the client
// is reset at once.
type Handler struct {
	// To lists the upstreams: `host:port`, `unix//path`, or `host:first-last` where every listen
	// address of the server is a range of as many ports. A session uses what a name
	// was last looked up to, and all these addresses are tried. If that is older than a second, the name is looked up again meanwhile.
	// Placeholders may stand for any part, but those of a connection can't turn a port into a range or into a unix socket. An upstream that is a listen
	// address of the server itself is refused.
	To []string `json:"to,omitempty"`

	// Upstreams lists upstreams with options of their own. They come behind those of To.
	Upstreams []Target `json:"upstreams,omitempty"`

	// Dynamic lists sources of further upstreams, which may change without a reload. Those that the config has come first; one that it has is
	// not taken from a source a second time. As long as nothing is known of any source, and there are no others, sessions wait for an upstream, for up to ConnectTimeout.
	Dynamic []json.RawMessage `json:"dynamic,omitempty" caddy:"namespace=layer4.upstreams inline_key=source"`

	// LBPolicy says how the upstream of a session is chosen among those of a tier: `round_robin` (in turn, by weight), `least_conn` (the
	// one with the fewest living sessions for its weight), `random` (by weight), `random_choose <n>` (of n that are drawn, the one with
	// the fewest living sessions for its weight; 2 to 64), `first` (in the config), `ip_hash` (by the client's address) or
	// `hash <placeholder>` (by a value of the connection). Default: `round_robin`.
	LBPolicy string `json:"lb_policy,omitempty"`

	// ConnectTimeout bounds one connection attempt, and how long a session waits for a name that was never looked up. Default: 3s.
	ConnectTimeout *caddy.Duration `json:"connect_timeout,omitempty"`

	// IdleTimeout ends a session in which no byte has moved either way for so long. 0: never.
	// Default: 10m, and 60s for UDP.
	IdleTimeout *caddy.Duration `json:"idle_timeout,omitempty"`

	// HalfCloseTimeout replaces the idle timeout once one side has finished. Default: 0, which
	// keeps the idle timeout.
	HalfCloseTimeout *caddy.Duration `json:"half_close_timeout,omitempty"`

	// MaxLifetime ends a session that lasts so long, busy or not. Default: 0, no limit.
	MaxLifetime *caddy.Duration `json:"max_lifetime,omitempty"`

	// Timeouts sets the four options above at once. The only preset is `strict`: connect 3s, idle
	// 60s, half-close 15s, lifetime 300s. An option that is given overrides it. Default: none.
	Timeouts string `json:"timeouts,omitempty"`

	// Retries is how many further upstreams are tried when one can't be reached, none twice.
	// From 0 to 100. Default: 2.
	Retries *int `json:"retries,omitempty"`

	// LBTryDuration is how long a session goes on trying upstreams when none could be reached: all of them again from the start, also those that
	// it has tried. An attempt that has begun in time is not cut short. 0: its client is reset. Default: 0.
	LBTryDuration *caddy.Duration `json:"lb_try_duration,omitempty"`

	// LBTryInterval is how long it waits before each further round. More than 0. It needs LBTryDuration. Default: 250ms.
	LBTryInterval *caddy.Duration `json:"lb_try_interval,omitempty"`

	// Queue has sessions wait while every upstream that is not out has as many as its MaxConnections. It needs one upstream at least that
	// has such a limit. Handlers that are alike share a queue, and a config that has the same handler goes on with it. Default: none,
	// sessions are refused then.
	Queue *Queue `json:"queue,omitempty"`

	// MaxFails is how many attempts to reach an upstream have to fail within FailDuration, until sessions try all others before
	// it. For UDP an attempt has failed when the upstream refuses a datagram. What has failed is known to all handlers with
	// the same MaxFails and FailDuration, and over reloads. From 0 to 1000. 0: each session finds out by itself. Default: 3.
	MaxFails *int `json:"max_fails,omitempty"`

	// FailDuration is how long an upstream that has failed MaxFails times is tried last. After that one session tries it: where
	// that fails, too, the time is doubled, up to 5m. More than 0. Default: 10s.
	FailDuration *caddy.Duration `json:"fail_duration,omitempty"`

	// MaxEjected is the share of the upstreams that get no sessions at most because they have failed MaxFails times: by number, of those of all tiers
	// whose weight is not 0, rounded down. The last one that is left is never taken out. From `1%` to `100%`. Default: `50%`.
	MaxEjected string `json:"max_ejected,omitempty"`

	// Breaker keeps sessions from an upstream at which too many are slow or fail. All handlers with the same options share what they find
	// out. Default: none.
	Breaker *Breaker `json:"breaker,omitempty"`

	// SlowStart is how long the share of an upstream grows that comes back: from a tenth to all of it. The policies `first`, `ip_hash` and `hash` have no
	// shares. Default: 0, it has all of it at once.
	SlowStart *caddy.Duration `json:"slow_start,omitempty"`
	// HealthCheck has upstreams checked without a session. An address that checks find down is tried last, as one that sessions have failed
	// to reach. An upstream whose address has a placeholder of the connection is not checked. Default: none.
	HealthCheck *HealthCheck `json:"health_check,omitempty"`

	// OnUnhealthy says what becomes of the sessions of an upstream that checks have found down: `keep`, they go on as long as they can, or
	// `close`. The client of a UDP session has another one, with another upstream, with its next datagram. Default: `keep`.
	OnUnhealthy string `json:"on_unhealthy,omitempty"`

	// Stale is how long the last good answer for a name is used while the name can't be looked up. 0: never; then a session waits
	// for a lookup unless there was one within the last second. That name servers say there is no such name counts after 30s, or after
	// Stale if that is shorter. Default: 24h.
	Stale *caddy.Duration `json:"stale,omitempty"`

	// KeepAlive is the silence after which a peer is asked whether it is still there (TCP keepalive);
	// it has gone when it leaves three such questions, a sixth of that time apart, unanswered.
	// 0: never. Default: 1m.
	KeepAlive *caddy.Duration `json:"keepalive,omitempty"`

	// MaxReplies ends a UDP session when the upstream has sent so many datagrams for each one of the client. With 1 a session
	// ends when all its DNS queries are answered. Refused if there is no UDP listen address. Default: 0, no limit.
	MaxReplies *int `json:"max_replies,omitempty"`

	// MaxReplyRatio makes a UDP port useless for floods to forged addresses: a client gets at most so many bytes for each byte
	// that it has sent, until it sends a datagram after a reply. Replies beyond that are dropped. Default: 0, no limit.
	MaxReplyRatio *float64 `json:"max_reply_ratio,omitempty"`

	// Source lists the addresses of this machine from which upstreams are connected to, in turn: those of the upstream's family. Each gives as
	// many UDP sessions as there are ports (net.ipv4.ip_local_port_range). Unix sockets have none. Default: none, the system chooses.
	Source []string `json:"source,omitempty"`

	// ProxyProtocol has upstreams told who the client is, in a header of the PROXY protocol in front of its first byte: `v1`, a line of
	// text, or `v2`, which is binary. Over UDP there is only `v2`, or `v2 each`, which is the same: the header is in front of the payload in
	// each datagram; with `v2 first` in the first one of a session, and in the first one to each further upstream. An upstream that does
	// not expect the header takes it for what the client sends. Default: none, upstreams see the address of this machine.
	ProxyProtocol string `json:"proxy_protocol,omitempty"`

	// TLS has the bytes of sessions go to upstreams in TLS. Refused where a listen address is of UDP. A session takes two goroutines then, and
	// neither splice nor the event loops. Default: none, bytes go to upstreams as they are.
	TLS *TLS `json:"tls,omitempty"`

	// Preconnect has connections to upstreams kept ready, so that sessions of TCP need not wait for them. It is only for protocols in which the
	// client speaks first: to a server that sends something before it is asked, none are kept. Refused where all listen addresses are of
	// UDP, and for upstreams that are a range of ports or have a placeholder of the connection. Default: none.
	Preconnect *Preconnect `json:"preconnect,omitempty"`

	// DrainTimeout ends the TCP sessions of a config that was replaced so long ago. Default: 0, they
	// may go on as long as they like. UDP sessions go on where the new config has an identical handler for
	// their listen address, and end at once where it has not.
	DrainTimeout *caddy.Duration `json:"drain_timeout,omitempty"`

	// GracePeriod is how long a busy session may go on when the process is told to stop. One in
	// which no byte has moved for a second is closed at once. Default: 10s.
	GracePeriod *caddy.Duration `json:"grace_period,omitempty"`

	limits         relay.Limits
	datagramLimits relay.Limits
	maxReplies     int
	maxReplyRatio  float64
	preface        preface
	special        special
	guard          guard
	checking       checking

	keepAlive    time.Duration
	stale        time.Duration
	retries      int
	policy       upstream.Policy
	balance      upstream.Balance
	drainTimeout time.Duration
	gracePeriod  time.Duration
	uncounted    uncounted
	tryDuration  time.Duration
	tryInterval  time.Duration

	at       *placement.Finding
	shownAs  *shownAs
	rosters  rosters
	queue    *queue // nil where nobody waits
	queueRef *state.Ref[*queue]
	dynamic  dynamic
	watch    watch
	sources  []netip.Addr
	from     *relay.Local
	ports    []portRange // of the listen addresses; nil where no upstream is a range
	scope    *session.Scope

	succession  succession
	listensUnix listensUnix

	written string // the JSON that this handler was made of
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "layer4.handlers.forward",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision sets up the handler. Cleanup releases what it acquires, but its sessions may go on.
func (h *Handler) Provision(ctx caddy.Context) (err error) {
	defer func() { err = caddyfile.WithoutPasswords(err) }()
	if err := h.applyDefaults(); err != nil {
		return err
	}
	at := placement.Find(ctx, "forward", h.written)
	h.written = "" // the finding has it, once for all that are alike
	if err := placement.Check(ctx, at); err != nil {
		return err
	}
	options, err := global.Of(ctx)
	if err != nil {
		return err
	}
	upstreams, err := h.parseUpstreams(options.Zone)
	if err != nil {
		return err
	}
	if h.sources, err = parseSources(h.Source); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if err := h.checkOptions(upstreams); err != nil {
		return err
	}
	placed, err := placement.Shared(at, func(at *placement.Finding) (placed, error) { return h.place(ctx, at, upstreams) })
	if err != nil {
		return err
	}
	h.at, h.shownAs, h.ports = at, placed.shown, placed.ports
	return h.begin(ctx, options, placed, upstreams)
}

// checkOptions refuses upstreams, of the config or discovered ones, that options of the handler don't go with.
func (h *Handler) checkOptions(upstreams []upstream.Upstream) error {
	if err := h.checkHealthCheck(upstreams); err != nil {
		return err
	}
	if err := checkSources(h.sources, upstreams); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	return nil
}

// begin acquires what the handler needs. After an error Cleanup releases what there is.
func (h *Handler) begin(ctx caddy.Context, options global.Options, placed placed, upstreams []upstream.Upstream) (err error) {
	h.from = relay.NewLocal(h.sources, noteLocal)
	h.checking.begin(h.sources, placed.shown)
	h.checking.tell(&h.special)
	h.listensUnix.begin(placed.unix)
	if h.scope, err = session.NewScope(ctx, h.gracePeriod, h.drainTimeout); err != nil {
		return err
	}
	h.uncounted.maxSessions, h.uncounted.reserve = options.MaxSessions, options.ReserveDescriptors
	if err := h.watch.begin(ctx, h.policy, h.special.spoken()); err != nil {
		return err
	}
	if err := h.guard.begin(h.special.spoken()); err != nil {
		return err
	}
	if err := h.special.begin(); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	handlers.add(h)
	if err := h.beginQueue(h.at.Canonical()); err != nil {
		return err
	}
	if err := h.dynamic.begin(ctx, h, upstreams, options.Zone, placed); err != nil {
		return err
	}
	if err := h.dynamic.start(h, upstreams); err != nil {
		return err
	}
	if err := h.succession.begin(h.at, h.at.Canonical(), placed.listen, h); err != nil {
		return err
	}
	if !h.needsConnection() { // placeholders need a layer4 connection
		fastpath.Offer(ctx, h.at, h)
	}
	return nil
}

// needsConnection reports whether sessions need a layer4 connection, which has the placeholders.
func (h *Handler) needsConnection() bool {
	return h.rosters.now.Load().pool.Dynamic() || h.balance.Method == upstream.Hash
}

// Handle forwards the connection. The session may go on when it has returned.
func (h *Handler) Handle(cx *layer4.Connection, _ layer4.Handler) error {
	sess, accepted := session.Begin(cx, h.scope), listeners.Accepted(cx)
	release, ok := h.uncounted.take(sess, accepted)
	if !ok {
		refuse(sess, accepted, session.StatusLimited, session.ReasonSessionLimit)
		return nil
	}
	defer release() // where the listener has not counted them, Run returns at the end
	now := h.rosters.now.Load()
	trip, ok := now.trip(sess, accepted)
	if !ok {
		refuse(sess, accepted, session.StatusLoop, session.ReasonLoop)
		return nil
	}
	begin := func(r *roster) *way { return h.way(sess, accepted, r) }
	if h.needsConnection() {
		begin = func(r *roster) *way { return h.way(sess, accepted, r).expandedBy(cx) }
	}
	told := h.tell(sess, cx, netip.AddrPort{})
	if gate.Datagrams(sess.Network) {
		h.datagrams(sess, detach(cx), told, trip, begin(now), begin).Run()
		return nil
	}
	conn, prefetched := unwrap(cx)
	h.relay(sess, begin(now), trip, conn, told, prefetched).Run()
	return nil
}

// Serve is Handle for a connection that is only known by its addresses.
func (h *Handler) Serve(a *session.Arrival) (next bool) {
	sess, conn, now := a.Begin(h.scope), a.Conn, h.rosters.now.Load()
	trip, ok := now.trip(sess, conn)
	if !ok {
		refuse(sess, conn, session.StatusLoop, session.ReasonLoop)
		return false
	}
	first, told := h.way(sess, conn, now), h.tell(sess, conn, a.Local)
	if gate.Datagrams(sess.Network) {
		start(h.datagrams(sess, conn, told, trip, first, func(r *roster) *way { return h.way(sess, conn, r) }), first)
	} else {
		start(h.relay(sess, first, trip, conn, told, nil), first)
	}
	return false
}

// start starts a relay. One that has to wait for a name waits in a goroutine of its own.
func start(r interface {
	Run()
	Start()
}, way *way,
) {
	if way.ready() {
		r.Start()
	} else {
		go r.Run()
	}
}

// Cleanup releases what Provision has acquired. TCP sessions go on, until DrainTimeout if that is set, and UDP sessions if
// the new config has an identical handler.
func (h *Handler) Cleanup() error {
	handlers.remove(h)
	h.dynamic.end()
	h.listensUnix.end()
	h.succession.end()
	h.rosters.end()
	h.special.end()
	h.guard.end()
	_ = h.queueRef.Release()
	h.watch.end()
	if h.scope != nil {
		h.scope.Replaced()
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner  = (*Handler)(nil)
	_ caddy.CleanerUpper = (*Handler)(nil)
	_ layer4.NextHandler = (*Handler)(nil)
	_ fastpath.Step      = (*Handler)(nil)
)
