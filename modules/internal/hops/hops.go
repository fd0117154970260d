// Package hops tells how often a connection has come through this process already. A forward that leads back to the process,
// by whatever way, would else go on until there is no descriptor left.
//
// Each session is a [Trip]. A socket that a trip opens to an address of this machine is noted with both of its addresses. A
// session whose client has these addresses is the next hop of that trip.
package hops

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/portgate/caddy-portgate/modules/internal/listeners"
)

// Max is how many hops a trip may have.
const Max = 4

// Trip is a session that may open a socket to an upstream. Begin makes one.
type Trip struct {
	datagrams bool
	exceeded  func()

	// What follows is guarded by the table.
	hops   int
	client key     // in table.waiting, or zero
	from   *Socket // by which it has come here
	to     *Socket // that it has opened last
}

// Socket is a socket that leads from a trip to an address of this machine.
type Socket struct {
	trip   *Trip
	remote netip.AddrPort
	local  key   // zero before Connected
	next   *Trip // which came by it
}

// key is the two addresses of a socket.
type key struct {
	local, remote netip.AddrPort
	datagrams     bool
}

// table has the sockets. What it has is bounded by those that are open.
var table = struct {
	active atomic.Int64 // sockets in the table and sockets that are being connected: 0 spares the lock

	mu         sync.Mutex
	sockets    map[key]*Socket
	connecting int
	waiting    map[key]*Trip // of clients on this machine, begun while a socket that may be theirs was being connected
}{sockets: make(map[key]*Socket), waiting: make(map[key]*Trip)}

// Begin begins a trip with the connection of a client, as its listener accepted it. It reports false where that has come
// through this process more than Max times. A socket may turn out to be the client's a moment later: then exceeded is called,
// once. It must not block.
func Begin(conn net.Conn, datagrams bool, exceeded func()) (t *Trip, ok bool) {
	t = &Trip{datagrams: datagrams, exceeded: exceeded}
	if table.active.Load() == 0 {
		return t, true
	}
	client := keyOf(listeners.AddrPort(conn.RemoteAddr()), listeners.AddrPort(conn.LocalAddr()), datagrams)
	if !IsLocal(client.local.Addr()) {
		return t, true
	}
	table.mu.Lock()
	defer table.mu.Unlock()
	if s := table.sockets[client]; s != nil {
		t.follow(s)
		return t, t.hops <= Max
	}
	if table.connecting > 0 {
		t.client = client
		table.waiting[client] = t
	}
	return t, true
}

// keyOf returns the key of a socket. A listener for all addresses may not know which of them a client has sent to; then it is
// the client's own, as the system chooses it.
func keyOf(local, remote netip.AddrPort, datagrams bool) key {
	local = netip.AddrPortFrom(local.Addr().WithZone(""), local.Port())
	to := remote.Addr().Unmap().WithZone("")
	if to.IsUnspecified() {
		to = local.Addr()
	}
	return key{local, netip.AddrPortFrom(to, remote.Port()), datagrams}
}

// follow makes the trip the next hop of a socket's.
func (t *Trip) follow(s *Socket) {
	t.hops, t.from, s.next = s.trip.hops+1, s, t
}

// Hops returns how often the trip has come through this process.
func (t *Trip) Hops() int {
	table.mu.Lock()
	defer table.mu.Unlock()
	return t.hops
}

// Connecting is called before the trip opens a socket. It returns nil where remote is not on this machine: then no connection can
// come back by it.
func (t *Trip) Connecting(remote netip.AddrPort) *Socket {
	if !IsLocal(remote.Addr()) {
		return nil
	}
	s := &Socket{trip: t, remote: remote}
	table.active.Add(1)
	table.mu.Lock()
	table.connecting++
	t.to = s
	table.mu.Unlock()
	return s
}

// Connected notes the socket's own address.
func (s *Socket) Connected(local netip.AddrPort) {
	var over *Trip
	table.mu.Lock()
	s.local = keyOf(local, s.remote, s.trip.datagrams)
	table.sockets[s.local] = s
	if t := table.waiting[s.local]; t != nil {
		t.stopWaiting()
		t.follow(s)
		over = t.raise()
	}
	connected()
	table.mu.Unlock()
	if over != nil {
		over.exceeded()
	}
}

// raise carries a trip's hops on to those that have come from it since. It returns the first one that has too many.
func (t *Trip) raise() (over *Trip) {
	for ; ; t = t.to.next {
		if t.hops > Max {
			return t
		}
		if t.to == nil || t.to.next == nil {
			return nil
		}
		t.to.next.hops = t.hops + 1
	}
}

// connected notes that a socket is not being connected any more.
func connected() {
	if table.connecting--; table.connecting == 0 {
		for _, t := range table.waiting {
			t.client = key{}
		}
		clear(table.waiting)
	}
}

func (t *Trip) stopWaiting() {
	if t.client != (key{}) && table.waiting[t.client] == t {
		delete(table.waiting, t.client)
	}
	t.client = key{}
}

// Closed is called before the socket is closed, and where it could not be connected.
func (s *Socket) Closed() {
	table.mu.Lock()
	if s.local == (key{}) {
		connected()
	} else if table.sockets[s.local] == s {
		delete(table.sockets, s.local)
	}
	if s.trip.to == s {
		s.trip.to = nil
	}
	if s.next != nil {
		s.next.from = nil
	}
	table.mu.Unlock()
	table.active.Add(-1)
}

// End ends the trip. Its sockets are closed by then. A nil trip can be ended.
func (t *Trip) End() {
	if t == nil || table.active.Load() == 0 {
		return
	}
	table.mu.Lock()
	defer table.mu.Unlock()
	t.stopWaiting()
	if t.from != nil && t.from.next == t {
		t.from.next = nil
	}
}
