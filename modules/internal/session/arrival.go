package session

import (
	"net"
	"net/netip"
	"time"

	"github.com/mholt/caddy-l4/layer4"

	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/recheck"
	"github.com/portgate/caddy-portgate/modules/internal/throttle"
)

// Arrival is a connection that was accepted and has no session yet: either one that nobody has read from, or, made by
// [ArrivalOf], one as a layer4 handler sees it. Handlers leave on it what its session is to have.
type Arrival struct {
	Conn     net.Conn
	Network  string         // of the listener, as in [Session]
	Listener string         // as configured
	Client   netip.AddrPort // unmapped; zero where the client has none
	Local    netip.AddrPort // what a load balancer says that the client has connected to; zero where Conn tells
	Since    time.Time      // when it was accepted; zero where its session begins at once, or its connection tells

	cx *layer4.Connection // nil where layer4 does not serve the connection

	session   *Session
	passes    []recheck.Pass
	throttles []*throttle.Throttle
}

// What a connection of layer4 carries from handler to handler.
const (
	sessionKey   = "portgate.session"
	passesKey    = "portgate.passes"
	throttlesKey = "portgate.throttles"
	sinceKey     = "portgate.since"
)

// ArrivalOf returns the arrival of a layer4 connection, so that one code serves both.
func ArrivalOf(cx *layer4.Connection) *Arrival {
	a := &Arrival{Conn: cx, Client: listeners.AddrPort(cx.RemoteAddr()), cx: cx}
	a.Network, a.Listener = listeners.Of(cx)
	a.session, _ = cx.GetVar(sessionKey).(*Session)
	a.passes, _ = cx.GetVar(passesKey).([]recheck.Pass)
	a.throttles, _ = cx.GetVar(throttlesKey).([]*throttle.Throttle)
	return a
}

// Clone returns a copy for whoever keeps the arrival beyond the call that it was passed to.
func (a *Arrival) Clone() *Arrival {
	clone := *a
	return &clone
}

// Begin returns the session of the arrival, which begins now unless another handler has begun it.
func (a *Arrival) Begin(scope *Scope) *Session {
	if a.Begun() {
		return a.session
	}
	if a.cx == nil {
		a.session = newSession(scope, a)
		return a.session
	}
	conn := a.Accepted()
	if known, ok := conn.(interface{ AcceptedAt() time.Time }); ok {
		a.Since = known.AcceptedAt()
	} else if since, ok := a.cx.GetVar(sinceKey).(time.Time); ok {
		a.Since = since
	}
	a.session = newSession(scope, a)
	a.cx.SetVar(sessionKey, a.session)
	if conn, ok := conn.(interface{ Taken() }); ok {
		conn.Taken()
	}
	return a.session
}

// Waits is called before a handler has the arrival wait: what it waits is a part of its session's time.
func (a *Arrival) Waits() {
	if a.cx == nil {
		a.Since = time.Now()
	} else if a.cx.GetVar(sinceKey) == nil {
		a.cx.SetVar(sinceKey, time.Now())
	}
}

// NoRoute is called where no handler has taken the arrival, of which matchers have read so many bytes: its session is over
// as it begins. A nil scope is of no config.
func (a *Arrival) NoRoute(scope *Scope, read int64) {
	if scope == nil || a.Begun() {
		return
	}
	s := a.Begin(scope)
	s.mu.Lock()
	s.up.counted = read
	s.mu.Unlock()
	s.End(End{Status: StatusNoRoute, Reason: ReasonNoRoute})
}

// Begun reports whether the arrival has a session. A later handler may have begun it.
func (a *Arrival) Begun() bool {
	if a.session == nil && a.cx != nil {
		a.session, _ = a.cx.GetVar(sessionKey).(*Session)
	}
	return a.session != nil
}

// Close closes the connection of an arrival that nobody has served, and releases its throttles.
func (a *Arrival) Close() {
	_ = a.Conn.Close()
	if a.Begun() {
		return // the session releases them
	}
	for _, t := range a.throttles {
		t.Release()
	}
}

// Admit notes what has admitted the arrival.
func (a *Arrival) Admit(pass recheck.Pass) {
	a.passes = append(a.passes, pass)
	if a.cx != nil {
		a.cx.SetVar(passesKey, a.passes)
	}
}

// Throttle sets a throttle on the arrival, which must have no session yet.
func (a *Arrival) Throttle(t *throttle.Throttle) {
	a.throttles = append(a.throttles, t)
	if a.cx != nil {
		a.cx.SetVar(throttlesKey, a.throttles)
	}
}

// Accepted returns the connection as its listener accepted it.
func (a *Arrival) Accepted() net.Conn {
	if a.cx != nil {
		return listeners.Accepted(a.cx)
	}
	return a.Conn
}
