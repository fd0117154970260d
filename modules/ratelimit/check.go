package ratelimit

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/refusal"
	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket/redis"
)

// check returns the first error that can be found before placeholders are known.
func (h *Handler) check() error {
	limits := len(h.Connections) + len(h.Datagrams) + len(h.Concurrent) + len(h.Bandwidth)
	if limits == 0 {
		return errors.New("rate_limit: expected at least one limit, such as connections 100/s")
	}
	if limits > bucket.MaxRequests {
		return fmt.Errorf("rate_limit: expected at most %d limits, and not %d", bucket.MaxRequests, limits)
	}
	checks := []struct {
		option string
		err    error
	}{{"name", checkName(h.Name)}, {"on_limit", checkOnLimit(h.OnLimit)}}
	add := func(option string, err error) {
		checks = append(checks, struct {
			option string
			err    error
		}{option, err})
	}
	for i := range h.Connections {
		add("connections", h.Connections[i].check("connections"))
	}
	for i := range h.Datagrams {
		add("datagrams", h.Datagrams[i].check("datagrams"))
	}
	for i := range h.Concurrent {
		add("concurrent", h.Concurrent[i].check())
	}
	for i := range h.Bandwidth {
		add("bandwidth", h.Bandwidth[i].check())
	}
	if h.Algorithm != "" {
		add("algorithm", caddyfile.OneOf(h.Algorithm, tokenBucket, leakyBucket))
	}
	if h.MaxDelay != nil && (*h.MaxDelay == 0 || time.Duration(*h.MaxDelay) > maxMaxDelay) {
		add("max_delay", fmt.Errorf("%q: expected a duration of more than 0 and at most 1m", time.Duration(*h.MaxDelay)))
	}
	if h.MaxDelay != nil && h.Algorithm != leakyBucket {
		add("max_delay", fmt.Errorf("%q: expected algorithm leaky_bucket with it", time.Duration(*h.MaxDelay)))
	}
	add("ipv6_prefix", inRange(h.IPv6Prefix, 1, 128))
	add("max_keys", inRange(h.MaxKeys, 1, maxMaxKeys))
	if h.Store != nil {
		add("store", h.Store.check())
	}
	for _, c := range checks {
		if c.err != nil {
			return fmt.Errorf("%s: %w", c.option, c.err)
		}
	}
	_, err := h.compile(func(string) uint16 { return 0 }) // what is wrong with a limit as a whole, while its line is known
	return err
}

func inRange(n *int, lo, hi int) error {
	if n == nil {
		return nil
	}
	_, err := caddyfile.ParseCount(strconv.Itoa(*n), lo, hi)
	return err
}

func (r *Rate) check(kind string) error {
	if _, _, err := caddyfile.ParseRate(r.Rate); err != nil {
		return err
	}
	if r.Burst != nil {
		if err := inRange(r.Burst, 1, maxCount); err != nil {
			return fmt.Errorf("burst: %w", err)
		}
	}
	return checkPer(r.Per, kind == "datagrams")
}

func (c *Count) check() error {
	if err := inRange(&c.Max, 1, maxCount); err != nil {
		return fmt.Errorf("max: %w", err)
	}
	return checkPer(c.Per, false)
}

func (b *Bandwidth) check() error {
	if err := caddyfile.OneOf(b.Direction, up, down, both); err != nil {
		return err
	}
	if _, _, err := caddyfile.ParseSizeRate(b.Rate); err != nil {
		return err
	}
	if b.Burst != "" {
		switch n, err := caddyfile.ParseSize(b.Burst); {
		case err != nil:
			return fmt.Errorf("burst: %w", err)
		case n == 0:
			return fmt.Errorf("burst: %q: expected a size of at least 1B", b.Burst)
		}
	}
	return checkPer(b.Per, true)
}

func checkPer(per string, connection bool) error {
	if per == "" || strings.Contains(per, "{") {
		return nil
	}
	known := []string{perIP, perSubnet, perListener, perAll}
	if connection {
		known = append([]string{perConnection}, known...)
	}
	if slices.Contains(known, per) {
		return nil
	}
	return fmt.Errorf("per: %w", caddyfile.OneOf(per, append(known, "a placeholder")...))
}

func checkName(name string) error {
	if len(name) > maxName || strings.ContainsAny(name, "{}\"\n") {
		return fmt.Errorf("%q: expected at most %d characters, without braces and quotes", name, maxName)
	}
	return nil
}

func checkOnLimit(args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := caddyfile.OneOf(args[0], string(refusal.Close), string(refusal.Reset), string(refusal.Drop), string(refusal.Respond))
	switch {
	case err != nil:
		return err
	case len(args) > 1 && args[0] != string(refusal.Respond):
		return fmt.Errorf("%s: expected no value", args[0])
	case len(args) > 2:
		return errors.New("respond: expected one text")
	case len(args) == 2 && len(args[1]) > maxText:
		return fmt.Errorf("respond: expected at most %d bytes", maxText)
	}
	return nil
}

func (s *Store) check() error {
	switch s.Type {
	case "", "memory":
		if s.URL != "" || s.Timeout != nil || s.Prefix != "" || s.OnError != "" {
			return errors.New(`"memory": expected no URL and no option`)
		}
		return nil
	case "redis":
	default:
		return caddyfile.OneOf(s.Type, "memory", "redis")
	}
	if !strings.Contains(s.URL, "{") {
		if _, err := redis.Parse(s.URL); err != nil {
			return fmt.Errorf("redis: %w", s.quote(err))
		}
	}
	if s.Timeout != nil && (*s.Timeout == 0 || time.Duration(*s.Timeout) > maxTimeout) {
		return fmt.Errorf("timeout: %q: expected a duration of more than 0 and at most 10s", time.Duration(*s.Timeout))
	}
	if strings.ContainsAny(s.Prefix, "{}") {
		return fmt.Errorf("prefix: %q: expected no braces", s.Prefix)
	}
	if s.OnError != "" {
		if err := caddyfile.OneOf(s.OnError, string(redis.Local), string(redis.Allow), string(redis.Deny)); err != nil {
			return fmt.Errorf("on_error: %w", err)
		}
	}
	return nil
}
