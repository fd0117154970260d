package relay

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// packetPair is a kind of client, and with it one of the engines.
type packetPair struct {
	name string

	// accept makes a session of a client: the relay's end of it, and the test's socket.
	accept func(testing.TB, string) (ours net.Conn, theirs *net.UDPConn)

	// host is where clients and upstreams are.
	host string

	loop bool // the event loops serve it
}

var goroutinePacketPairs = []packetPair{
	{name: "goroutines/v4", accept: acceptQueued, host: "127.0.0.1"},
	{name: "goroutines/v6", accept: acceptQueued, host: "::1"},
}

var packetPairs = slices.Concat(goroutinePacketPairs, loopPacketPairs)

// packetEngines are the pairs for what has nothing to do with the kind of address.
var packetEngines = append([]packetPair{goroutinePacketPairs[0]}, loopPacketPairs[:min(1, len(loopPacketPairs))]...)

func overPackets(t *testing.T, pairs []packetPair, test func(*testing.T, packetPair)) {
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			test(t, p)
		})
	}
}

// queuedClient is a session of a listener that reads each of its client's datagrams for who asks for it: a
// net.Conn as stock listeners have it.
type queuedClient struct {
	sock   *net.UDPConn
	remote netip.AddrPort

	mu       sync.Mutex
	changed  *sync.Cond
	queue    [][]byte
	closed   bool
	deadline time.Time

	over    chan struct{} // when the receiver has ended
	closes  atomic.Int32
	answers atomic.Int32
	replies atomic.Int64 // written
	arrived atomic.Int64 // from the client
	receive func(b []byte) bool
	onClose func(reason string)
	taking  sync.Mutex // held while receive is called
}

// newQueuedClient opens a listener for one client, which it knows from the first datagram, an empty one of the
// harness.
func newQueuedClient(t testing.TB, host string) (*queuedClient, *net.UDPConn) {
	t.Helper()
	sock, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(host)})
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := net.DialUDP("udp", nil, sock.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*net.UDPConn{sock, theirs} {
		_ = c.SetReadBuffer(8 << 20)
		_ = c.SetWriteBuffer(8 << 20)
	}
	_ = theirs.SetDeadline(time.Now().Add(patience))
	c := &queuedClient{sock: sock, over: make(chan struct{})}
	c.remote = theirs.LocalAddr().(*net.UDPAddr).AddrPort()
	c.changed = sync.NewCond(&c.mu)
	go c.run()
	t.Cleanup(func() {
		theirs.Close()
		sock.Close()
		<-c.over
	})
	return c, theirs
}

func acceptQueued(t testing.TB, host string) (net.Conn, *net.UDPConn) {
	t.Helper()
	c, theirs := newQueuedClient(t, host)
	return c, theirs
}

// run is the receive loop.
func (c *queuedClient) run() {
	defer close(c.over)
	buf := make([]byte, packetSize)
	for {
		n, from, err := c.sock.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if from == c.remote { // a port is soon given to somebody else
			c.deliver(buf[:n])
		}
	}
}

func (c *queuedClient) deliver(b []byte) {
	c.taking.Lock()
	defer c.taking.Unlock()
	c.mu.Lock()
	receive := c.receive
	if receive == nil && !c.closed {
		c.queue = append(c.queue, slices.Clone(b))
		c.changed.Broadcast()
	}
	if c.closed {
		receive = nil
	}
	c.mu.Unlock()
	if receive != nil {
		receive(b)
	}
	c.arrived.Add(1)
}

// await waits until n datagrams have come from the client.
func (c *queuedClient) await(t testing.TB, n int) {
	t.Helper()
	eventually(t, "arrival", func() bool { return c.arrived.Load() >= int64(n) })
}

func (c *queuedClient) Read(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, io.EOF
		case !c.deadline.IsZero() && !time.Now().Before(c.deadline):
			return 0, os.ErrDeadlineExceeded
		case len(c.queue) > 0:
			n := copy(b, c.queue[0])
			c.queue = c.queue[1:]
			return n, nil
		}
		c.changed.Wait()
	}
}

func (c *queuedClient) Write(b []byte) (int, error) {
	c.replies.Add(1)
	return c.sock.WriteToUDPAddrPort(b, c.remote)
}

func (c *queuedClient) Close() error {
	c.closes.Add(1)
	c.mu.Lock()
	c.closed = true
	c.changed.Broadcast()
	c.mu.Unlock()
	c.taking.Lock() // for a call of receive to end
	defer c.taking.Unlock()
	return nil
}

// evict ends the session from the network's side.
func (c *queuedClient) evict() {
	c.mu.Lock()
	onClose := c.onClose
	c.onClose = nil
	if onClose == nil { // nobody has attached
		c.closed = true
		c.changed.Broadcast()
	}
	c.mu.Unlock()
	if onClose != nil {
		onClose("evicted")
	}
}

func (c *queuedClient) LocalAddr() net.Addr  { return c.sock.LocalAddr() }
func (c *queuedClient) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(c.remote) }

func (c *queuedClient) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	c.changed.Broadcast()
	return nil
}
func (c *queuedClient) SetDeadline(t time.Time) error  { return c.SetReadDeadline(t) }
func (*queuedClient) SetWriteDeadline(time.Time) error { return nil }

// packetSession is a relay of datagrams between two sockets that the test holds.
type packetSession struct {
	testing.TB
	relay    *PacketRelay
	network  *queuedClient
	client   *net.UDPConn
	upstream *net.UDPConn   // a server's
	peer     netip.AddrPort // the relay, as the server sees it

	mu    sync.Mutex
	drops map[Drop]int

	ended   chan PacketResult
	dones   atomic.Int32
	running sync.WaitGroup
}

// queued is what a test's client is to the harness, whatever it is to the relay.
func queuedOf(c net.Conn) *queuedClient {
	if q, ok := c.(*queuedClient); ok {
		return q
	}
	return c.(interface{ queued() *queuedClient }).queued()
}

// prepare makes a relay that does not run yet.
func (p packetPair) prepare(t testing.TB, next func(context.Context, error) (net.Addr, error), with ...func(*PacketConfig)) *packetSession {
	t.Helper()
	s := &packetSession{TB: t, ended: make(chan PacketResult, 1), drops: map[Drop]int{}}
	cfg := PacketConfig{
		Next: next, Name: sessionName(t.Name()),
		Dropped: func(why Drop) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.drops[why]++
		},
		Done: func(r PacketResult) {
			if s.dones.Add(1) > 1 {
				t.Error("Done was called twice")
				return
			}
			if n := s.network.closes.Load(); n != 0 {
				t.Errorf("the client was closed %d times before Done", n)
			}
			s.ended <- r
		},
	}
	cfg.Client, s.client = p.accept(t, p.host)
	s.network = queuedOf(cfg.Client)
	for _, set := range with {
		set(&cfg)
	}
	s.relay = NewPacket(cfg)
	return s
}

func (s *packetSession) run() {
	s.Helper()
	s.running.Go(s.relay.Run)
	s.Cleanup(func() {
		s.relay.Close(testOver)
		s.running.Wait()
		eventually(s, "Done", func() bool { return s.dones.Load() == 1 })
	})
}

func (p packetPair) start(t testing.TB, next func(context.Context, error) (net.Addr, error), with ...func(*PacketConfig)) *packetSession {
	t.Helper()
	s := p.prepare(t, next, with...)
	s.run()
	return s
}

// listen opens a server's socket.
func (p packetPair) listen(t testing.TB) *net.UDPConn {
	t.Helper()
	return listenPackets(t, &net.UDPAddr{IP: net.ParseIP(p.host)})
}

func listenPackets(t testing.TB, addr *net.UDPAddr) *net.UDPConn {
	t.Helper()
	sock, err := net.ListenUDP("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = sock.SetReadBuffer(8 << 20)
	_ = sock.SetWriteBuffer(8 << 20)
	_ = sock.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { sock.Close() })
	return sock
}

// open runs a relay through which a datagram has gone each way.
func (p packetPair) open(t testing.TB, with ...func(*PacketConfig)) *packetSession {
	t.Helper()
	sock := p.listen(t)
	s := p.start(t, always(sock.LocalAddr()), with...)
	s.upstream = sock
	s.exchange([]byte("hello"))
	return s
}

// always gives the same address.
func always(addr net.Addr) func(context.Context, error) (net.Addr, error) {
	return func(context.Context, error) (net.Addr, error) { return addr, nil }
}

// exchange passes one datagram each way.
func (s *packetSession) exchange(b []byte) {
	s.Helper()
	s.up(b)
	s.down(b)
}

func (s *packetSession) up(b []byte) {
	s.Helper()
	s.sendUp(b)
	s.wantUp(b)
}

func (s *packetSession) down(b []byte) {
	s.Helper()
	s.sendDown(b)
	s.wantDown(b)
}

func (s *packetSession) sendUp(b []byte) {
	s.Helper()
	if _, err := s.client.Write(b); err != nil {
		s.Error(err)
	}
}

func (s *packetSession) sendDown(b []byte) {
	s.Helper()
	if _, err := s.upstream.WriteToUDPAddrPort(b, s.peer); err != nil {
		s.Error(err)
	}
}

// wantUp checks that the next datagram at the server is b.
func (s *packetSession) wantUp(b []byte) {
	s.Helper()
	buf := make([]byte, packetSize)
	n, peer, err := s.upstream.ReadFromUDPAddrPort(buf)
	for err == nil && string(buf[:n]) == string(knocking) {
		n, peer, err = s.upstream.ReadFromUDPAddrPort(buf)
	}
	if err != nil {
		s.Fatalf("no datagram at the upstream: %v", err)
	}
	s.peer = peer
	s.same("upstream", buf[:n], b)
}

// wantDown checks that the next datagram at the client is b.
func (s *packetSession) wantDown(b []byte) {
	s.Helper()
	buf := make([]byte, packetSize)
	n, err := s.client.Read(buf)
	if err != nil {
		s.Fatalf("no datagram at the client: %v", err)
	}
	s.same("client", buf[:n], b)
}

func (s *packetSession) same(where string, got, want []byte) {
	s.Helper()
	if string(got) != string(want) {
		s.Errorf("%s: got %d bytes that begin with %.20q, want %d that begin with %.20q",
			where, len(got), got, len(want), want)
	}
}

// dropped is how many datagrams were, for a reason.
func (s *packetSession) dropped(why Drop) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drops[why]
}

func (s *packetSession) result() PacketResult {
	s.Helper()
	select {
	case r := <-s.ended:
		eventually(s, "end of the client's session", func() bool { return s.network.closes.Load() == 1 })
		return r
	case <-time.After(patience):
		s.Fatal("Done was not called")
		panic("not reached")
	}
}

func (s *packetSession) want(reason Reason) PacketResult {
	s.Helper()
	r := s.result()
	if r.Reason != reason {
		s.Errorf("reason: got %s, want %s", r.Reason, reason)
	}
	return r
}

// packetLimits sets a relay's limits.
func packetLimits(l Limits) func(*PacketConfig) { return func(c *PacketConfig) { c.Limits = l } }
