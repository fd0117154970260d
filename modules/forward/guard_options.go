package forward

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// Breaker keeps sessions from an upstream at which too many fare badly. The terms are those of Alibaba Sentinel.
type Breaker struct {
	// When is what opens it: `slow <ratio> <duration>`, when more than that share of the sessions took longer to be connected, or to get the first
	// byte of the upstream; `errors <ratio>`, when more than that share has failed: there was no connection, or it was reset before the
	// first byte; `failures <count>`, when more than so many have failed. A ratio is from 0 to 1; with 1 it opens when all are slow, or have failed.
	When string `json:"when"`

	// Window is how long sessions count. It moves in tenths. More than 0. Default: 10s.
	Window *caddy.Duration `json:"window,omitempty"`

	// MinSessions is how many sessions there have to be within the window. From 1 to 1000000. Default: 20.
	MinSessions *int `json:"min_sessions,omitempty"`

	// Open is for how long the upstream then gets no sessions. More than 0. Default: 30s.
	Open *caddy.Duration `json:"open,omitempty"`

	// HalfOpen is how many sessions may try it after that, as probes. When all go well it gets sessions as before; when one fares badly, it is open again.
	// From 1 to 1000. Default: 1.
	HalfOpen *int `json:"half_open,omitempty"`
}

// Defaults and bounds of the options of a breaker.
const (
	defaultWindow      = 10 * time.Second
	defaultMinSessions = 20
	defaultOpen        = 30 * time.Second
	defaultHalfOpen    = 1

	maxMinSessions   = 1_000_000
	maxBreakerCount  = 1_000_000
	maxHalfOpen      = 1000
	defaultEjectable = 0.5
)

// UnmarshalJSON decodes the options and refuses unknown ones.
func (b *Breaker) UnmarshalJSON(data []byte) error {
	type options Breaker
	return caddyfile.UnmarshalJSON(data, (*options)(b))
}

// parseWhen reads what opens a breaker.
func parseWhen(when string) (t upstream.Terms, err error) {
	name, rest, _ := strings.Cut(when, " ")
	args := strings.Fields(rest)
	expect := func(n int, what string) error {
		if len(args) != n {
			return fmt.Errorf("%s: %q: expected %s", name, rest, what)
		}
		return nil
	}
	switch name {
	case "slow":
		t.Cause = upstream.CauseSlow
		if err = expect(2, "a ratio and a duration, such as 0.5 300ms"); err == nil {
			if t.Ratio, err = parseShare(args[0]); err == nil {
				t.Slow, err = parsePositive(args[1])
			}
		}
	case "errors":
		t.Cause = upstream.CauseErrors
		if err = expect(1, "a ratio, such as 0.5"); err == nil {
			t.Ratio, err = parseShare(args[0])
		}
	case "failures":
		t.Cause = upstream.CauseFailures
		if err = expect(1, "a number of sessions, such as 10"); err == nil {
			t.Count, err = caddyfile.ParseCount(args[0], 0, maxBreakerCount)
		}
	default:
		return t, fmt.Errorf("%q: expected slow, errors or failures", name)
	}
	if err != nil && len(args) > 0 && !strings.HasPrefix(err.Error(), name) {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return t, err
}

// parseShare reads a ratio from 0 to 1.
func parseShare(arg string) (float64, error) {
	ratio, err := strconv.ParseFloat(arg, 64)
	if err != nil || !(ratio >= 0 && ratio <= 1) {
		return 0, fmt.Errorf("%q: expected a ratio from 0 to 1, such as 0.5", arg)
	}
	return ratio, nil
}

func parsePositive(arg string) (time.Duration, error) {
	d, err := caddyfile.ParseDuration(arg)
	if err == nil && d == 0 {
		err = errNoTime(arg)
	}
	return time.Duration(d), err
}

// terms returns what the breaker goes by, and refuses values that can't work.
func (b *Breaker) terms() (t upstream.Terms, err error) {
	if t, err = parseWhen(b.When); err != nil {
		return t, fmt.Errorf("when: %w", err)
	}
	t.Window, t.Open, t.MinSessions, t.HalfOpen = defaultWindow, defaultOpen, defaultMinSessions, defaultHalfOpen
	for _, o := range []struct {
		name  string
		to    *time.Duration
		given *caddy.Duration
	}{{"window", &t.Window, b.Window}, {"open", &t.Open, b.Open}} {
		if override(o.to, o.given); *o.to <= 0 {
			return t, fmt.Errorf("%s: %w", o.name, errNoTime(o.to.String()))
		}
	}
	for _, o := range []struct {
		name  string
		to    *int
		given *int
		most  int
	}{{"min_sessions", &t.MinSessions, b.MinSessions, maxMinSessions}, {"half_open", &t.HalfOpen, b.HalfOpen, maxHalfOpen}} {
		if o.given != nil {
			*o.to = *o.given
		}
		if *o.to < 1 || *o.to > o.most {
			return t, fmt.Errorf(`%s: "%d": expected a whole number from 1 to %d`, o.name, *o.to, o.most)
		}
	}
	return t, nil
}

// parsePercent reads a share such as 50%.
func parsePercent(arg string) (float64, error) {
	n, err := strconv.Atoi(strings.TrimSuffix(arg, "%"))
	if err != nil || n < 1 || n > 100 || !strings.HasSuffix(arg, "%") {
		return 0, fmt.Errorf("%q: expected a share of the upstreams from 1%% to 100%%, such as 50%%", arg)
	}
	return float64(n) / 100, nil
}

func (h *Handler) applyGuard() (err error) {
	h.guard.maxEjected = defaultEjectable
	if h.MaxEjected != "" {
		if h.guard.maxEjected, err = parsePercent(h.MaxEjected); err != nil {
			return fmt.Errorf("max_ejected: %w", err)
		}
	}
	override(&h.guard.slowStart, h.SlowStart)
	if h.Breaker != nil {
		if h.guard.terms, err = h.Breaker.terms(); err != nil {
			return fmt.Errorf("breaker: %w", err)
		}
	}
	return nil
}

// guardOptions are the options that keep sessions from upstreams that fare badly, in a Caddyfile.
func (h *Handler) guardOptions() []caddyfile.Option {
	count := func(name string, most int, of func() **int) caddyfile.Option {
		return value(name, func(arg string) error {
			n, err := caddyfile.ParseCount(arg, 1, most)
			*of() = &n
			return err
		})
	}
	time := func(name string, of func() **caddy.Duration) caddyfile.Option {
		return value(name, func(arg string) error {
			d, err := parsePositive(arg)
			parsed := caddy.Duration(d)
			*of() = &parsed
			return err
		})
	}
	return []caddyfile.Option{
		value("max_ejected", func(arg string) error {
			h.MaxEjected = arg
			_, err := parsePercent(arg)
			return err
		}),
		{
			Name: "breaker", Min: 2, Max: 3, Values: "slow <ratio> <duration>, errors <ratio> or failures <count>",
			Set: func(args []string) error {
				h.Breaker = &Breaker{When: strings.Join(args, " ")}
				_, err := parseWhen(h.Breaker.When)
				return err
			},
			Block: []caddyfile.Option{
				time("window", func() **caddy.Duration { return &h.Breaker.Window }),
				count("min_sessions", maxMinSessions, func() **int { return &h.Breaker.MinSessions }),
				time("open", func() **caddy.Duration { return &h.Breaker.Open }),
				count("half_open", maxHalfOpen, func() **int { return &h.Breaker.HalfOpen }),
			},
		},
		duration("slow_start", &h.SlowStart),
	}
}
