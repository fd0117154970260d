package hops

import (
	"net"
	"net/netip"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// conn is a connection by its addresses.
type conn struct {
	net.Conn
	client, listener netip.AddrPort
}

func (c conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.client) }
func (c conn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.listener) }

func ap(host string, port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(host), uint16(port))
}

// loop goes from one listener to itself until it is refused. race has each connection accepted before the socket knows its
// address.
func loop(t *testing.T, race bool) (hops int) {
	t.Helper()
	listener := ap("127.0.0.1", 80)
	client := ap("127.0.0.1", 10)
	closed := -1
	var trips []*Trip
	var sockets []*Socket
	defer func() {
		for _, s := range sockets {
			s.Closed()
		}
		for _, t := range trips {
			t.End()
		}
	}()
	var connecting *Socket
	for n := range 20 {
		trip, ok := Begin(conn{client: client, listener: listener}, false, func() { closed = n })
		trips = append(trips, trip)
		if connecting != nil && race {
			connecting.Connected(client)
		}
		if !ok {
			closed = n
		}
		if closed >= 0 {
			return closed
		}
		s := trip.Connecting(listener)
		sockets = append(sockets, s)
		client = ap("127.0.0.1", 1000+n)
		if connecting = s; !race {
			s.Connected(client)
		}
	}
	return -1
}

func mustBeEmpty(t *testing.T) {
	t.Helper()
	table.mu.Lock()
	defer table.mu.Unlock()
	if len(table.sockets) > 0 || len(table.waiting) > 0 || table.connecting != 0 || table.active.Load() != 0 {
		t.Errorf("left: %d sockets, %d waiting, %d connecting, %d active", len(table.sockets), len(table.waiting), table.connecting, table.active.Load())
	}
}

func TestLoop(t *testing.T) {
	for _, race := range []bool{false, true} {
		if n := loop(t, race); n != Max+1 {
			t.Errorf("race=%t: closed at hop %d", race, n)
		}
		mustBeEmpty(t)
	}
}

// All connections of a loop are accepted before the first socket knows its address.
func TestLoopThatIsKnownLate(t *testing.T) {
	listener := ap("127.0.0.1", 80)
	var exceeded []int
	var trips []*Trip
	var sockets []*Socket
	for n := range 10 {
		trip, ok := Begin(conn{client: ap("127.0.0.1", 1000+n), listener: listener}, false, func() { exceeded = append(exceeded, n) })
		if !ok {
			t.Fatalf("refused at %d", n)
		}
		trips, sockets = append(trips, trip), append(sockets, trip.Connecting(listener))
	}
	for n, s := range sockets[:9] {
		s.Connected(ap("127.0.0.1", 1001+n))
	}
	if len(exceeded) == 0 || exceeded[0] != Max+1 {
		t.Errorf("closed: %v", exceeded)
	}
	for _, s := range sockets {
		s.Closed()
	}
	for _, trip := range trips {
		trip.End()
	}
	mustBeEmpty(t)
}

// A trip may have two sockets, of which it closes one: what comes by the other one is still its next hop.
func TestTripWithTwoSockets(t *testing.T) {
	for kept := range 2 {
		listener := ap("127.0.0.1", 80)
		before, _ := Begin(conn{client: ap("198.51.100.1", 1), listener: listener}, false, nil)
		from := before.Connecting(listener)
		trip, _ := Begin(conn{client: ap("127.0.0.1", 1000), listener: listener}, false, func() {})
		var sockets []*Socket
		for n := range 2 {
			s := trip.Connecting(listener)
			s.Connected(ap("127.0.0.1", 2000+n))
			sockets = append(sockets, s)
		}
		sockets[1-kept].Closed()
		next, _ := Begin(conn{client: ap("127.0.0.1", 2000+kept), listener: listener}, false, func() {})
		from.Connected(ap("127.0.0.1", 1000)) // where the trip has come from is known only now
		if trip.Hops() != 1 || next.Hops() != 2 {
			t.Errorf("socket %d: %d hops, then %d", kept, trip.Hops(), next.Hops())
		}
		sockets[kept].Closed()
		from.Closed()
		for _, trip := range []*Trip{next, trip, before} {
			trip.End()
		}
	}
	mustBeEmpty(t)
}

// Whoever has the address of a socket towards another port, or of one that was closed, is a client like any other.
func TestInnocentClients(t *testing.T) {
	own, _ := Begin(conn{client: ap("127.0.0.1", 1), listener: ap("127.0.0.1", 2)}, false, nil)
	s := own.Connecting(ap("127.0.0.1", 80))
	s.Connected(ap("127.0.0.1", 1000))
	for _, c := range []struct {
		client, listener netip.AddrPort
		datagrams        bool
		hops             int
	}{
		{ap("127.0.0.1", 1000), ap("127.0.0.1", 80), false, 1},
		{ap("127.0.0.1", 1000), ap("::ffff:127.0.0.1", 80), false, 1},
		{ap("127.0.0.1", 1000), ap("0.0.0.0", 80), false, 1},
		{ap("127.0.0.1", 1000), ap("127.0.0.1", 81), false, 0},
		{ap("127.0.0.1", 1000), ap("127.0.0.2", 80), false, 0},
		{ap("127.0.0.1", 1001), ap("127.0.0.1", 80), false, 0},
		{ap("127.0.0.1", 1000), ap("127.0.0.1", 80), true, 0},
		{ap("198.51.100.1", 1000), ap("127.0.0.1", 80), false, 0},
	} {
		trip, _ := Begin(conn{client: c.client, listener: c.listener}, c.datagrams, nil)
		if trip.Hops() != c.hops {
			t.Errorf("%+v: %d hops", c, trip.Hops())
		}
		trip.End()
	}
	s.Closed()
	if trip, _ := Begin(conn{client: ap("127.0.0.1", 1000), listener: ap("127.0.0.1", 80)}, false, nil); trip.Hops() != 0 {
		t.Error("the socket was closed, and its client is known")
	}
	if s := own.Connecting(ap("198.51.100.1", 80)); s != nil {
		t.Error("a socket that leads elsewhere is noted")
	}
	own.End()
	mustBeEmpty(t)
}

// unixConn is a connection to a unix socket by the name of its client.
type unixConn struct {
	net.Conn
	client string
}

func (c unixConn) RemoteAddr() net.Addr { return &net.UnixAddr{Net: "unix", Name: c.client} }

// A loop through unix sockets, or through these and ports by turns, ends as soon as one through ports does. Where nobody listens on a unix
// socket, none has a name.
func TestUnixSockets(t *testing.T) {
	own, _ := Begin(unixConn{}, false, nil)
	if name, s := own.ConnectingUnix(); name != "" || s != nil {
		t.Errorf("named %q, and nobody listens", name)
	}
	ListenUnix()
	defer LeaveUnix()
	for _, ports := range []bool{false, true} {
		client := net.Conn(unixConn{client: "@"})
		var sockets []*Socket
		var trips []*Trip
		hops := 0
		for ; ; hops++ {
			trip, ok := Begin(client, false, nil)
			if !ok || hops > 2*Max {
				break
			}
			trips = append(trips, trip)
			if ports && hops%2 == 0 {
				from, to := ap("127.0.0.1", 1000+hops), ap("127.0.0.1", 80)
				s := trip.Connecting(to)
				s.Connected(from)
				client, sockets = conn{client: from, listener: to}, append(sockets, s)
				continue
			}
			name, s := trip.ConnectingUnix()
			client, sockets = unixConn{client: name}, append(sockets, s)
		}
		if hops != Max+1 {
			t.Errorf("ports=%t: refused at hop %d", ports, hops)
		}
		for _, name := range []string{"", "@", "/run/client", "@portgate-"} {
			if other, _ := Begin(unixConn{client: name}, false, nil); other.Hops() != 0 {
				t.Errorf("client %q: %d hops", name, other.Hops())
			}
		}
		for _, s := range sockets {
			s.Closed()
		}
		if other, _ := Begin(client, false, nil); other.Hops() != 0 {
			t.Error("the socket was closed, and its client is known")
		}
		for _, trip := range trips {
			trip.End()
		}
	}
	own.End()
	mustBeEmpty(t)
}

// However sessions and sockets come and go, nothing is left.
func TestManyAtATime(t *testing.T) {
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for n := range 500 {
				client := ap("127.0.0.1", 1+g*1000+n)
				trip, _ := Begin(conn{client: client, listener: ap("127.0.0.1", 80)}, n%2 == 0, func() {})
				s := trip.Connecting(ap("127.0.0.1", 80))
				if n%3 > 0 {
					s.Connected(ap("127.0.0.1", 1+(g*1000+n+1)%8000))
				}
				s.Closed()
				trip.End()
			}
		})
	}
	all.Wait()
	mustBeEmpty(t)
}

func TestAddressesOfThisMachine(t *testing.T) {
	found, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range found {
		ip, _ := netip.AddrFromSlice(addr.(*net.IPNet).IP)
		if !IsLocal(ip.Unmap()) || !IsLocal(ip.WithZone("eth0")) && ip.Is6() {
			t.Errorf("%v is not of this machine", ip)
		}
	}
	for address, want := range map[string]bool{"127.9.9.9": true, "::1": true, "0.0.0.0": true, "::": true, "198.51.100.1": false, "2001:db8::1": false} {
		if got := IsLocal(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: %t", address, got)
		}
	}
	var w Where
	asked := 0
	ask := func(ip string) bool {
		return w.AnyLocal(func(take func(netip.Addr)) {
			asked++
			take(netip.MustParseAddr("198.51.100.1"))
			take(netip.MustParseAddr(ip))
		})
	}
	if !ask("127.0.0.1") || !ask("198.51.100.2") || asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	readAddresses()
	if ask("198.51.100.2") || asked != 2 {
		t.Errorf("asked %d times", asked)
	}
}

func BenchmarkUnixHop(b *testing.B) {
	ListenUnix()
	defer LeaveUnix()
	b.ReportAllocs()
	for b.Loop() {
		trip, _ := Begin(unixConn{}, false, nil)
		_, s := trip.ConnectingUnix()
		s.Closed()
		trip.End()
	}
}

func BenchmarkHop(b *testing.B) {
	listener := ap("127.0.0.1", 80)
	for name, remote := range map[string]netip.AddrPort{"here": listener, "elsewhere": ap("198.51.100.1", 80)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			c := conn{client: ap("127.0.0.1", 1), listener: listener}
			for b.Loop() {
				trip, _ := Begin(c, false, nil)
				if s := trip.Connecting(remote); s != nil {
					s.Connected(ap("127.0.0.1", 1000))
					s.Closed()
				}
				trip.End()
			}
		})
	}
}

// A socket that was connected before its session is one of the session's, from when that takes it: also what has come through it by then.
func TestSocketThatWasKept(t *testing.T) {
	for _, early := range []bool{true, false} {
		listener := ap("127.0.0.1", 80)
		var trips []*Trip
		var sockets []*Socket
		client, exceeded := ap("127.0.0.1", 10), -1
		for n := range 20 {
			kept := Keep().Connecting(listener)
			next := ap("127.0.0.1", 1000+n)
			kept.Connected(next)
			sockets = append(sockets, kept)
			trip, ok := Begin(conn{client: client, listener: listener}, false, func() { exceeded = n })
			if !ok {
				exceeded = n
			}
			trips = append(trips, trip)
			if exceeded >= 0 {
				break
			}
			if early { // the other side accepts it before
				trip, _ := Begin(conn{client: next, listener: listener}, false, func() {})
				if trip.Hops() != 1 {
					t.Errorf("%d hops through a socket of nobody", trip.Hops())
				}
				trips = append(trips, trip)
			}
			kept.MoveTo(trip)
			if last := trips[len(trips)-1]; early && last.Hops() != n+1 && last.Hops() != trip.Hops()+1 {
				t.Errorf("%d hops behind one of %d", last.Hops(), trip.Hops())
			}
			client = next
		}
		if exceeded != Max+1 {
			t.Errorf("early %t: ended at %d, want %d", early, exceeded, Max+1)
		}
		for _, s := range sockets {
			s.Closed()
		}
		for _, trip := range trips {
			trip.End()
		}
		mustBeEmpty(t)
	}
}

// All connections of a loop may be there before the first client comes.
func TestLoopOfKeptSockets(t *testing.T) {
	listener := ap("127.0.0.1", 80)
	var exceeded []int
	var trips []*Trip
	var sockets []*Socket
	for n := range 10 {
		s := Keep().Connecting(listener)
		s.Connected(ap("127.0.0.1", 1001+n))
		sockets = append(sockets, s)
	}
	for n := range 10 {
		trip, ok := Begin(conn{client: ap("127.0.0.1", 1000+n), listener: listener}, false, func() { exceeded = append(exceeded, n) })
		if !ok {
			t.Fatalf("refused at %d", n)
		}
		trips = append(trips, trip)
	}
	for n := 9; n >= 0; n-- {
		sockets[n].MoveTo(trips[n])
	}
	if len(exceeded) == 0 || exceeded[0] != 9 { // the last one is the first that is too far from the others
		t.Errorf("closed: %v", exceeded)
	}
	for _, s := range sockets {
		s.Closed()
	}
	for _, trip := range trips {
		trip.End()
	}
	mustBeEmpty(t)
}
