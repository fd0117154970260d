package network

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"

	"github.com/portgate/caddy-portgate/modules/internal/fastpath"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
)

// testOpener takes "client>payload" from peers with odd numbers. "-" is the load balancer itself.
type testOpener struct{ first bool }

func (testOpener) Sends(peer netip.AddrPort) bool { return peer.Port()%2 == 1 }
func (o testOpener) FirstOnly() bool              { return o.first }

func (testOpener) Open(b []byte) (h fastpath.Header, err error) {
	client, _, ok := strings.Cut(string(b), ">")
	if !ok {
		return h, errors.New("no header")
	}
	h.Size = len(client) + 1
	h.Fields = b[:h.Size]
	if client != "-" {
		addr := netip.AddrFrom4([4]byte([]byte("\xc0\x00\x02" + client[:1])))
		h.Client, h.Local = netip.AddrPortFrom(addr, uint16(len(client))), netip.AddrPortFrom(addr, 80)
	}
	return h, nil
}

// newOpeningSocket is newTestSocket for a config that takes headers.
func newOpeningSocket(limits sessionLimits, first bool) *packetSocket {
	s := newTestSocket(limits)
	s.settings.Load().opening = &opening{Opener: testOpener{first}, keepFields: true}
	return s
}

// waiting takes what a session has waiting.
func waiting(t *testing.T, c *PacketSession) (all []string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.inbox != nil && !c.inbox.empty() {
		b := make([]byte, 1<<16)
		all = append(all, string(b[:c.inbox.read(b)]))
	}
	return all
}

func expectWaiting(t *testing.T, c *PacketSession, want string) {
	t.Helper()
	if got := strings.Join(waiting(t, c), ","); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The datagrams of many clients come from one socket, and each client has a session, whose replies go to that socket.
func TestProxiedSessions(t *testing.T) {
	t.Parallel()
	s := newOpeningSocket(defaultLimits, false)
	a, b, itself, plain := s.arrive(1, []byte("a>1")), s.arrive(1, []byte("b>2")), s.arrive(1, []byte("->3")), s.arrive(2, []byte("a>4"))
	other := s.arrive(3, []byte("a>5")) // another load balancer's a is somebody else
	if a == nil || b == nil || itself == nil || plain == nil || other == nil {
		t.Fatal("a session is missing")
	}
	for n, datagram := range []string{"b>6", "a>7", "->8", "a>", "aa>9"} {
		if c := s.arrive(1, []byte(datagram)); (c != nil) != (n == 4) {
			t.Errorf("%q has begun a session, or has not", datagram)
		}
	}
	for c, want := range map[*PacketSession]string{a: "1,7,", b: "2,6", itself: "3,8", plain: "a>4", other: "5"} {
		expectWaiting(t, c, want)
		if client, _, ok := c.Proxied(); ok != (c != plain) || client.IsValid() != (c != plain && c != itself) {
			t.Errorf("%q: client %v, %t", want, client, ok)
		}
	}
	if got := a.RemoteAddr().String(); got != from(1).addrPort().String() {
		t.Errorf("replies go to %s", got)
	}
	conn := a.forServer(nil).(*PacketConn)
	if got := string(conn.TakeProxyFields()); got != "a>" || conn.TakeProxyFields() != nil {
		t.Errorf("the header has %q, and is left", got)
	}
	_ = a.Close()
	if c := s.arrive(1, []byte("a>10")); c == nil {
		t.Error("no session after the end of one")
	}
}

// What has no valid header begins nothing, is counted, and is nobody's.
func TestProxiedWithoutHeader(t *testing.T) {
	t.Parallel()
	s := newOpeningSocket(defaultLimits, false)
	c := s.arrive(1, []byte("a>1"))
	for range 20 {
		if s.arrive(1, []byte("broken")) != nil {
			t.Fatal("a session without a header")
		}
	}
	expectWaiting(t, c, "1")
	if got := s.dropped(listeners.DropProxyHeader); got != 20 {
		t.Errorf("%d were dropped", got)
	}
	if n := s.table.count(); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

// Where only the first datagram has a header, all from there is one client's. A header that names another one may be that client's own work:
// it begins nothing, and ends what there was.
func TestProxiedByFirstDatagram(t *testing.T) {
	t.Parallel()
	s := newOpeningSocket(defaultLimits, true)
	if s.arrive(1, []byte("1")) != nil {
		t.Error("a session without a header")
	}
	c := s.arrive(1, []byte("a>2"))
	for _, datagram := range []string{"3", "", "a>4", "5"} {
		if s.arrive(1, []byte(datagram)) != nil {
			t.Errorf("%q has begun a session", datagram)
		}
	}
	expectWaiting(t, c, "2,3,,4,5")
	for _, datagram := range []string{"b>6", "7", "a>8", "->9"} {
		if s.arrive(1, []byte(datagram)) != nil {
			t.Errorf("%q has begun a session", datagram)
		}
	}
	expectWaiting(t, c, "")
	if client, _, _ := c.Proxied(); client.String() != "192.0.2.97:1" {
		t.Errorf("the client is %v", client)
	}
	if got := s.dropped(listeners.DropProxyHeader); got != 5 {
		t.Errorf("%d were dropped, want 5", got)
	}
	_ = c.Close()
	if s.arrive(1, []byte("10")) != nil {
		t.Error("a session goes on without a header")
	}
	if s.arrive(1, []byte("b>11")) == nil {
		t.Error("no session after the end of one")
	}
}

// The session may end while its datagram is delivered.
func TestProxiedByFirstDatagramEnds(t *testing.T) {
	t.Parallel()
	s := newOpeningSocket(defaultLimits, true)
	c := s.arrive(1, []byte("a>1"))
	if !c.Attach(func(b []byte) bool { return string(b) != "last" }, func(string) {}) {
		t.Fatal("not attached")
	}
	if s.arrive(1, []byte("last")) != nil || s.dropped(listeners.DropProxyHeader) != 1 {
		t.Error("a datagram without a header has begun a session")
	}
}

// Limits are those of the client that is named, and a flood of named clients takes no place of those that have been answered.
func TestProxiedLimits(t *testing.T) {
	t.Parallel()
	s := newOpeningSocket(sessionLimits{total: 100, perClient: 3}, false)
	for n := range 5 {
		s.arrive(1, []byte("a"+strings.Repeat("x", n)+">"))
	}
	if n := s.table.count(); n != 3 {
		t.Errorf("%d sessions of one client, want 3", n)
	}
	kept := s.arrive(1, []byte("k>1"))
	kept.Answered()
	s.arrive(1, []byte("k>2"))
	for n := range 500 {
		s.arrive(1, []byte(string(rune('A'+n%50))+strings.Repeat("y", n/50)+">"))
	}
	if n := s.table.count(); n < 50 || n > 100 || kept.ended.Load() {
		t.Errorf("%d sessions; the one that has been answered has ended: %t", n, kept.ended.Load())
	}
	if err := s.destructed(); err != nil {
		t.Error(err)
	}
}

// destructed ends all sessions, as Destruct does, and says what is left.
func (s *packetSocket) destructed() error {
	for _, c := range s.table.all() {
		_ = c.Close()
	}
	if n, held := s.table.count(), s.held.Load(); n != 0 || held != 0 || len(s.table.clients) != 0 {
		return fmt.Errorf("%d sessions of %d clients, %d bytes are left", n, len(s.table.clients), held)
	}
	return nil
}

// A listener that takes no headers pays nothing, and one that does allocates nothing for a datagram of a session that there is.
func TestProxiedCost(t *testing.T) {
	for name, opens := range map[string]bool{"without": false, "with": true} {
		s := newTestSocket(defaultLimits)
		if opens {
			s.settings.Load().opening = &opening{Opener: staticOpener{}}
		}
		c := s.arrive(1, []byte("a>1"))
		if !c.Attach(func([]byte) bool { return true }, func(string) {}) {
			t.Fatal("not attached")
		}
		f, b := from(1), []byte("a>2")
		if n := testing.AllocsPerRun(100, func() { s.deliver(f, b, false) }); n > 0 {
			t.Errorf("%s headers: %v allocations", name, n)
		}
	}
}

// staticOpener takes the first two bytes for the header of one client.
type staticOpener struct{}

func (staticOpener) Sends(netip.AddrPort) bool { return true }
func (staticOpener) FirstOnly() bool           { return false }
func (staticOpener) Open([]byte) (fastpath.Header, error) {
	return fastpath.Header{Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{1}), 1), Local: netip.AddrPortFrom(netip.AddrFrom4([4]byte{2}), 2), Size: 2}, nil
}

// Any history leaves the tables of both kinds of sessions and the counts of clients in step.
func TestProxiedHistories(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		s := newOpeningSocket(sessionLimits{total: 8, perClient: 3}, seed%2 == 1)
		var open []*PacketSession
		for range 500 {
			n := random.IntN(6)
			datagram := string(rune('a'+random.IntN(5))) + strings.Repeat("z", random.IntN(2)) + []string{">", ""}[random.IntN(5)/4]
			if c := s.arrive(n, []byte(datagram)); c != nil {
				open = append(open, c)
			}
			if len(open) > 0 && random.IntN(3) == 0 {
				i := random.IntN(len(open))
				if random.IntN(2) == 0 {
					open[i].Answered()
					continue
				}
				_ = open[i].Close()
				open = append(open[:i], open[i+1:]...)
			}
			counted := 0
			for _, cl := range s.table.clients {
				if counted += cl.count; cl.count > 3 || cl.count == 0 {
					t.Fatalf("seed %d: a client has %d sessions", seed, cl.count)
				}
			}
			if counted != s.table.count() || counted > 8 {
				t.Fatalf("seed %d: %d sessions, %d of clients", seed, s.table.count(), counted)
			}
		}
		for _, c := range open {
			_ = c.Close()
		}
		for len(s.accepted) > 0 {
			_ = (<-s.accepted).Close()
		}
		if err := s.destructed(); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
}

func BenchmarkDeliverProxied(b *testing.B) {
	s := newTestSocket(defaultLimits)
	s.settings.Load().opening = &opening{Opener: staticOpener{}}
	for n := range 1000 {
		s.arrive(n, []byte("a>")).Attach(receiveNothing, func(string) {})
	}
	payload := make([]byte, 64)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		f := from(n % 1000)
		s.deliver(f, payload, false)
	}
}

func init() { caddy.RegisterModule(new(openerHandler)) }

// openerHandler offers a testOpener, which takes everybody for a load balancer.
type openerHandler struct{ testOpener }

func (*openerHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers.test_opener", New: func() caddy.Module { return new(openerHandler) }}
}

func (o *openerHandler) Provision(ctx caddy.Context) error {
	return fastpath.OfferOpener(ctx, placement.Find(ctx, "test_opener", "{}"), "test_opener", o)
}

func (*openerHandler) Sends(netip.AddrPort) bool { return true }

func (*openerHandler) Handle(cx *layer4.Connection, next layer4.Handler) error {
	client, local, ok := listeners.Accepted(cx).(*PacketConn).Proxied()
	_, err := fmt.Fprintf(cx, "%v to %v, %t", client, local, ok)
	return err
}

// freeUDPAddresses returns two addresses with ports next to each other, and another one.
func freeUDPAddresses(t *testing.T) (first string, next netip.AddrPort, other string) {
	t.Helper()
	for range 100 {
		first = freeUDPAddress(t)
		addr := netip.MustParseAddrPort(first)
		next = netip.AddrPortFrom(addr.Addr(), addr.Port()+1)
		if conn, err := net.ListenPacket("udp", next.String()); err == nil && next.Port() > 0 {
			_ = conn.Close()
			return first, next, freeUDPAddress(t)
		}
	}
	t.Fatal("no two ports are free next to each other")
	return "", netip.AddrPort{}, ""
}

// A listener asks the handler of its own server, for each port of a range, wherever that stands in the routes.
func TestListenersAskTheirOpener(t *testing.T) {
	first, next, without := freeUDPAddresses(t)
	t.Cleanup(func() { _ = caddy.Stop() })
	err := caddy.Load(fmt.Appendf(nil, `{"admin":{"disabled":true,"config":{"persist":false}},"logging":{"logs":{"default":{"writer":{"output":"discard"}}}},
		"apps":{"layer4":{"servers":{
			"a":{"listen":["gate+udp/%s-%d"],"routes":[{"handle":[{"handler":"subroute","routes":[{"handle":[{"handler":"test_opener"}]}]}]}]},
			"b":{"listen":["gate+udp/%s"],"routes":[{"handle":[{"handler":"test_greeter"}]}]}}}}}`, first, next.Port(), without), true)
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{
		first: "192.0.2.97:1 to 192.0.2.97:80, true", next.String(): "192.0.2.97:1 to 192.0.2.97:80, true", without: "directly: ",
	} {
		client := dialUDP(t, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
		say(t, client, "a>hello")
		b := make([]byte, 1<<10)
		n, err := client.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:n]), want) {
			t.Errorf("%s: got %q, %v, want %q", address, b[:n], err, want)
		}
	}
}
