package forward

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/forward/upstream/check"
)

// Defaults and bounds of health checks.
const (
	defaultCheckInterval = 5 * time.Second
	defaultCheckTimeout  = 2 * time.Second
	defaultCheckFails    = 3
	defaultCheckPasses   = 2
	leastCheckInterval   = 50 * time.Millisecond
	maxCheckCount        = 1000
)

// HealthCheck says how upstreams are checked without a session.
type HealthCheck struct {
	// Type is `tcp` (an upstream passes that can be connected to), `send` (one that replies to a text as expected), `http` (one that
	// answers a GET request), `dns` (one that answers a question, over UDP where sessions send datagrams, else over TCP) or `udp` (one that
	// replies to a datagram as expected).
	Type string `json:"type"`

	// Send is the text that `send` sends: `\r`, `\n`, `\t`, `\\`, and `\x` with two hexadecimal digits stand for bytes. Default: none,
	// for servers that speak first.
	Send string `json:"send,omitempty"`

	// Payload is what `udp` sends, in hexadecimal digits. Default: an empty datagram.
	Payload string `json:"payload,omitempty"`

	// Expect is a regular expression that some of the reply has to match: for `send`, where it is required, as the reply comes in, up to
	// 16 KiB of it; for `udp` one datagram, in which `\xff` matches that byte. Default for `udp`: none. Then any reply passes, and so does
	// silence, unless the system is told that nobody listens (ICMP).
	Expect string `json:"expect,omitempty"`

	// Path is what `http` asks for, with a query if there is one. It is required there.
	Path string `json:"path,omitempty"`

	// Status are the status codes with which `http` passes: `200`, `2xx` or `200-399`. Default: `200-399`.
	Status string `json:"status,omitempty"`

	// Host is the Host header of `http`. Default: the host and port of the upstream.
	Host string `json:"host,omitempty"`

	// Name is what `dns` asks for, an A record. Every answer with NOERROR passes. It is required there.
	Name string `json:"name,omitempty"`

	// TLS has `tcp`, `send` and `http` speak TLS. What it leaves out is as in the handler's own TLS. Default: none.
	TLS *TLS `json:"tls,omitempty"`

	// Interval is the time from one check of an address to the next, a tenth more or less. At least 50ms. Default: 5s.
	Interval *caddy.Duration `json:"interval,omitempty"`

	// Timeout is how long one check may take, at most Interval. Default: 2s, or Interval if that is shorter.
	Timeout *caddy.Duration `json:"timeout,omitempty"`

	// Fails is how many checks in a row have to fail until the address is down. From 1 to 1000. Default: 3.
	Fails *int `json:"fails,omitempty"`

	// Passes is how many have to pass until it is up again. From 1 to 1000. Default: 2.
	Passes *int `json:"passes,omitempty"`

	// Port is what is checked in place of the upstream's own port. Default: none.
	Port *int `json:"port,omitempty"`
}

// The values of OnUnhealthy.
const (
	unhealthyKeep  = "keep"
	unhealthyClose = "close"
)

// UnmarshalJSON decodes the options and refuses unknown ones.
func (c *HealthCheck) UnmarshalJSON(data []byte) error {
	type options HealthCheck
	return caddyfile.UnmarshalJSON(data, (*options)(c))
}

// applyHealthCheck reads the options.
func (h *Handler) applyHealthCheck() error {
	if h.OnUnhealthy != "" {
		if err := caddyfile.OneOf(h.OnUnhealthy, unhealthyKeep, unhealthyClose); err != nil {
			return fmt.Errorf("on_unhealthy: %w", err)
		}
		if h.HealthCheck == nil {
			return fmt.Errorf("on_unhealthy: %q: expected a health_check, too", h.OnUnhealthy)
		}
	}
	if h.HealthCheck == nil {
		return nil
	}
	spec, err := h.HealthCheck.spec()
	if err != nil {
		return fmt.Errorf("health_check: %w", err)
	}
	talks := h.HealthCheck.Type == check.Send || h.HealthCheck.Type == check.HTTP
	if talks && h.special.tls && h.HealthCheck.TLS == nil && h.HealthCheck.Port == nil {
		return fmt.Errorf("health_check: %s: expected tls in its block, because sessions speak TLS with upstreams, or tls off", h.HealthCheck.Type)
	}
	h.checking.tls = nil
	if h.HealthCheck.TLS != nil {
		h.checking.tls = h.HealthCheck.TLS.over(h.TLS)
	}
	if spec.TLS, err = nameOf(h.checking.tls); err != nil {
		return fmt.Errorf("health_check: tls: %w", err)
	}
	if err := spec.Check(); err != nil {
		return fmt.Errorf("health_check: %s: %w", spec.Kind, err)
	}
	h.checking.spec, h.checking.closes = &spec, h.OnUnhealthy == unhealthyClose
	return nil
}

// nameOf tells options of TLS apart.
func nameOf(t *TLS) (string, error) {
	if t == nil {
		return "", nil
	}
	name, err := json.Marshal(t)
	return string(name), err
}

// checkOptions are the options of each type, beside those of all.
var checkOptions = map[string][]string{
	check.TCP: {"tls"}, check.Send: {"send", "expect", "tls"}, check.HTTP: {"path", "status", "host", "tls"},
	check.DNS: {"name"}, check.UDP: {"payload", "expect"},
}

// spec returns what to check, without what only the handler knows.
func (c *HealthCheck) spec() (spec check.Spec, err error) {
	if err := caddyfile.OneOf(c.Type, check.TCP, check.Send, check.HTTP, check.DNS, check.UDP); err != nil {
		return spec, fmt.Errorf("type: %w", err)
	}
	for _, option := range []struct {
		name  string
		given bool
	}{
		{"send", c.Send != ""},
		{"payload", c.Payload != ""},
		{"expect", c.Expect != ""},
		{"path", c.Path != ""},
		{"status", c.Status != ""},
		{"host", c.Host != ""},
		{"name", c.Name != ""},
		{"tls", c.TLS != nil},
	} {
		if option.given && !slices.Contains(checkOptions[c.Type], option.name) {
			return spec, fmt.Errorf("%s: expected none for a check of the type %s", option.name, c.Type)
		}
	}
	if err := c.TLS.check(); err != nil {
		return spec, fmt.Errorf("tls: %w", err)
	}
	spec.Probe = check.Probe{Kind: c.Type, Text: c.Send + c.Payload + c.Path + c.Name, Expect: c.Expect, Status: c.Status, Host: c.Host}
	if spec.Interval, spec.Timeout, err = c.times(); err != nil {
		return spec, err
	}
	for _, count := range []struct {
		name            string
		given           *int
		to              *int
		otherwise, most int
	}{
		{"fails", c.Fails, &spec.Fails, defaultCheckFails, maxCheckCount},
		{"passes", c.Passes, &spec.Passes, defaultCheckPasses, maxCheckCount},
	} {
		*count.to = count.otherwise
		if count.given != nil {
			*count.to = *count.given
		}
		if *count.to < 1 || *count.to > count.most {
			return spec, fmt.Errorf(`%s: "%d": expected a whole number from 1 to %d`, count.name, *count.to, count.most)
		}
	}
	if c.Port != nil {
		if *c.Port < 1 || *c.Port > 65535 {
			return spec, fmt.Errorf(`port: "%d": expected a whole number from 1 to 65535`, *c.Port)
		}
		spec.Port = uint16(*c.Port)
	}
	return spec, nil
}

func (c *HealthCheck) times() (interval, timeout time.Duration, err error) {
	interval = defaultCheckInterval
	override(&interval, c.Interval)
	if interval < leastCheckInterval {
		return 0, 0, fmt.Errorf("interval: %q: expected a duration of at least %s", interval, leastCheckInterval)
	}
	timeout = min(defaultCheckTimeout, interval)
	override(&timeout, c.Timeout)
	switch {
	case timeout <= 0:
		return 0, 0, fmt.Errorf("timeout: %w", errNoTime(timeout.String()))
	case timeout > interval:
		return 0, 0, fmt.Errorf("timeout: %q: expected at most the interval, which is %s", timeout, interval)
	}
	return interval, timeout, nil
}

// healthOptions are health checks in a Caddyfile.
func (h *Handler) healthOptions() []caddyfile.Option {
	c := func() *HealthCheck { return h.HealthCheck }
	count := func(name string, most int, to func() **int) caddyfile.Option {
		return value(name, func(arg string) error {
			n, err := caddyfile.ParseCount(arg, 1, most)
			*to() = &n
			return err
		})
	}
	timed := func(name string, to func() **caddy.Duration) caddyfile.Option {
		return value(name, func(arg string) error {
			d, err := caddyfile.ParseDuration(arg)
			*to() = &d
			return err
		})
	}
	return []caddyfile.Option{
		{
			Name: "health_check", Min: 1, Max: -1, Values: "tcp, send, http, dns or udp",
			Set: func(args []string) error {
				h.HealthCheck = new(HealthCheck)
				return c().set(args)
			},
			Block: []caddyfile.Option{
				timed("interval", func() **caddy.Duration { return &c().Interval }),
				timed("timeout", func() **caddy.Duration { return &c().Timeout }),
				count("fails", maxCheckCount, func() **int { return &c().Fails }),
				count("passes", maxCheckCount, func() **int { return &c().Passes }),
				count("port", 65535, func() **int { return &c().Port }),
				value("host", func(arg string) error {
					c().Host = arg
					return nil
				}),
				tlsOption(func() **TLS { return &c().TLS }),
			},
		},
		value("on_unhealthy", func(arg string) error {
			h.OnUnhealthy = arg
			return caddyfile.OneOf(arg, unhealthyKeep, unhealthyClose)
		}),
	}
}

// What follows the types of checks that send something.
const (
	whatToSend = `what to send, the word expect, and a regular expression, such as PING\r\n expect ^\+PONG`
	digits     = `hexadecimal digits, such as 0a1b, and perhaps the word expect and a regular expression`
)

// set reads the type of a check, and what it sends and expects, as in a Caddyfile.
func (c *HealthCheck) set(args []string) error {
	take := func(to ...*string) func([]string) error {
		return func(args []string) error {
			for i, arg := range args {
				*to[i] = arg
			}
			return nil
		}
	}
	expecting := func(to *string, required bool, values string) func([]string) error {
		return func(args []string) error {
			switch {
			case len(args) == 3 && args[1] == "expect":
				c.Expect = args[2]
				if args[2] == "" {
					return errors.New(`expect: "": expected a regular expression such as ^\+PONG`)
				}
			case len(args) != 1 || required:
				return fmt.Errorf("%q: expected %s", strings.Join(args, " "), values)
			}
			*to = args[0]
			return nil
		}
	}
	known, err := caddyfile.Choose(args,
		caddyfile.Option{Name: check.TCP, Set: take()},
		caddyfile.Option{Name: check.Send, Min: 1, Max: -1, Values: whatToSend, Set: expecting(&c.Send, true, whatToSend)},
		caddyfile.Option{Name: check.HTTP, Min: 1, Max: 2, Values: "a path and perhaps a status, such as /healthz 200", Set: take(&c.Path, &c.Status)},
		caddyfile.Option{Name: check.DNS, Min: 1, Max: 1, Values: "a name such as example.com", Set: take(&c.Name)},
		caddyfile.Option{Name: check.UDP, Min: 1, Max: -1, Values: digits, Set: expecting(&c.Payload, false, digits)},
	)
	if err != nil {
		return err
	}
	if !known {
		return caddyfile.OneOf(args[0], check.TCP, check.Send, check.HTTP, check.DNS, check.UDP)
	}
	c.Type = args[0]
	spec, err := c.spec()
	if err == nil {
		err = spec.Check()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.Type, err)
	}
	return nil
}

// parseHealthCheck reads a check from one text, which is quoted as a line of a Caddyfile is.
func parseHealthCheck(text string) (*HealthCheck, error) {
	tokens, err := caddycaddyfile.Tokenize([]byte(text), "")
	if err != nil {
		return nil, err
	}
	args := make([]string, len(tokens))
	for i, token := range tokens {
		args[i] = token.Text
	}
	if len(args) == 0 {
		return nil, errors.New(`"": expected a check such as tcp`)
	}
	c := new(HealthCheck)
	return c, c.set(args)
}

// checkHealthCheck refuses upstreams that can't be checked in this way.
func (h *Handler) checkHealthCheck(upstreams []upstream.Upstream) error {
	if h.checking.spec == nil {
		return nil
	}
	for i := range upstreams {
		if u := &upstreams[i]; h.checking.spec.Kind == check.UDP && u.Addr.Network == "unix" {
			return fmt.Errorf("health_check: udp: expected no unix socket among the upstreams, but there is %q", u.Name)
		}
	}
	return nil
}

// Interface guard
var _ json.Unmarshaler = (*HealthCheck)(nil)
