package session

import (
	"net"
	"net/netip"
)

// Arrival is a connection that has just been accepted, and that nobody has read from.
type Arrival struct {
	Conn     net.Conn
	Network  string         // of the listener, as in [Session]
	Listener string         // as configured
	Client   netip.AddrPort // unmapped; zero where the client has none

	session *Session
}

// Begin returns the session of the arrival, which begins now unless another handler has begun it.
func (a *Arrival) Begin(scope *Scope) *Session {
	if a.session == nil {
		a.session = newSession(scope, a.Network, a.Listener, a.Client)
	}
	return a.session
}
