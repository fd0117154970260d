package admin

import (
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// filter chooses sessions: those that pass each of its parts. The zero filter chooses all.
type filter struct {
	clients             []netip.Prefix // in one of these
	listeners, networks []string       // one of these
	upstreams           []string       // one of these, as configured or the address
	olderThan, idleFor  time.Duration
	after               session.ID // begun later
}

// parseFilter reads the parameters that choose sessions. One that is given must have a value: in a script it may have been lost.
func parseFilter(query url.Values) (f filter, err error) {
	for _, name := range filterNames {
		for _, value := range query[name] {
			if err := f.set(name, value); err != nil {
				return f, adminapi.Error(http.StatusBadRequest, "%s: %w", name, err)
			}
		}
	}
	return f, once(query, "older", "idle")
}

// once refuses parameters that occur twice where only one would count.
func once(query url.Values, names ...string) error {
	for _, name := range names {
		if len(query[name]) > 1 {
			return adminapi.Error(http.StatusBadRequest, "%s: %q: expected one value", name, strings.Join(query[name], ", "))
		}
	}
	return nil
}

func (f *filter) set(name, value string) error {
	var expected string
	switch name {
	case "client":
		prefix, err := parseClient(value)
		f.clients = append(f.clients, prefix)
		return err
	case "older", "idle":
		d, err := caddyfile.ParseDuration(value)
		if err != nil || d <= 0 {
			return caddyfile.OneOf(value, "a duration of more than 0, such as 30s")
		}
		if name == "older" {
			f.olderThan = time.Duration(d)
		} else {
			f.idleFor = time.Duration(d)
		}
		return nil
	case "listener":
		f.listeners, expected = append(f.listeners, value), "a listener as sessions have it, such as 127.0.0.1:8080"
	case "upstream":
		f.upstreams, expected = append(f.upstreams, value), "an upstream as configured or its address, such as 127.0.0.1:9000"
	case "network":
		f.networks, expected = append(f.networks, value), "a network as sessions have it, such as tcp or udp"
	}
	if strings.TrimSpace(value) != value || value == "" {
		return caddyfile.OneOf(value, expected)
	}
	return nil
}

// parseClient reads an address or a prefix. One whose address goes on behind its length is refused: either may be the slip.
func parseClient(text string) (prefix netip.Prefix, err error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		addr = addr.Unmap().WithZone("")
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err = netip.ParsePrefix(text)
	if err == nil && prefix.Addr().Is4In6() && prefix.Bits() >= 96 {
		prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
	}
	if err != nil || prefix != prefix.Masked() {
		return prefix, caddyfile.OneOf(text, "an address or a prefix such as 192.0.2.0/24, with no bit set behind its length")
	}
	return prefix, nil
}

// mustNarrow refuses a filter that was given too little to mean some sessions and not all.
func (f *filter) mustNarrow() error {
	const all = "; ?all=true closes all"
	for _, prefix := range f.clients {
		if prefix.Bits() == 0 {
			return adminapi.Error(http.StatusBadRequest, "client: %q: expected a prefix that is longer"+all, prefix)
		}
	}
	if len(f.clients)+len(f.listeners)+len(f.upstreams) == 0 && f.olderThan == 0 && f.idleFor == 0 {
		return adminapi.Error(http.StatusBadRequest, "expected at least one of client, listener, upstream, older, idle"+all)
	}
	return nil
}

// matchesFixed reports whether a session passes the parts that are about what never changes.
func (f *filter) matchesFixed(s *session.Session) bool {
	if s.ID <= f.after ||
		len(f.networks) > 0 && !slices.Contains(f.networks, s.Network) ||
		len(f.listeners) > 0 && !slices.Contains(f.listeners, s.Listener) ||
		f.olderThan > 0 && time.Since(s.Start) < f.olderThan {
		return false
	}
	if len(f.clients) == 0 {
		return true
	}
	client := s.Client.Addr().Unmap().WithZone("")
	return slices.ContainsFunc(f.clients, func(prefix netip.Prefix) bool { return prefix.Contains(client) })
}

// changing reports whether it takes a look to know which sessions pass.
func (f *filter) changing() bool { return len(f.upstreams) > 0 || f.idleFor > 0 }

// matchesNow reports whether a session passes the parts that are about what changes.
func (f *filter) matchesNow(l *session.Look) bool {
	if f.idleFor > 0 && time.Since(l.LastActive) < f.idleFor {
		return false
	}
	return len(f.upstreams) == 0 || slices.Contains(f.upstreams, l.Upstream) || slices.Contains(f.upstreams, l.Label)
}

func (f *filter) matches(s *session.Session) bool {
	if !f.matchesFixed(s) {
		return false
	}
	if !f.changing() {
		return true
	}
	l, living := s.Look()
	return living && f.matchesNow(&l)
}
