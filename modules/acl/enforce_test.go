package acl

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/portgate/caddy-portgate/modules/internal/recheck"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// enforcerOf is an enforcer apart from the one that all share.
func enforcerOf(handlers ...*Handler) *enforcer {
	e := &enforcer{
		acls:     make(map[*recheck.Admission]*enforced),
		prefixes: make(map[netip.Prefix]struct{}),
		due:      make(chan struct{}, 1),
	}
	for _, h := range handlers {
		e.acls[h.enforced.Admission] = &h.enforced
	}
	return e
}

// A change of a few addresses looks at the sessions of these clients alone, once for all acls, and one of everything at each session
// once.
func TestChangesLookAtTheSessionsTheyConcern(t *testing.T) {
	t.Parallel()
	sc := scope(t)
	var handlers []*Handler
	for range 5 {
		h, _ := handler(t, `{"rules":[{"deny":["list","concerned"]}]}`)
		handlers = append(handlers, h)
	}
	const sessions = 300
	for n := range sessions {
		living(t, handlers[n%len(handlers)], sc, from(fmt.Sprintf("10.77.%d.%d", n/100, n%100)))
	}
	e := enforcerOf(handlers...)
	for prefix, want := range map[string]int{"10.77.1.5/32": 1, "10.77.2.0/24": 100, "10.77.0.0/16": sessions, "10.78.0.0/16": 0} {
		e.request([]netip.Prefix{netip.MustParsePrefix(prefix)})
		if got := e.judgeLiving(); got != want {
			t.Errorf("%s: looked at %d sessions, want %d", prefix, got, want)
		}
	}
	many := make([]netip.Prefix, maxChanges+1)
	for n := range many {
		many[n] = numbered(n).Prefix
	}
	for what, prefixes := range map[string][]netip.Prefix{"everything": nil, "many prefixes": many} {
		e.request(prefixes)
		if got := e.judgeLiving(); got < sessions {
			t.Errorf("%s: looked at %d sessions, want %d or more", what, got, sessions)
		}
	}
	if got := e.judgeLiving(); got != 0 {
		t.Errorf("looked at %d sessions without a change", got)
	}
}

// One entry more, with 20,000 living sessions and 20 acls.
func BenchmarkOneEntryMore(b *testing.B) {
	sc := scope(b)
	var handlers []*Handler
	for range 20 {
		h, _ := handler(b, `{"rules":[{"deny":["list","bench"]}]}`)
		handlers = append(handlers, h)
	}
	for n := range 20_000 {
		address := fmt.Sprintf("10.%d.%d.1", n>>8, n&255)
		a := newArrival(client{new(net.TCPConn), from(address)})
		if !handlers[n%len(handlers)].Serve(a) {
			b.Fatal("not let in")
		}
		s := a.Begin(sc)
		b.Cleanup(func() { s.End(session.End{}) })
	}
	e := enforcerOf(handlers...)
	one := []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}
	for name, prefixes := range map[string][]netip.Prefix{"entry": one, "everything": nil} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				e.request(prefixes)
				e.judgeLiving()
			}
		})
	}
}
