package forward

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

var errNoUpstream = errors.New("expected at least one upstream, such as 127.0.0.1:9000")

// Target is an upstream with options of its own.
type Target struct {
	// Address is where it is, in a form that To takes.
	Address string `json:"address"`

	// Weight is its share of the sessions, in proportion to the weights of others of its tier. 0: it gets no new sessions, and those that
	// it has go on. From 0 to 65535. Default: 1.
	Weight *int `json:"weight,omitempty"`

	// MaxConnections is how many sessions it has at once: of all handlers and configs that name it in the same way, those that still connect to it
	// included. It gets none while there are as many. From 0 to 1000000000. 0: no limit. Default: 0.
	MaxConnections *int `json:"max_connections,omitempty"`

	// Priority is its tier. The first one, 0, takes all sessions as long as 1.4 times the share of it that is not out reaches 1. What is
	// missing goes to the next. Tiers are numbered without a gap. From 0 to 100. Default: 0.
	Priority *int `json:"priority,omitempty"`

	// Backup is short for priority 1.
	Backup bool `json:"backup,omitempty"`

	// Zone is where it is. Upstreams of the zone that the app portgate names come first within a tier. Default: none.
	Zone string `json:"zone,omitempty"`

	// ProxyProtocol is what the option of the same name is for other upstreams: `v1`, `v2`, `v2 each`, `v2 first`, or `off` for no
	// header. Default: the handler's.
	ProxyProtocol string `json:"proxy_protocol,omitempty"`

	// TLS is how TLS is spoken with this upstream. Options that it does not have are those of the handler's. Default: the handler's.
	TLS *TLS `json:"tls,omitempty"`
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (t *Target) UnmarshalJSON(data []byte) error {
	type options Target
	return caddyfile.UnmarshalJSON(data, (*options)(t))
}

// set applies the options to an upstream of a gateway in a zone.
func (t *Target) set(u *upstream.Upstream, zone string) error {
	if t.Weight != nil {
		if *t.Weight < 0 || *t.Weight > upstream.MaxWeight {
			return fmt.Errorf(`weight: "%d": expected a whole number from 0 to %d`, *t.Weight, upstream.MaxWeight)
		}
		u.Weight, u.Drained = *t.Weight, *t.Weight == 0
	}
	if t.MaxConnections != nil {
		if *t.MaxConnections < 0 || *t.MaxConnections > upstream.MaxSessions {
			return fmt.Errorf(`max_connections: "%d": expected a whole number from 0 to %d`, *t.MaxConnections, upstream.MaxSessions)
		}
		u.MaxSessions = int64(*t.MaxConnections)
	}
	if t.Backup {
		u.Priority = 1
	}
	if t.Priority != nil {
		if *t.Priority < 0 || *t.Priority > upstream.MaxPriority {
			return fmt.Errorf(`priority: "%d": expected a whole number from 0 to %d`, *t.Priority, upstream.MaxPriority)
		}
		if t.Backup && *t.Priority != 1 {
			return fmt.Errorf(`priority: "%d": expected priority or backup, which is priority 1`, *t.Priority)
		}
		u.Priority = *t.Priority
	}
	u.Zone, u.Near = t.Zone, zone != "" && t.Zone == zone
	return nil
}

// upstreamOption is an upstream with options in a Caddyfile. add checks its address.
func (h *Handler) upstreamOption(add func(names []string) error) caddyfile.Option {
	last := func() *Target { return &h.Upstreams[len(h.Upstreams)-1] }
	count := func(name string, most int, of func(*Target) **int) caddyfile.Option {
		return value(name, func(arg string) error {
			n, err := caddyfile.ParseCount(arg, 0, most)
			*of(last()) = &n
			return err
		})
	}
	return caddyfile.Option{
		Name: "upstream", Min: 1, Max: 1, Values: "one address, such as 127.0.0.1:9000", Repeat: true,
		Set: func(args []string) error {
			h.Upstreams = append(h.Upstreams, Target{Address: args[0]})
			return add(args)
		},
		Block: []caddyfile.Option{
			count("weight", upstream.MaxWeight, func(t *Target) **int { return &t.Weight }),
			count("max_connections", upstream.MaxSessions, func(t *Target) **int { return &t.MaxConnections }),
			count("priority", upstream.MaxPriority, func(t *Target) **int { return &t.Priority }),
			{Name: "backup", Set: func([]string) error {
				last().Backup = true
				return nil
			}},
			value("zone", func(arg string) error {
				last().Zone = arg
				if arg == "" {
					return errors.New(`"": expected the name of a zone`)
				}
				return nil
			}),
			{Name: "proxy_protocol", Min: 1, Max: 2, Values: "v1, v2 or off, and for UDP each or first behind v2", Set: func(args []string) error {
				last().ProxyProtocol = strings.Join(args, " ")
				_, err := parseOwnPreface(last().ProxyProtocol)
				return err
			}},
			tlsOption(func() **TLS { return &last().TLS }),
		},
	}
}

// parseUpstreams reads the upstreams, those of To first. Placeholders that only a connection can fill in are read for each session.
func (h *Handler) parseUpstreams(zone string) ([]upstream.Upstream, error) {
	if len(h.To)+len(h.Upstreams)+len(h.Dynamic) == 0 {
		return nil, fmt.Errorf("to: %w", errNoUpstream)
	}
	upstreams := make([]upstream.Upstream, len(h.To)+len(h.Upstreams))
	repl, given := caddy.NewReplacer(), make(distinct)
	for i := range upstreams {
		u, t, option := &upstreams[i], Target{}, "to"
		if i < len(h.To) {
			t.Address = h.To[i]
		} else {
			t, option = h.Upstreams[i-len(h.To)], "upstream"
		}
		err := parseUpstream(repl, t.Address, u)
		if err == nil {
			err = given.add(u)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", option, err)
		}
		if err := t.set(u, zone); err != nil {
			return nil, fmt.Errorf("upstream: %q: %w", t.Address, err)
		}
	}
	if len(h.Dynamic) > 0 {
		return upstreams, nil // tiers may get their upstreams from there
	}
	return upstreams, upstream.CheckTiers(upstreams)
}

// part is the upstreams that one option has set.
type part struct {
	option string
	of     []upstream.Upstream
}

func (h *Handler) parts(upstreams []upstream.Upstream) [2]part {
	return [...]part{{"to", upstreams[:len(h.To)]}, {"upstream", upstreams[len(h.To):]}}
}

// checkTiers refuses upstreams that are wrong together.
func (h *Handler) checkTiers() error {
	upstreams := make([]upstream.Upstream, len(h.To)+len(h.Upstreams))
	for i := range h.Upstreams {
		t := &h.Upstreams[i]
		if err := t.set(&upstreams[len(h.To)+i], ""); err != nil {
			return fmt.Errorf("upstream: %q: %w", t.Address, err)
		}
	}
	if len(h.Dynamic) > 0 {
		return nil
	}
	return upstream.CheckTiers(upstreams)
}

func parseUpstream(repl *caddy.Replacer, name string, u *upstream.Upstream) error {
	known := repl.ReplaceKnown(name, "")
	u.Name, u.Dynamic = known, strings.Contains(known, "{")
	if u.Dynamic {
		return nil
	}
	addr, err := upstream.ParseExpanded(name, known)
	if err != nil && known != name {
		return fmt.Errorf("%q, which is %w", name, err)
	}
	u.Addr = addr
	return err
}

// distinct refuses an upstream that is there already: counts, metrics and weights belong to one.
type distinct map[any]struct{}

func (d distinct) add(u *upstream.Upstream) error {
	var key any = u.Name
	if !u.Dynamic {
		addr := u.Addr
		addr.Host = strings.ToLower(addr.Host)
		if ip, err := netip.ParseAddr(addr.Host); err == nil {
			addr.Host = ip.Unmap().String() // which may be written in several ways
		}
		if addr.Network == "unix" {
			addr.Host = u.Addr.Host
		}
		if addr.Network == "tcp" || addr.Network == "udp" {
			addr.Network = "" // that of the listener
		}
		key = addr
	}
	if _, twice := d[key]; twice {
		return fmt.Errorf("%q: given twice: expected it once; with a weight it gets more sessions", u.Name)
	}
	d[key] = struct{}{}
	return nil
}

// Interface guard
var _ json.Unmarshaler = (*Target)(nil)
