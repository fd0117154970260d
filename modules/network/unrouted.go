package network

import (
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// unrouted notices that a server closes a connection that no route has taken: nobody has begun a session for it, nor sent
// anything to the client.
type unrouted struct {
	scope *session.Scope // nil where nobody wants to know
	since time.Time      // the server has the connection
	taken atomic.Bool
	read  atomic.Int64 // bytes, by matchers
}

// watch is called before a server of layer4 gets the connection.
func (u *unrouted) watch(scope *session.Scope) { u.scope, u.since = scope, time.Now() }

// AcceptedAt is when the server got the connection, see [session.Arrival.Begin].
func (u *unrouted) AcceptedAt() time.Time { return u.since }

// Taken is called when somebody takes the connection, see [session.Arrival.Begin].
func (u *unrouted) Taken() { u.taken.Store(true) }

// closed is called when the connection is closed.
func (u *unrouted) closed(conn net.Conn, network, listener string, client netip.AddrPort) {
	if u.scope == nil || u.taken.Swap(true) {
		return
	}
	a := session.Arrival{Conn: conn, Network: network, Listener: listener, Client: client, Since: u.since}
	a.NoRoute(u.scope, u.read.Load())
}
