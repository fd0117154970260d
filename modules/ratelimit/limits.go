package ratelimit

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// limit is one of a handler's limits.
type limit struct {
	*bucket.Limit
	name string // in metrics and logs: that of the handler, and what is configured
	per  string // or, where that has placeholders, what they are in
}

// limits are those of a handler, grouped by when they are asked.
type limits struct {
	arrivals  []limit // connections and concurrent, which the store decides about together
	datagrams []limit
	up, down  []limit
}

// The prefix lengths of `per subnet`: what one customer usually gets.
const (
	ipv4Subnet = 24
	ipv6Subnet = 48
)

// compile creates the limits. id returns the number by which the store knows a limit.
func (h *Handler) compile(id func(signature string) uint16) (l limits, err error) {
	maxDelay := time.Duration(0)
	if h.Algorithm == leakyBucket {
		maxDelay = defaultMaxDelay
		if h.MaxDelay != nil {
			maxDelay = time.Duration(*h.MaxDelay)
		}
	}
	number := numbering(id)
	for i := range h.Connections {
		c, err := h.Connections[i].compile("connections", number, maxDelay)
		if err != nil {
			return l, fmt.Errorf("connections: %w", err)
		}
		l.arrivals = append(l.arrivals, c)
	}
	for i := range h.Concurrent {
		per := perOf(h.Concurrent[i].Per, perIP)
		name := fmt.Sprintf("concurrent %d per %s", h.Concurrent[i].Max, per)
		l.arrivals = append(l.arrivals, limit{bucket.NewCount(number("concurrent "+per), int64(h.Concurrent[i].Max)), name, per})
	}
	for i := range h.Datagrams { // which are dropped, not held: there is nobody to hold back
		c, err := h.Datagrams[i].compile("datagrams", number, 0)
		if err != nil {
			return l, fmt.Errorf("datagrams: %w", err)
		}
		l.datagrams = append(l.datagrams, c)
	}
	for i := range h.Bandwidth {
		if err := h.Bandwidth[i].compile(number, &l); err != nil {
			return l, fmt.Errorf("bandwidth: %w", err)
		}
	}
	if h.Name != "" {
		for _, some := range [][]limit{l.arrivals, l.datagrams, l.up, l.down} {
			for i := range some {
				some[i].name = h.Name + ": " + some[i].name
			}
		}
	}
	return l, nil
}

// numbering returns id for limits of one kind: the first, the second, and so on.
func numbering(id func(string) uint16) func(kind string) uint16 {
	seen := make(map[string]int)
	return func(kind string) uint16 {
		seen[kind]++
		return id(kind + " #" + strconv.Itoa(seen[kind]))
	}
}

func (r *Rate) compile(kind string, number func(string) uint16, maxDelay time.Duration) (limit, error) {
	n, unit, err := caddyfile.ParseRate(r.Rate)
	if err != nil {
		return limit{}, err
	}
	burst := n
	if maxDelay > 0 {
		burst = 1
	}
	if r.Burst != nil {
		burst = int64(*r.Burst)
	}
	per := perOf(r.Per, perIP)
	events, err := bucket.NewEvents(number(kind+" "+per), n, unit, burst, maxDelay)
	if err != nil {
		return limit{}, fmt.Errorf("burst: \"%d\": %w", burst, err)
	}
	return limit{events, fmt.Sprintf("%s %s per %s", kind, r.Rate, per), per}, nil
}

func (b *Bandwidth) compile(number func(string) uint16, l *limits) error {
	n, unit, err := caddyfile.ParseSizeRate(b.Rate)
	if err != nil || n == 0 {
		return err
	}
	burst := max(int64(float64(n)*float64(time.Second)/10/float64(unit)), 1)
	if b.Burst != "" {
		if burst, err = caddyfile.ParseSize(b.Burst); err != nil {
			return fmt.Errorf("burst: %w", err)
		}
	}
	per := perOf(b.Per, perConnection)
	bytes, err := bucket.NewBytes(number("bandwidth "+b.Direction+" "+per), n, unit, burst)
	if err != nil {
		return fmt.Errorf("burst: \"%d\": %w", burst, err)
	}
	made := limit{bytes, fmt.Sprintf("bandwidth %s %s per %s", b.Direction, b.Rate, per), per}
	if b.Direction != down {
		l.up = append(l.up, made)
	}
	if b.Direction != up {
		l.down = append(l.down, made)
	}
	return nil
}

// perOf returns per, or the default, with the placeholders replaced that are known when the config is loaded.
func perOf(per, fallback string) string {
	switch {
	case per == "":
		return fallback
	case !strings.Contains(per, "{"):
		return per
	}
	return caddy.NewReplacer().ReplaceKnown(per, "")
}

// dynamic reports whether the key of the limit depends on a placeholder.
func (l *limit) dynamic() bool { return strings.Contains(l.per, "{") }

func (l *limits) dynamic() bool {
	for _, some := range [][]limit{l.arrivals, l.datagrams, l.up, l.down} {
		for i := range some {
			if some[i].dynamic() {
				return true
			}
		}
	}
	return false
}

// moving reports whether there are limits on what a session moves.
func (l *limits) moving() bool { return len(l.datagrams)+len(l.up)+len(l.down) > 0 }

// all returns every limit once.
func (l *limits) all() []limit {
	all := append(append([]limit(nil), l.arrivals...), l.datagrams...)
	all = append(all, l.up...)
	for _, d := range l.down {
		if !contains(all, d.Limit) {
			all = append(all, d)
		}
	}
	return all
}

// names returns what the limits are called in the metrics.
func (l *limits) names() (names []string) {
	for _, limit := range l.all() {
		names = append(names, limit.name)
	}
	return names
}

func contains(all []limit, wanted *bucket.Limit) bool {
	for i := range all {
		if all[i].Limit == wanted {
			return true
		}
	}
	return false
}

// visitor is what limits know of a connection.
type visitor struct {
	*session.Arrival
	number string                   // no other connection has it
	expand func(text string) string // fills in placeholders
}

// lastConnection numbers connections.
var lastConnection atomic.Uint64

// request asks the limit about a visitor.
func (h *Handler) request(l *limit, v *visitor) bucket.Request {
	return bucket.Request{Limit: l.Limit, Key: h.key(l, v)}
}

func (h *Handler) key(l *limit, v *visitor) bucket.Key {
	switch l.per {
	case perAll:
		return l.ForText("")
	case perListener:
		return l.ForText(v.Listener)
	case perConnection:
		if v.number == "" {
			v.number = strconv.FormatUint(lastConnection.Add(1), 10)
		}
		return l.ForText(v.number)
	case perIP, perSubnet:
		addr := v.Client.Addr()
		if !addr.IsValid() {
			return l.ForText("unix socket") // its clients have no addresses: they are one
		}
		switch {
		case addr.Is4() && l.per == perIP:
			return l.ForAddr(addr, 32)
		case addr.Is4():
			return l.ForAddr(addr, ipv4Subnet)
		case l.per == perIP:
			return l.ForAddr(addr, h.ipv6Prefix)
		default:
			return l.ForAddr(addr, min(h.ipv6Prefix, ipv6Subnet))
		}
	default:
		return l.ForText(v.expand(l.per))
	}
}
