package acl

import (
	"net/netip"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
)

func init() {
	caddy.RegisterModule(new(Matcher))
}

// Matcher matches the connections of clients that its rules allow. It needs no byte from the client.
type Matcher struct {
	// Rules are tried in order; the first one that has the client decides.
	Rules []Rule `json:"rules,omitempty"`

	// Default is what happens to clients that no rule has: `allow` or `deny`. It must be stated where there are both
	// kinds of rules. Default: `allow` where there are only deny rules, `deny` where there are only allow rules.
	Default string `json:"default,omitempty"`

	// CountryDatabase is the path of a database in MaxMind's format that has countries.
	CountryDatabase string `json:"country_database,omitempty"`

	// ASNDatabase is the path of a database in MaxMind's format that has autonomous systems.
	ASNDatabase string `json:"asn_database,omitempty"`

	// OnDamaged is what happens if a dynamic list can't be read to its end when it is opened, as after a power cut: `start` goes
	// on with what can be read; `refuse` refuses the config. Default: `start`.
	OnDamaged string `json:"on_damaged,omitempty"`

	// TrustLayer4ProxyProtocol lets the matcher stand behind caddy-l4's handler proxy_protocol, which believes a header from
	// anybody in v0.1.2: a client then chooses the address that it is judged by. It is for networks in which nobody but
	// load balancers can connect. Default: such a config is refused.
	TrustLayer4ProxyProtocol bool `json:"trust_layer4_proxy_protocol,omitempty"`

	rules rules
}

// CaddyModule returns the Caddy module information.
func (*Matcher) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "layer4.matchers.acl",
		New: func() caddy.Module { return new(Matcher) },
	}
}

// Provision loads the lists.
func (m *Matcher) Provision(ctx caddy.Context) (err error) {
	defer func() { err = caddyfile.WithoutPasswords(err) }()
	if err := collectors.register(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if err := placement.CheckMatcher(ctx, "acl", m.TrustLayer4ProxyProtocol); err != nil {
		return err
	}
	return m.rules.compile(ctx, config{m.Rules, m.Default, m.CountryDatabase, m.ASNDatabase, m.OnDamaged})
}

// Match tells whether the rules allow the client.
func (m *Matcher) Match(cx *layer4.Connection) (bool, error) {
	return m.rules.judge(clientOf(cx)).allow, nil
}

// clientOf returns the client's address; behind PROXY protocol it is what the header says. It is not valid where the
// client has none.
func clientOf(cx *layer4.Connection) netip.Addr {
	if addr, ok := cx.RemoteAddr().(interface{ AddrPort() netip.AddrPort }); ok {
		return addr.AddrPort().Addr()
	}
	return netip.Addr{}
}

// Cleanup gives the lists back.
func (m *Matcher) Cleanup() error { return m.rules.close() }

// Interface guards
var (
	_ caddy.Provisioner  = (*Matcher)(nil)
	_ caddy.CleanerUpper = (*Matcher)(nil)
	_ layer4.ConnMatcher = (*Matcher)(nil)
)
