package forward

import (
	"net"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/placement"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// gateClient is a session of a gate network's listener.
type gateClient struct {
	net.Conn
	listener string
}

func (c gateClient) ListenerAddr() string { return c.listener }

func addresses(t *testing.T, list ...string) (addrs []caddy.NetworkAddress) {
	t.Helper()
	for _, s := range list {
		addr, err := caddy.ParseNetworkAddress(s)
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, addr)
	}
	return addrs
}

func successor(t *testing.T, canonical string, listen ...string) *succession {
	t.Helper()
	s := new(succession)
	if err := s.begin(new(placement.Finding), canonical, addresses(t, listen...), new(Handler)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	return s
}

// lineOf returns the line of the sessions of a listener.
func lineOf(s *succession, listener string) *line {
	l, _ := s.of(gateClient{nil, listener})
	return l
}

func (l *line) ended() bool {
	added := l.add(new(session.Session))
	return !added
}

func TestIdenticalHandlersShareTheLineOfAListener(t *testing.T) {
	t.Parallel()
	first := successor(t, "shared", "gate+udp/:53", "gate+udp/:60-61", "gate+tcp/:53")
	same := successor(t, "shared", "gate+udp/:60-61", "gate+udp/:53")
	changed := successor(t, "changed", "gate+udp/:53", "gate+udp/:60-61")
	elsewhere := successor(t, "shared", "gate+udp/:60-62", "gate+udp/:54")
	for _, listener := range []string{":53", ":60", ":61"} {
		if lineOf(first, listener) != lineOf(same, listener) {
			t.Errorf("%s: identical handlers have lines of their own", listener)
		}
		if lineOf(first, listener) == lineOf(changed, listener) {
			t.Errorf("%s: different handlers share a line", listener)
		}
	}
	if lineOf(first, ":60") == lineOf(elsewhere, ":60") || lineOf(first, ":53") == lineOf(first, ":60") {
		t.Error("different listeners share a line")
	}
	if lineOf(first, ":53") == first.own || lineOf(first, ":80") != first.own {
		t.Error("a handler's own line is for what is not on a listener of its gate+udp")
	}
}

// Sessions of an earlier config go by what the running one knows, if that has the same handler, and not by what one knows that was rejected.
func TestLatestOfALineage(t *testing.T) {
	t.Parallel()
	begin := func(listen ...string) *Handler {
		h := new(Handler)
		if err := h.succession.begin(new(placement.Finding), "running", addresses(t, listen...), h); err != nil {
			t.Fatal(err)
		}
		return h
	}
	one := begin("gate+udp/:53")
	if one.latest() != one {
		t.Error("not that of the only config")
	}
	begin("gate+tcp/:53").succession.end()
	if one.latest() != one {
		t.Error("not that of the config that runs on")
	}
	two := begin("gate+tcp/:53")
	one.succession.end()
	if one.latest() != two || two.latest() != two {
		t.Error("not that of the next config")
	}
	two.succession.end()
	if one.latest() != one || two.latest() != two {
		t.Error("that of a config that has ended")
	}
}

func TestLineEndsWithItsLastHandler(t *testing.T) {
	t.Parallel()
	first := successor(t, "ends", "gate+udp/:53")
	l := lineOf(first, ":53")
	for range 100 { // reloads
		next := successor(t, "ends", "gate+udp/:53")
		rejected := successor(t, "ends", "gate+udp/:53")
		rejected.end()
		first.end()
		if l.ended() || !first.own.ended() {
			t.Fatal("the line has ended, or the handler's own one has not")
		}
		first = next
	}
	first.end()
	first.end() // as Cleanup may be called twice
	if !l.ended() {
		t.Error("the line goes on without a handler")
	}
}

func TestEndOfALineClosesItsSessions(t *testing.T) {
	h := forwardTo(t, "127.0.0.1:9")
	l := newLine()
	var movers []closable
	for range 3 {
		s := (&session.Arrival{Network: "udp", Listener: "test:line"}).Begin(h.scope)
		t.Cleanup(func() { s.End(session.End{}) })
		m := make(closable, 1)
		s.SetMover(m)
		if !l.add(s) {
			t.Fatal("the line has ended")
		}
		movers = append(movers, m)
		if len(movers) == 3 {
			l.remove(s)
		}
	}
	_ = l.Destruct()
	for i, m := range movers[:2] {
		if got := <-m; got != session.ReasonDrain {
			t.Errorf("session %d: closed because of %q", i, got)
		}
	}
	if len(movers[2]) > 0 {
		t.Error("a session that was removed is closed")
	}
}

// closable is a mover that can be closed.
type closable chan string

func (c closable) Close(reason string)     { c <- reason }
func (closable) LastActive() (t time.Time) { return t }
func (closable) Moved() (up, down int64)   { return 0, 0 }
