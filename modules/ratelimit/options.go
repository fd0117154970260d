package ratelimit

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket/redis"
)

// What limits may be shared by.
const (
	perConnection = "connection"
	perIP         = "ip"
	perSubnet     = "subnet"
	perListener   = "listener"
	perAll        = "all"
)

// Directions of a bandwidth.
const (
	up   = "up"
	down = "down"
	both = "both"
)

// Algorithms.
const (
	tokenBucket = "token_bucket"
	leakyBucket = "leaky_bucket"
)

// Defaults of the options that have one other than zero.
const (
	defaultMaxDelay   = time.Second
	defaultIPv6Prefix = 64
	defaultMaxKeys    = 1_000_000
	defaultTimeout    = 20 * time.Millisecond
	defaultPrefix     = "portgate:"
)

// Bounds of options.
const (
	maxMaxDelay = time.Minute // whoever waits longer has given up
	maxMaxKeys  = 100_000_000 // 9 GB
	maxCount    = 1_000_000_000
	maxText     = 1024 // fits into the empty send buffer of a socket
	maxName     = 64
	maxTimeout  = 10 * time.Second
)

// Rate is a limit on connections or datagrams.
type Rate struct {
	// Rate is how many there may be, such as `100/s`; in s, m, h or d.
	Rate string `json:"rate,omitempty"`
	// Burst is how many may come at once. Default: as many as the rate has in its unit; with `leaky_bucket` 1.
	Burst *int `json:"burst,omitempty"`
	// Per is who shares the limit: `ip`, `subnet`, `listener`, `all`, for datagrams also `connection`, or a
	// placeholder. Default: `ip`.
	Per string `json:"per,omitempty"`
}

// Count is a limit on what there is at once.
type Count struct {
	// Max is how many there may be.
	Max int `json:"max,omitempty"`
	// Per is who shares the limit: `ip`, `subnet`, `listener`, `all` or a placeholder. Default: `ip`.
	Per string `json:"per,omitempty"`
}

// Bandwidth is a limit on bytes.
type Bandwidth struct {
	// Direction is `up`, from the client, `down`, to it, or `both` together.
	Direction string `json:"direction,omitempty"`
	// Rate is how many bytes may move, such as `10MB/s`; in s, m, h or d. `0` is no limit.
	Rate string `json:"rate,omitempty"`
	// Burst is how many bytes may move beyond the rate after a pause, such as `64KiB`. Default: those of a tenth of a
	// second.
	Burst string `json:"burst,omitempty"`
	// Per is who shares the limit: `connection`, `ip`, `subnet`, `listener`, `all` or a placeholder. Default: `connection`.
	Per string `json:"per,omitempty"`
}

// Store is where the limits are kept.
type Store struct {
	// Type is `memory` or `redis`. Default: `memory`.
	Type string `json:"type,omitempty"`
	// URL is that of a Redis server, such as `redis://user:password@host:6379/0`.
	URL string `json:"url,omitempty"`
	// Timeout bounds a decision in Redis. Default: 20ms.
	Timeout *caddy.Duration `json:"timeout,omitempty"`
	// Prefix begins all keys in Redis. Default: `portgate:`.
	Prefix string `json:"prefix,omitempty"`
	// OnError is what is decided while Redis can't be asked: `local`, by this machine alone, `allow` or `deny`.
	// Default: `local`.
	OnError string `json:"on_error,omitempty"`
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	rate_limit [<name>] {
//		connections <n>/<unit> [burst <n>] [per ip|subnet|listener|all|<placeholder>]
//		datagrams   <n>/<unit> [burst <n>] [per connection|ip|subnet|listener|all|<placeholder>]
//		concurrent  <n> [per ip|subnet|listener|all|<placeholder>]
//		bandwidth   up|down|both <size>/<unit> [burst <size>] [per connection|ip|subnet|listener|all|<placeholder>]
//		algorithm   token_bucket|leaky_bucket
//		max_delay   <duration>
//		on_limit    close|reset|drop|respond [<text>]
//		ipv6_prefix <bits>
//		max_keys    <count>
//		store       memory
//		store       redis <url> {
//			timeout  <duration>
//			prefix   <text>
//			on_error local|allow|deny
//		}
//		dry_run
//		trust_layer4_proxy_protocol
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddycaddyfile.Dispenser) error {
	name := func(args []string) error {
		if len(args) > 1 {
			return fmt.Errorf("%q: expected one name", strings.Join(args, " "))
		}
		h.Name = args[0]
		return checkName(h.Name)
	}
	options := append(h.limitOptions(), h.storeOption(),
		value("algorithm", func(arg string) error {
			h.Algorithm = arg
			return caddyfile.OneOf(arg, tokenBucket, leakyBucket)
		}),
		duration("max_delay", &h.MaxDelay),
		caddyfile.Option{Name: "on_limit", Min: 1, Max: 2, Set: func(args []string) error {
			h.OnLimit = args
			return checkOnLimit(args)
		}},
		count("ipv6_prefix", &h.IPv6Prefix, 1, 128),
		count("max_keys", &h.MaxKeys, 1, maxMaxKeys),
		caddyfile.Flag("dry_run", &h.DryRun),
		caddyfile.Flag("trust_layer4_proxy_protocol", &h.TrustLayer4ProxyProtocol),
	)
	if err := caddyfile.Unmarshal(d, name, options...); err != nil {
		return err
	}
	if err := h.check(); err != nil {
		return caddyfile.WrapErr(d, err)
	}
	return nil
}

// limitOptions are the limits themselves.
func (h *Handler) limitOptions() []caddyfile.Option {
	rate := func(to *[]Rate, kind string) func([]string) error {
		return func(args []string) error {
			r := Rate{Rate: args[0]}
			err := words(args[1:], map[string]func(string) error{
				"burst": func(arg string) error {
					n, err := caddyfile.ParseCount(arg, 1, maxCount)
					r.Burst = &n
					return err
				},
				"per": func(arg string) error { r.Per = arg; return nil },
			})
			*to = append(*to, r)
			return cmp.Or(err, r.check(kind))
		}
	}
	return []caddyfile.Option{
		{Name: "connections", Min: 1, Max: 5, Repeat: true, Set: rate(&h.Connections, "connections")},
		{Name: "datagrams", Min: 1, Max: 5, Repeat: true, Set: rate(&h.Datagrams, "datagrams")},
		{Name: "concurrent", Min: 1, Max: 3, Repeat: true, Set: func(args []string) error {
			n, err := caddyfile.ParseCount(args[0], 1, maxCount)
			if err != nil {
				return err
			}
			c := Count{Max: n}
			err = words(args[1:], map[string]func(string) error{"per": func(arg string) error { c.Per = arg; return nil }})
			h.Concurrent = append(h.Concurrent, c)
			return cmp.Or(err, c.check())
		}},
		{Name: "bandwidth", Min: 1, Max: 6, Repeat: true, Set: func(args []string) error {
			b := Bandwidth{Direction: args[0]}
			if args = args[1:]; len(args) > 0 {
				b.Rate, args = args[0], args[1:]
			}
			err := words(args, map[string]func(string) error{
				"burst": func(arg string) error { b.Burst = arg; return nil },
				"per":   func(arg string) error { b.Per = arg; return nil },
			})
			h.Bandwidth = append(h.Bandwidth, b)
			return cmp.Or(b.check(), err) // what comes first may be what is missing
		}},
	}
}

// words reads pairs of a word and a value, in any order.
func words(args []string, set map[string]func(string) error) error {
	for ; len(args) > 0; args = args[2:] {
		to, known := set[args[0]]
		switch {
		case !known && len(set) == 1:
			return fmt.Errorf("%q: expected per", args[0])
		case !known:
			return fmt.Errorf("%q: expected burst or per, each once", args[0])
		case len(args) == 1:
			return fmt.Errorf("%s: expected 1 value", args[0])
		}
		if err := to(args[1]); err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		delete(set, args[0])
		if len(set) == 0 && len(args) > 2 {
			return fmt.Errorf("%q: expected no further value", args[2])
		}
	}
	return nil
}

func (h *Handler) storeOption() caddyfile.Option {
	s := new(Store)
	return caddyfile.Option{
		Name: "store", Min: 1, Max: 2,
		Set: func(args []string) error {
			h.Store = s
			s.Type = args[0]
			if len(args) == 2 {
				s.URL = args[1]
			}
			return s.check()
		},
		Block: []caddyfile.Option{
			duration("timeout", &s.Timeout),
			value("prefix", func(arg string) error { s.Prefix = arg; return nil }),
			value("on_error", func(arg string) error {
				s.OnError = arg
				return caddyfile.OneOf(arg, string(redis.Local), string(redis.Allow), string(redis.Deny))
			}),
		},
	}
}

func value(name string, set func(arg string) error) caddyfile.Option {
	return caddyfile.Option{Name: name, Min: 1, Max: 1, Set: func(args []string) error { return set(args[0]) }}
}

func duration(name string, to **caddy.Duration) caddyfile.Option {
	return value(name, func(arg string) error {
		parsed, err := caddyfile.ParseDuration(arg)
		*to = &parsed
		return err
	})
}

func count(name string, to **int, lo, hi int) caddyfile.Option {
	return value(name, func(arg string) error {
		n, err := caddyfile.ParseCount(arg, lo, hi)
		*to = &n
		return err
	})
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (h *Handler) UnmarshalJSON(data []byte) error {
	type options Handler
	h.written = string(data)
	return caddyfile.UnmarshalJSON(data, (*options)(h))
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (r *Rate) UnmarshalJSON(data []byte) error {
	type options Rate
	return caddyfile.UnmarshalJSON(data, (*options)(r))
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (c *Count) UnmarshalJSON(data []byte) error {
	type options Count
	return caddyfile.UnmarshalJSON(data, (*options)(c))
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (b *Bandwidth) UnmarshalJSON(data []byte) error {
	type options Bandwidth
	return caddyfile.UnmarshalJSON(data, (*options)(b))
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (s *Store) UnmarshalJSON(data []byte) error {
	type options Store
	return caddyfile.UnmarshalJSON(data, (*options)(s))
}

// Interface guards
var (
	_ caddycaddyfile.Unmarshaler = (*Handler)(nil)
	_ json.Unmarshaler           = (*Handler)(nil)
)
