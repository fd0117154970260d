package forward

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/forward/upstream/discovery"
)

func init() {
	caddy.RegisterModule(new(SRVUpstreams))
	caddy.RegisterModule(new(AUpstreams))
	caddy.RegisterModule(new(FileUpstreams))
}

const namespace = "layer4.upstreams"

// dynamicOption is a source of upstreams in a Caddyfile.
func (h *Handler) dynamicOption() caddyfile.Option {
	return caddyfile.Option{Name: "dynamic", Repeat: true, Unmarshal: func(d *caddycaddyfile.Dispenser) error {
		if !d.NextArg() {
			return d.Errf("dynamic: %w", errNoSource)
		}
		name := d.Val()
		if _, err := caddy.GetModule(namespace + "." + name); err != nil {
			return d.Errf("dynamic: %q: %w", name, errNoSource)
		}
		module, err := caddycaddyfile.UnmarshalModule(d, namespace+"."+name)
		if err != nil {
			return err
		}
		h.Dynamic = append(h.Dynamic, caddyconfig.JSONModuleObject(module, "source", name, nil))
		return nil
	}}
}

// SRVUpstreams has the servers that the SRV records of a name list. Their priorities become tiers, and their weights weights.
type SRVUpstreams struct {
	// Name is the name of the records, such as `_postgresql._tcp.example.com`.
	Name string `json:"name"`

	// Refresh is how long an answer is used at most, if its TTL is longer. At least 1s. Default: 30s.
	Refresh *caddy.Duration `json:"refresh,omitempty"`

	// Resolvers are the addresses of the name servers to ask, for the records and for the addresses of the servers. Without a port it is 53.
	// Default: those of `/etc/resolv.conf`, and the upstreams are names, which are looked up as others are.
	Resolvers []string `json:"resolvers,omitempty"`

	// GracePeriod is how long the last good answer is used while none comes. More than 0. Default: 24h.
	GracePeriod *caddy.Duration `json:"grace_period,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*SRVUpstreams) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: namespace + ".srv", New: func() caddy.Module { return new(SRVUpstreams) }}
}

// Source implements [discovery.Maker].
func (s *SRVUpstreams) Source() (made discovery.Made, err error) {
	if s.Name = known(s.Name); s.Name == "" {
		return made, fmt.Errorf("name: %w", errNoName)
	}
	source := &discovery.SRV{Name: s.Name}
	if source.Refresh, err = refreshOf(s.Refresh); err != nil {
		return made, err
	}
	if source.Resolver, err = resolverOf(s.Resolvers); err != nil {
		return made, err
	}
	made, err = madeOf(source, "srv "+s.Name, s.GracePeriod)
	made.Question, made.Whom = strings.ToLower(s.Name), strings.Join(source.Resolver.Servers, " ")
	return made, err
}

// UnmarshalCaddyfile sets up the source from Caddyfile tokens. Syntax:
//
//	srv <name> {
//		refresh      <duration>
//		resolvers    <address>...
//		grace_period <duration>
//	}
func (s *SRVUpstreams) UnmarshalCaddyfile(d *caddycaddyfile.Dispenser) error {
	return unmarshalSource(d, 1, "the name of the records", func(args []string) error {
		s.Name = args[0]
		return checkName(s.Name)
	}, refreshOption(&s.Refresh), resolversOption(&s.Resolvers), positive("grace_period", &s.GracePeriod))
}

// AUpstreams has each address of a name, its A and AAAA records, as an upstream.
type AUpstreams struct {
	// Name is the name of the records.
	Name string `json:"name"`

	// Port is that of all upstreams.
	Port int `json:"port"`

	// Refresh is how long an answer is used at most, if its TTL is longer. At least 1s. Default: 30s.
	Refresh *caddy.Duration `json:"refresh,omitempty"`

	// Resolvers are the addresses of the name servers to ask. Without a port it is 53. Default: those of `/etc/resolv.conf`.
	Resolvers []string `json:"resolvers,omitempty"`

	// GracePeriod is how long the last good answer is used while none comes. More than 0. Default: 24h.
	GracePeriod *caddy.Duration `json:"grace_period,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*AUpstreams) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: namespace + ".a", New: func() caddy.Module { return new(AUpstreams) }}
}

// Source implements [discovery.Maker].
func (a *AUpstreams) Source() (made discovery.Made, err error) {
	if a.Name = known(a.Name); a.Name == "" {
		return made, fmt.Errorf("name: %w", errNoName)
	}
	if a.Port < 1 || a.Port > 65535 {
		return made, fmt.Errorf(`port: "%d": expected a number from 1 to 65535`, a.Port)
	}
	source := &discovery.A{Name: a.Name, Port: uint16(a.Port)}
	if source.Refresh, err = refreshOf(a.Refresh); err != nil {
		return made, err
	}
	if source.Resolver, err = resolverOf(a.Resolvers); err != nil {
		return made, err
	}
	made, err = madeOf(source, fmt.Sprintf("a %s %d", a.Name, a.Port), a.GracePeriod)
	made.Question, made.Whom = fmt.Sprintf("%s %d", strings.ToLower(a.Name), a.Port), strings.Join(source.Resolver.Servers, " ")
	return made, err
}

// UnmarshalCaddyfile sets up the source from Caddyfile tokens. Syntax:
//
//	a <name> <port> {
//		refresh      <duration>
//		resolvers    <address>...
//		grace_period <duration>
//	}
func (a *AUpstreams) UnmarshalCaddyfile(d *caddycaddyfile.Dispenser) error {
	return unmarshalSource(d, 2, "the name of the records and a port", func(args []string) (err error) {
		a.Name = args[0]
		if err := checkName(a.Name); err != nil {
			return err
		}
		if a.Port, err = caddyfile.ParseCount(args[1], 1, 65535); err != nil {
			return fmt.Errorf("port: %w", err)
		}
		return nil
	}, refreshOption(&a.Refresh), resolversOption(&a.Resolvers), positive("grace_period", &a.GracePeriod))
}

// unmarshalSource is [caddyfile.Unmarshal] for a source with so many values, which are what it says.
func unmarshalSource(d *caddycaddyfile.Dispenser, values int, what string, set func(args []string) error, options ...caddyfile.Option) error {
	given := false
	err := caddyfile.Unmarshal(d, func(args []string) error {
		given = true
		if len(args) != values {
			return fmt.Errorf("%q: expected %s", strings.Join(args, " "), what)
		}
		return set(args)
	}, options...)
	if err == nil && !given {
		err = d.Errf("dynamic: expected %s", what)
	}
	return err
}

func refreshOption(to **caddy.Duration) caddyfile.Option {
	return value("refresh", func(arg string) error {
		parsed, err := caddyfile.ParseDuration(arg)
		*to = &parsed
		if err == nil && time.Duration(parsed) < discovery.MinRefresh {
			err = errRefresh(arg)
		}
		return err
	})
}

func resolversOption(to *[]string) caddyfile.Option {
	return caddyfile.Option{Name: "resolvers", Min: 1, Max: -1, Repeat: true, Set: func(args []string) error {
		*to = append(*to, args...)
		for _, arg := range args {
			if _, err := discovery.ParseServer(arg); err != nil && known(arg) == arg && !hasPlaceholder(arg) {
				return err
			}
		}
		return nil
	}}
}

// Interface guards
var (
	_ caddycaddyfile.Unmarshaler = (*SRVUpstreams)(nil)
	_ caddycaddyfile.Unmarshaler = (*AUpstreams)(nil)
	_ discovery.Maker            = (*SRVUpstreams)(nil)
	_ discovery.Maker            = (*AUpstreams)(nil)
	_ json.Unmarshaler           = (*SRVUpstreams)(nil)
	_ json.Unmarshaler           = (*AUpstreams)(nil)
)
