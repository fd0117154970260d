package session

import (
	"net"
	"net/netip"

	"github.com/mholt/caddy-l4/layer4"
)

// Arrival is a connection that has just been accepted, and that nobody has read from; or, from [ArrivalOf], one as a
// layer4 handler sees it.
type Arrival struct {
	Conn     net.Conn
	Network  string         // of the listener, as in [Session]
	Listener string         // as configured
	Client   netip.AddrPort // unmapped; zero where the client has none

	cx      *layer4.Connection // carries the session where layer4 serves the connection
	session *Session
	passes  []Pass
	terms   []*Terms
}

// ArrivalOf is for handlers that do the same with a layer4 connection as with an arrival.
func ArrivalOf(cx *layer4.Connection) *Arrival {
	network, address := listener(cx)
	return &Arrival{Conn: cx, Network: network, Listener: address, Client: addrPort(cx.RemoteAddr()), cx: cx}
}

// Begin returns the session of the arrival, which begins now unless another handler has begun it.
func (a *Arrival) Begin(scope *Scope) *Session {
	if a.cx != nil {
		return Begin(a.cx, scope)
	}
	if a.session == nil {
		a.session = newSession(scope, a.Network, a.Listener, a.Client, a.passes, a.terms)
	}
	return a.session
}

// Close closes the connection of an arrival that nobody has served, and with it the terms that were agreed.
func (a *Arrival) Close() {
	_ = a.Conn.Close()
	if a.Begun() {
		return // its session has the terms
	}
	for _, t := range a.terms {
		if t.End != nil {
			t.End()
		}
	}
}

// NotePass notes what has let the arrival through.
func (a *Arrival) NotePass(pass Pass) {
	if a.cx != nil {
		passes, _ := a.cx.GetVar(passKey).([]Pass)
		a.cx.SetVar(passKey, append(passes, pass))
		return
	}
	a.passes = append(a.passes, pass)
}

// Accepted returns the connection as its listener gave it.
func (a *Arrival) Accepted() net.Conn {
	if a.cx != nil {
		return Accepted(a.cx)
	}
	return a.Conn
}
