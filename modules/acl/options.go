package acl

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/refusal"
)

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	acl {
//		deny|allow <prefix>...
//		deny|allow file <path>
//		deny|allow url <url> [<interval>] [timeout <duration>]
//		deny|allow list <name>
//		deny|allow country <code>...
//		deny|allow asn <number>...
//		default          allow|deny
//		country_database <path>
//		asn_database     <path>
//		on_deny          close|reset|drop|tarpit <duration>|respond <text>
//		enforce          all|new
//		on_damaged       start|refuse
//		trust_layer4_proxy_protocol
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddycaddyfile.Dispenser) error {
	options := append(judgeOptions(&h.Rules, &h.Default, &h.CountryDatabase, &h.ASNDatabase, &h.OnDamaged, &h.TrustLayer4ProxyProtocol),
		caddyfile.Option{Name: "on_deny", Min: 1, Max: 2, Set: func(args []string) error {
			h.OnDeny = args
			_, err := parseOnDeny(args)
			return err
		}},
		value("enforce", func(arg string) error {
			h.Enforce = arg
			return caddyfile.OneOf(arg, enforceAll, enforceNew)
		}),
	)
	if err := caddyfile.Unmarshal(d, nil, options...); err != nil {
		return err
	}
	return checkSomething(d, h.Rules, h.Default)
}

// UnmarshalCaddyfile sets up the matcher from Caddyfile tokens. Syntax: that of the handler, without on_deny and enforce.
func (m *Matcher) UnmarshalCaddyfile(d *caddycaddyfile.Dispenser) error {
	err := caddyfile.Unmarshal(d, nil, judgeOptions(&m.Rules, &m.Default, &m.CountryDatabase, &m.ASNDatabase, &m.OnDamaged, &m.TrustLayer4ProxyProtocol)...)
	if err != nil {
		return err
	}
	return checkSomething(d, m.Rules, m.Default)
}

// judgeOptions are those by which a client is judged.
func judgeOptions(rules *[]Rule, fallback, countryDatabase, asnDatabase, onDamaged *string, trust *bool) []caddyfile.Option {
	path := func(name string, to *string) caddyfile.Option {
		return value(name, func(arg string) error {
			*to = arg
			return nil
		})
	}
	return []caddyfile.Option{
		{Name: deny, Min: 1, Max: -1, Repeat: true, Set: func(args []string) error {
			*rules = append(*rules, Rule{Deny: args})
			return checkRule(args)
		}},
		{Name: allow, Min: 1, Max: -1, Repeat: true, Set: func(args []string) error {
			*rules = append(*rules, Rule{Allow: args})
			return checkRule(args)
		}},
		value("default", func(arg string) error {
			*fallback = arg
			return caddyfile.OneOf(arg, allow, deny)
		}),
		path("country_database", countryDatabase),
		path("asn_database", asnDatabase),
		value("on_damaged", func(arg string) error {
			*onDamaged = arg
			return caddyfile.OneOf(arg, damagedStart, damagedRefuse)
		}),
		caddyfile.Flag("trust_layer4_proxy_protocol", trust),
	}
}

func value(name string, set func(arg string) error) caddyfile.Option {
	return caddyfile.Option{Name: name, Min: 1, Max: 1, Set: func(args []string) error { return set(args[0]) }}
}

// checkRule finds what can be found wrong before the placeholders are known.
func checkRule(values []string) error {
	if strings.Contains(strings.Join(values, ""), "{") {
		return nil
	}
	_, err := parseRule(values)
	return err
}

var errNothing = errors.New("expected at least one rule, or a default")

func checkSomething(d *caddycaddyfile.Dispenser, rules []Rule, fallback string) error {
	if len(rules) == 0 && fallback == "" {
		return d.Errf("acl: %w", errNothing)
	}
	return nil
}

// maxText bounds the text that a client gets, so that it fits into the empty send buffer of a socket, and into a datagram.
const maxText = 1024

func parseOnDeny(values []string) (refusal.Way, error) {
	if len(values) == 0 {
		return refusal.Way{Action: refusal.Close}, nil
	}
	way := refusal.Way{Action: refusal.Action(values[0])}
	nothing := func([]string) error { return nil }
	known, err := caddyfile.Choose(values,
		caddyfile.Option{Name: string(refusal.Close), Set: nothing},
		caddyfile.Option{Name: string(refusal.Reset), Set: nothing},
		caddyfile.Option{Name: string(refusal.Drop), Set: nothing},
		value(string(refusal.Tarpit), func(arg string) error {
			parsed, err := caddyfile.ParseDuration(arg)
			if way.Duration = time.Duration(parsed); err == nil && parsed == 0 {
				err = fmt.Errorf("%q: expected a duration of more than 0", arg)
			}
			return err
		}),
		value(string(refusal.Respond), func(arg string) error {
			if way.Text = []byte(arg); len(arg) > maxText {
				return fmt.Errorf("expected at most %d bytes", maxText)
			}
			return nil
		}),
	)
	if !known {
		err = caddyfile.OneOf(values[0], string(refusal.Close), string(refusal.Reset), string(refusal.Drop),
			string(refusal.Tarpit), string(refusal.Respond))
	}
	return way, err
}

// Which sessions a change of a list may close.
const (
	enforceAll = "all" // living sessions, too
	enforceNew = "new" // those that come from now on
)

// What happens if a dynamic list can't be read to its end.
const (
	damagedStart  = "start"
	damagedRefuse = "refuse"
)

// checkChoices refuses values that the options of handler and matcher don't have.
func checkChoices(fallback, onDamaged string) error {
	if fallback != "" {
		if err := caddyfile.OneOf(fallback, allow, deny); err != nil {
			return fmt.Errorf("default: %w", err)
		}
	}
	if onDamaged != "" {
		if err := caddyfile.OneOf(onDamaged, damagedStart, damagedRefuse); err != nil {
			return fmt.Errorf("on_damaged: %w", err)
		}
	}
	return nil
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (h *Handler) UnmarshalJSON(data []byte) error {
	type options Handler
	h.written = string(data)
	if err := caddyfile.UnmarshalJSON(data, (*options)(h)); err != nil {
		return err
	}
	if err := checkChoices(h.Default, h.OnDamaged); err != nil {
		return err
	}
	if h.Enforce != "" {
		if err := caddyfile.OneOf(h.Enforce, enforceAll, enforceNew); err != nil {
			return fmt.Errorf("enforce: %w", err)
		}
	}
	return nil
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (m *Matcher) UnmarshalJSON(data []byte) error {
	type options Matcher
	if err := caddyfile.UnmarshalJSON(data, (*options)(m)); err != nil {
		return err
	}
	return checkChoices(m.Default, m.OnDamaged)
}

// Interface guards
var (
	_ caddycaddyfile.Unmarshaler = (*Handler)(nil)
	_ caddycaddyfile.Unmarshaler = (*Matcher)(nil)
	_ json.Unmarshaler           = (*Handler)(nil)
	_ json.Unmarshaler           = (*Matcher)(nil)
)
