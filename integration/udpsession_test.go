package integration

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// payload is random content, and its hash.
func payload(size int) (b []byte, sum [sha256.Size]byte) {
	b = make([]byte, size)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b, sha256.Sum256(b)
}

// mustArriveWhole sends a datagram of so many bytes; it must be the next one that the other end reads. It returns where it came from.
func mustArriveWhole(t testing.TB, size int, send func(b []byte) (int, error), to *net.UDPConn) netip.AddrPort {
	t.Helper()
	b, want := payload(size)
	if _, err := send(b); err != nil {
		t.Fatalf("sending %d bytes: %v", size, err)
	}
	got := make([]byte, maxDatagram)
	to.SetReadDeadline(time.Now().Add(peerTimeout))
	n, from, err := to.ReadFromUDPAddrPort(got)
	if err != nil {
		t.Fatalf("after %d bytes were sent: %v", size, err)
	}
	if sum := sha256.Sum256(got[:n]); sum != want {
		t.Fatalf("got %d bytes with the hash %x, want %d with %x", n, sum, size, want)
	}
	return from
}

// datagramSizes are those at which something changes: none, one, what an Ethernet frame takes and one more, what caddy-l4 takes and one more,
// half of the most and one more, the most.
var datagramSizes = []int{0, 1, 1472, 1473, 8999, 9001, 32769, 65507}

// Datagrams pass whole, whatever their size.
func TestDatagramsOfAllSizesPassWhole(t *testing.T) {
	t.Parallel()
	loopbacks := map[string]string{"IPv4": "127.0.0.1", "IPv6": "::1"}
	for client, listen := range loopbacks {
		for upstream, to := range loopbacks {
			t.Run(client+" to "+upstream, func(t *testing.T) {
				t.Parallel()
				addr := net.JoinHostPort(listen, fmt.Sprint(gate.ReservePort(t)))
				upstream := listenUDP(t, net.JoinHostPort(to, "0"))
				p := gate.Start(t, gate.Layer4(gate.ListenUDP(addr, gate.Forward(upstream.LocalAddr().String()))))
				for _, size := range datagramSizes { // each is the first of a session, and then another one
					passWhole(t, size, dialUDP(t, addr), upstream)
				}
				client, total := dialUDP(t, addr), 0
				for _, size := range datagramSizes {
					passWhole(t, size, client, upstream)
					total += 2 * size
				}
				must(t, equal(p.Metrics(), "caddy_portgate_datagrams_dropped_total", 0))
				p.Load(gate.Layer4())
				s := p.WaitSession(port(client))
				if n := int64(2 * len(datagramSizes)); s.BytesUp != int64(total) || s.BytesDown != int64(total) || s.DatagramsUp != n || s.DatagramsDown != n {
					t.Errorf("want %d bytes and %d datagrams each way: %s", total, n, s.Line)
				}
			})
		}
	}
}

// passWhole sends two datagrams to the upstream and two back.
func passWhole(t testing.TB, size int, client, upstream *net.UDPConn) {
	t.Helper()
	var from netip.AddrPort
	for range 2 {
		from = mustArriveWhole(t, size, client.Write, upstream)
	}
	for range 2 {
		mustArriveWhole(t, size, func(b []byte) (int, error) { return upstream.WriteToUDPAddrPort(b, from) }, client)
	}
}

// A reply leaves from the address that the client has sent to: one that is connected gets no other.
func TestRepliesLeaveFromTheAddressThatWasHit(t *testing.T) {
	t.Parallel()
	number := fmt.Sprint(gate.ReservePort(t))
	p := gate.Start(t, gate.Layer4(gate.ListenUDP(":"+number, gate.Forward(serveUDP(t, tellUDP("a"))))))
	sources := make(map[string]bool)
	for _, ip := range []string{"127.0.0.1", "127.0.0.2", "127.1.2.3", "::1"} {
		client := dialUDP(t, net.JoinHostPort(ip, number))
		sources[mustAsk(t, client, "a")] = true
		mustAsk(t, client, "a")
	}
	// One port of one client is another session for each address that it sends to.
	one := listenUDP(t, "127.0.0.1:0")
	one.SetReadDeadline(time.Now().Add(peerTimeout))
	for _, ip := range []string{"127.0.0.1", "127.0.0.2"} {
		to := netip.MustParseAddrPort(net.JoinHostPort(ip, number))
		if _, err := one.WriteToUDPAddrPort([]byte("message"), to); err != nil {
			t.Fatal(err)
		}
		n, from, err := one.ReadFromUDPAddrPort(make([]byte, maxDatagram))
		if err != nil || n == 0 || from != to {
			t.Errorf("got %d bytes from %v (%v), want them from %v", n, from, err, to)
		}
	}
	if len(sources) != 4 {
		t.Errorf("%d upstream sockets for 4 sessions", len(sources))
	}
	p.Load(gate.Layer4())
	for _, s := range p.WaitSessions(6, nil) {
		if s.Listener != ":"+number || s.Network != "udp" {
			t.Errorf("access log: %s", s.Line)
		}
		if ip := netip.MustParseAddr(s.ClientIP); ip.Is4In6() {
			t.Errorf("an IPv4 client is said to be %s", ip)
		}
	}
}
