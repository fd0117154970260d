package acl

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/acl/ipset"
)

// given is an entry as it is given, or as it was shown before.
type given struct {
	Prefix  string `json:"prefix"`
	TTL     string `json:"ttl"`
	Reason  string `json:"reason"`
	By      string `json:"by"`
	Added   string `json:"added"`
	Expires string `json:"expires"`
}

// UnmarshalJSON decodes an entry and refuses unknown options.
func (g *given) UnmarshalJSON(data []byte) error {
	type plain given
	return caddyfile.UnmarshalJSON(data, (*plain)(g))
}

// errOver is the error of an entry whose time is over.
var errOver = errors.New("expected a time to come")

// entry returns the entry. One that was shown before keeps its times. If it has expires and ttl, expires counts.
func (g *given) entry(now time.Time, r *http.Request) (entry, error) {
	prefix, err := ipset.ParsePrefix(g.Prefix)
	if err != nil {
		return entry{}, fmt.Errorf("prefix: %w", err)
	}
	for name, remark := range map[string]string{"reason": g.Reason, "by": g.By} {
		if len(remark) > maxRemark {
			return entry{}, fmt.Errorf("%s: expected at most %d bytes", name, maxRemark)
		}
	}
	e := entry{Prefix: prefix, Added: now.UTC().Truncate(time.Millisecond), Reason: g.Reason, By: g.By}
	if e.By == "" {
		e.By = whoAsks(r)
	}
	if g.TTL != "" {
		ttl, err := caddyfile.ParseDuration(g.TTL)
		if err == nil && ttl == 0 {
			err = fmt.Errorf("%q: expected a duration of more than 0", g.TTL)
		}
		if err != nil {
			return entry{}, fmt.Errorf("ttl: %w", err)
		}
		expires := e.Added.Add(time.Duration(ttl))
		e.Expires = &expires
	}
	if g.Added != "" {
		if e.Added, err = parseTime(g.Added); err != nil {
			return entry{}, fmt.Errorf("added: %w", err)
		}
	}
	if g.Expires != "" {
		expires, err := parseTime(g.Expires)
		if err == nil && !now.Before(expires) {
			err = fmt.Errorf("%q: %w", g.Expires, errOver)
		}
		if err != nil {
			return entry{}, fmt.Errorf("expires: %w", err)
		}
		e.Expires = &expires
	}
	return e, nil
}

func parseTime(text string) (time.Time, error) {
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q: expected a time such as 2026-01-02T03:04:05Z", text)
	}
	return at.UTC(), nil
}

// whoAsks names the sender of a request who does not give a name.
func whoAsks(r *http.Request) string {
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		return r.TLS.PeerCertificates[0].Subject.CommonName
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return "" // a unix socket
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return ipset.Canonical(addr).String()
	}
	return ""
}
