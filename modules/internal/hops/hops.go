// Package hops tells how often a connection has come through this process already. A forward that leads back to the process,
// by whatever way, would else go on until there is no descriptor left.
//
// Each session is a [Trip]. A socket that a trip opens to an address of this machine is noted with both of its addresses. A
// session whose client has these addresses is the next hop of that trip. A unix socket is noted with the name that it is bound to.
package hops

import (
	"encoding/binary"
	"hash/maphash"
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
	exceeded func()

	// What follows is guarded by the table.
	client key     // in table.waiting, or 0
	from   *Socket // by which it has come here
	second *Socket // that it has opened beside the first: to try two addresses, or to replace one
	first  Socket  // the one that it has in most cases

	hops      uint8
	datagrams bool
}

// Socket is a socket that leads from a trip to an address of this machine.
type Socket struct {
	trip   *Trip // nil: there is no socket
	next   *Trip // which came by it
	remote netip.AddrPort
	local  key // 0 before Connected
}

// key stands for the two addresses of a socket, or for the name of a unix socket. It is a hash that no client can know: an idle session is to be small, and of
// 20,000 sockets two have the same one with a probability of 1 in 90 billion. It is never 0.
type key uint64

var seed = maphash.MakeSeed()

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
	remote := conn.RemoteAddr()
	if unix, ok := remote.(*net.UnixAddr); ok {
		return t, t.beginUnix(unix.Name)
	}
	from := listeners.AddrPort(remote)
	if !IsLocal(from.Addr()) {
		return t, true
	}
	client := keyOf(from, listeners.AddrPort(conn.LocalAddr()), datagrams)
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
	from, to := local.Addr().Unmap().WithZone(""), remote.Addr().Unmap().WithZone("")
	if to.IsUnspecified() {
		to = from
	}
	var b [37]byte
	if datagrams {
		b[0] = 1
	}
	put := func(b []byte, ip netip.Addr, port uint16) {
		*(*[16]byte)(b) = ip.As16()
		binary.NativeEndian.PutUint16(b[16:], port)
	}
	put(b[1:], from, local.Port())
	put(b[19:], to, remote.Port())
	return key(max(maphash.Bytes(seed, b[:]), 1))
}

// follow makes the trip the next hop of a socket's.
func (t *Trip) follow(s *Socket) {
	t.hops, t.from, s.next = s.trip.hops+1, s, t
}

// Hops returns how often the trip has come through this process.
func (t *Trip) Hops() int {
	table.mu.Lock()
	defer table.mu.Unlock()
	return int(t.hops)
}

// Connecting is called before the trip opens a socket. It returns nil where remote is not on this machine: then no connection can
// come back by it.
func (t *Trip) Connecting(remote netip.AddrPort) *Socket {
	if !IsLocal(remote.Addr()) {
		return nil
	}
	table.active.Add(1)
	table.mu.Lock()
	defer table.mu.Unlock()
	table.connecting++
	return t.opens(Socket{trip: t, remote: remote})
}

// opens notes a socket of the trip.
func (t *Trip) opens(s Socket) *Socket {
	to := &t.first
	if to.trip != nil {
		to = new(Socket)
		t.second = to
	}
	*to = s
	return to
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
	if t.hops > Max {
		return t
	}
	for _, s := range [...]*Socket{&t.first, t.second} {
		if s != nil && s.next != nil && over == nil {
			s.next.hops = t.hops + 1
			over = s.next.raise()
		}
	}
	return over
}

// connected notes that a socket is not being connected any more.
func connected() {
	if table.connecting--; table.connecting == 0 {
		for _, t := range table.waiting {
			t.client = 0
		}
		clear(table.waiting)
	}
}

func (t *Trip) stopWaiting() {
	if t.client != 0 && table.waiting[t.client] == t {
		delete(table.waiting, t.client)
	}
	t.client = 0
}

// Closed is called before the socket is closed, and where it could not be connected.
func (s *Socket) Closed() {
	table.mu.Lock()
	if s.local == 0 {
		connected()
	} else if table.sockets[s.local] == s {
		delete(table.sockets, s.local)
	}
	if s.trip.second == s {
		s.trip.second = nil
	}
	if s.next != nil {
		s.next.from = nil
	}
	*s = Socket{}
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
