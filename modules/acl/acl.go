// Package acl keeps unwanted clients out: the handler and the matcher that judge clients by their address, and the lists
// that they do it by, which may change at any time.
package acl

import (
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/fastpath"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
	"github.com/portgate/caddy-portgate/modules/internal/refusal"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

func init() {
	caddy.RegisterModule(new(Handler))
}

// Handler judges clients by their address: it calls the next handler for those that its rules allow. Addresses are compared
// without zones, and ::ffff:192.0.2.7 is 192.0.2.7. A client on a unix socket has no address: no rule has it.
type Handler struct {
	// Rules are tried in order; the first one that has the client decides.
	Rules []Rule `json:"rules,omitempty"`

	// Default is what happens to clients that no rule has: `allow` or `deny`. It must be stated where there are both
	// kinds of rules. Default: `allow` where there are only deny rules, `deny` where there are only allow rules.
	Default string `json:"default,omitempty"`

	// CountryDatabase is the path of a database in MaxMind's format that has countries. It is read again when it changes.
	CountryDatabase string `json:"country_database,omitempty"`

	// ASNDatabase is the path of a database in MaxMind's format that has autonomous systems. It is read again when it
	// changes.
	ASNDatabase string `json:"asn_database,omitempty"`

	// OnDeny is what happens to a connection that is denied. Default: `"close"`.
	//
	//   - `"close"`: it is closed
	//   - `"reset"`: it is reset
	//   - `"drop"`: it is closed without a word to the client. On TCP this needs the capability CAP_NET_ADMIN; without it, the
	//     connection is reset
	//   - `"tarpit", "30s"`: it is left open for so long without an answer, and then closed
	//   - `"respond", "text"`: the client is sent the text, of at most 1,024 bytes, and the connection is closed
	OnDeny []string `json:"on_deny,omitempty"`

	// Enforce says which sessions a change of a list closes: `all` closes living sessions within a second if their client
	// is denied now; `new` judges only clients that connect from now on. Default: `all`.
	Enforce string `json:"enforce,omitempty"`

	// OnDamaged is what happens if a dynamic list can't be read to its end when it is opened, as after a power cut: `start` goes
	// on with what can be read; `refuse` refuses the config. Default: `start`.
	OnDamaged string `json:"on_damaged,omitempty"`

	// TrustLayer4ProxyProtocol lets the handler stand behind caddy-l4's handler proxy_protocol, which believes a header from
	// anybody in v0.1.2: a client then chooses the address that it is judged by. It is for networks in which nobody but
	// load balancers can connect. Default: such a config is refused.
	TrustLayer4ProxyProtocol bool `json:"trust_layer4_proxy_protocol,omitempty"`

	rules     rules
	onDeny    refusal.Way
	scope     *session.Scope
	enforced  enforced
	undropped *degraded.Part // nil: drop is possible, or not wanted

	written string // the JSON that this handler was made of
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "layer4.handlers.acl",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision loads the lists, and begins to watch them for changes.
func (h *Handler) Provision(ctx caddy.Context) (err error) {
	defer func() { err = caddyfile.WithoutPasswords(err) }()
	at := placement.Find(ctx, "acl", h.written)
	h.written = "" // the finding has it, once for all that are alike
	if err := placement.CheckGuard(ctx, at, h.TrustLayer4ProxyProtocol); err != nil {
		return err
	}
	if err := collectors.register(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if h.onDeny, err = parseOnDeny(h.OnDeny); err != nil {
		return fmt.Errorf("on_deny: %w", err)
	}
	if h.onDeny.Action == refusal.Drop && !refusal.CanDrop() {
		h.undropped = degraded.New("acl_drop")
		h.undropped.Begin(logqueue.Logger(ctx), "on_deny drop needs the capability CAP_NET_ADMIN for TCP, denied clients are reset instead")
	}
	if err := h.rules.compile(ctx, config{h.Rules, h.Default, h.CountryDatabase, h.ASNDatabase, h.OnDamaged}); err != nil {
		return err
	}
	if h.scope, err = session.NewScope(ctx, 0, 0); err != nil {
		return err
	}
	h.scope.Hold("rule", h.rules.labels()...)
	if h.Enforce != enforceNew {
		h.enforced.open(ctx, &h.rules, at)
	}
	fastpath.Offer(ctx, at, h)
	return nil
}

// Handle passes the connection on, or denies it.
func (h *Handler) Handle(cx *layer4.Connection, next layer4.Handler) error {
	arrival := session.ArrivalOf(cx)
	if r := h.judge(arrival); !r.allow {
		h.deny(arrival, r).Wait() // layer4 closes the connection when this returns
		return nil
	}
	return next.Handle(cx)
}

// Serve is Handle for a connection that is only known by its addresses.
func (h *Handler) Serve(a *session.Arrival) (next bool) {
	r := h.judge(a)
	if !r.allow {
		h.deny(a, r)
	}
	return r.allow
}

// judge returns the rule that decides about the client. If the client is allowed, its session will know this handler.
func (h *Handler) judge(a *session.Arrival) *rule {
	edition := h.enforced.edition()
	r := h.rules.judge(a.Client.Addr())
	h.scope.Hold("listener", a.Listener)
	collectors.decisions.WithLabelValues(a.Listener, r.label, r.action()).Inc()
	if r.allow {
		h.enforced.admit(a, edition)
	}
	return r
}

// deny does with the connection what on_deny says.
func (h *Handler) deny(a *session.Arrival, r *rule) *refusal.Held {
	s := a.Begin(h.scope)
	s.SetRule(r.label)
	return refusal.Do(h.onDeny, a, s, session.End{Status: session.StatusDenied, Reason: session.ReasonDenied})
}

// Cleanup gives the lists back.
func (h *Handler) Cleanup() error {
	h.enforced.close()
	h.undropped.Close()
	if h.scope != nil {
		h.scope.Replaced()
	}
	return h.rules.close()
}

// Interface guards
var (
	_ caddy.Provisioner  = (*Handler)(nil)
	_ caddy.CleanerUpper = (*Handler)(nil)
	_ layer4.NextHandler = (*Handler)(nil)
	_ fastpath.Step      = (*Handler)(nil)
)
