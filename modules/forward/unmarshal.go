package forward

import (
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	forward [<upstream>...] {
//		to                 <upstream>...
//		upstream           <address> {
//			weight   <number>
//			max_connections <count>
//			priority <tier>
//			backup
//			zone     <name>
//			proxy_protocol v1|v2 [each|first]|off
//			tls [off] { ... }
//		}
//		dynamic            srv <name> | a <name> <port> | file <path> | url <url> {
//			refresh      <duration>
//			resolvers    <address>...
//			grace_period <duration>
//		}
//		lb_policy          round_robin|least_conn|random|random_choose <n>|first|ip_hash|hash <placeholder>
//		connect_timeout    <duration>
//		idle_timeout       <duration>
//		half_close_timeout <duration>
//		max_lifetime       <duration>
//		timeouts           strict
//		retries            <count>
//		lb_try_duration    <duration>
//		lb_try_interval    <duration>
//		queue              <count> <duration>
//		max_fails          <count>
//		fail_duration      <duration>
//		max_ejected        <percent>%
//		breaker            slow <ratio> <duration>|errors <ratio>|failures <count> {
//			window       <duration>
//			min_sessions <count>
//			open         <duration>
//			half_open    <count>
//		}
//		slow_start         <duration>
//		health_check       tcp | send <text> expect <regexp> | http <path> [<status>] | dns <name> | udp <hex> [expect <regexp>] {
//			interval <duration>
//			timeout  <duration>
//			fails    <count>
//			passes   <count>
//			port     <port>
//			host     <name>
//			tls      { ... }
//		}
//		on_unhealthy       keep|close
//		stale              <duration>
//		keepalive          <duration>
//		max_replies        <count>
//		max_reply_ratio    <ratio>
//		source             <address>...
//		proxy_protocol     v1|v2 [each|first]
//		tls {
//			server_name          <name>
//			ca                   <file>...
//			client_certificate   <certificate> <key>
//			insecure_skip_verify
//			alpn                 <protocol>...
//		}
//		preconnect         <count> {
//			max_idle <duration>
//		}
//		drain_timeout      <duration>
//		grace_period       <duration>
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddycaddyfile.Dispenser) error {
	given := make(distinct)
	add := func(names []string) error { return checkUpstreams(names, given) }
	upstreams := func(args []string) error {
		h.To = append(h.To, args...)
		return add(args)
	}
	options := slices.Concat([]caddyfile.Option{
		{Name: "to", Min: 1, Max: -1, Repeat: true, Set: upstreams},
		h.upstreamOption(add),
		h.dynamicOption(),
		{Name: "lb_policy", Min: 1, Max: 2, Values: "a policy, such as least_conn", Set: func(args []string) error {
			h.LBPolicy = strings.Join(args, " ")
			_, err := upstream.ParseBalance(h.LBPolicy)
			return err
		}},
	}, h.limitOptions(), h.waitOptions(), h.failOptions(), h.guardOptions(), h.healthOptions(), h.connectionOptions())
	if err := caddyfile.Unmarshal(d, upstreams, options...); err != nil {
		return err
	}
	if len(h.To)+len(h.Upstreams)+len(h.Dynamic) == 0 {
		return d.Errf("to: %w", errNoUpstream)
	}
	for _, check := range []func() error{h.checkTiers, h.checkWait, h.applyMeans, h.applyHealthCheck} {
		if err := check(); err != nil {
			return caddyfile.WrapErr(d, err)
		}
	}
	return nil
}

// limitOptions are how long things may take, and how often they are tried.
func (h *Handler) limitOptions() []caddyfile.Option {
	return []caddyfile.Option{
		positive("connect_timeout", &h.ConnectTimeout),
		duration("idle_timeout", &h.IdleTimeout),
		duration("half_close_timeout", &h.HalfCloseTimeout),
		duration("max_lifetime", &h.MaxLifetime),
		value("timeouts", func(arg string) error {
			h.Timeouts = arg
			return checkPreset(arg)
		}),
		value("retries", func(arg string) error {
			n, err := caddyfile.ParseCount(arg, 0, maxRetries)
			h.Retries = &n
			return err
		}),
	}
}

// failOptions are when upstreams that fail are tried last.
func (h *Handler) failOptions() []caddyfile.Option {
	return []caddyfile.Option{
		value("max_fails", func(arg string) error {
			n, err := caddyfile.ParseCount(arg, 0, maxMaxFails)
			h.MaxFails = &n
			return err
		}),
		positive("fail_duration", &h.FailDuration),
	}
}

// connectionOptions are how upstreams are connected to, what is said to them, and when sessions end.
func (h *Handler) connectionOptions() []caddyfile.Option {
	return []caddyfile.Option{
		duration("stale", &h.Stale),
		duration("keepalive", &h.KeepAlive),
		value("max_replies", func(arg string) error {
			n, err := caddyfile.ParseCount(arg, 0, maxMaxReplies)
			h.MaxReplies = &n
			return err
		}),
		value("max_reply_ratio", func(arg string) error {
			ratio, err := parseRatio(arg)
			h.MaxReplyRatio = &ratio
			return err
		}),
		{Name: "source", Min: 1, Max: -1, Repeat: true, Set: func(args []string) error {
			h.Source = append(h.Source, args...)
			return checkSourceArgs(args)
		}},
		{Name: "proxy_protocol", Min: 1, Max: 2, Values: "v1 or v2, and for UDP each or first behind it", Set: func(args []string) error {
			h.ProxyProtocol = strings.Join(args, " ")
			_, err := parsePreface(h.ProxyProtocol)
			return err
		}},
		tlsOption(func() **TLS { return &h.TLS }),
		h.preconnectOption(),
		duration("drain_timeout", &h.DrainTimeout),
		duration("grace_period", &h.GracePeriod),
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

// positive is a duration that must not be 0.
func positive(name string, to **caddy.Duration) caddyfile.Option {
	return value(name, func(arg string) error {
		parsed, err := caddyfile.ParseDuration(arg)
		*to = &parsed
		if err == nil && parsed == 0 {
			err = errNoTime(arg)
		}
		return err
	})
}

// Interface guard
var _ caddycaddyfile.Unmarshaler = (*Handler)(nil)
