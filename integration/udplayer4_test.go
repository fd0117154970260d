package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// A datagram that a matcher has read is forwarded whole, first and once.
func TestMatchedDatagramIsForwardedWholeAndOnce(t *testing.T) {
	t.Parallel()
	hello := func(size int) []byte {
		b, _ := payload(size)
		copy(b, "hello")
		return b
	}
	regexp := gate.JSON{"regexp": gate.JSON{"pattern": "^hello", "count": 5}}
	cases := map[string]struct {
		match gate.JSON
		first []byte
	}{
		"no matcher":              {nil, hello(100)},
		"regexp":                  {regexp, hello(5)},
		"regexp of 2,049 bytes":   {regexp, hello(2049)},
		"regexp of 9,000 bytes":   {regexp, hello(9000)},
		"regexp of 65,507 bytes":  {regexp, hello(65507)},
		"regexp that reads 9,000": {gate.JSON{"regexp": gate.JSON{"pattern": "^hello", "count": 9000}}, hello(9000)},
		"dns":                     {gate.JSON{"dns": gate.JSON{}}, dnsQuery("portgate.example")},
		"wireguard":               {gate.JSON{"wireguard": gate.JSON{}}, wireguardInitiation()},
		// Not its matcher quic, which asks for more than a net.Conn can do: it takes only sessions of the stock network (caddy-l4
		// v0.1.2, Connection.WaitForMore). This is the long header of QUIC version 1 (RFC 9000, section 17.2).
		"quic": {gate.JSON{"regexp": gate.JSON{"pattern": "^[C-F].00000001", "count": 5, "hex": true}}, quicInitial(t)},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr, upstream := gate.ReserveAddr(t), listenUDP(t, "127.0.0.1:0")
			server := gate.ListenUDP(addr, gate.Forward(upstream.LocalAddr().String()))
			if c.match != nil {
				server.Routes[0].Match = []gate.JSON{c.match}
			}
			p := gate.Start(t, gate.Layer4(server))
			client := dialUDP(t, addr)
			second, _ := payload(300)
			for _, b := range [][]byte{c.first, second} { // the second may come while matchers have the first
				if _, err := client.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			var from netip.AddrPort
			for i, want := range [][]byte{c.first, second} {
				got := make([]byte, maxDatagram)
				upstream.SetReadDeadline(time.Now().Add(peerTimeout))
				n, source, err := upstream.ReadFromUDPAddrPort(got)
				if err != nil || !bytes.Equal(got[:n], want) || i > 0 && source != from {
					t.Fatalf("datagram %d: got %d bytes from %v (%v), want %d from %v: %.60q, want %.60q", i, n, source, err, len(want), from, got[:n], want)
				}
				from = source
			}
			sendDown(t, 3, 1000, upstream, from, client)
			if sendUp(t, 9001, client, upstream) != from {
				t.Error("a later datagram comes from another upstream socket")
			}
			p.Load(gate.Layer4())
			if s := p.WaitSession(port(client)); s.DatagramsUp != 3 || s.BytesUp != int64(len(c.first)+300+9001) || s.DatagramsDown != 3 {
				t.Errorf("access log: %s", s.Line)
			}
		})
	}
}

// dnsQuery asks for the address of a name (RFC 1035, section 4).
func dnsQuery(name string) []byte {
	query := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for part := range strings.SplitSeq(name, ".") {
		query = append(append(query, byte(len(part))), part...)
	}
	return append(query, 0, 0, 1, 0, 1)
}

// wireguardInitiation is a message that begins a handshake, with content that only its receiver could tell from a real one's.
func wireguardInitiation() []byte {
	const size, initiation = 148, 1
	message, _ := payload(size)
	binary.LittleEndian.PutUint32(message, initiation)
	return message
}

// quicInitial is the first datagram of a QUIC client.
func quicInitial(t testing.TB) []byte {
	t.Helper()
	server := listenUDP(t, "127.0.0.1:0")
	ctx, cancel := context.WithCancel(t.Context())
	dialed := make(chan struct{})
	go func() {
		defer close(dialed)
		_, _ = quic.DialAddr(ctx, server.LocalAddr().String(), &tls.Config{ServerName: "localhost", NextProtos: []string{"test"}, InsecureSkipVerify: true}, nil)
	}()
	server.SetReadDeadline(time.Now().Add(peerTimeout))
	b := make([]byte, maxDatagram)
	n, _, err := server.ReadFromUDPAddrPort(b)
	must(t, err)
	cancel()
	<-dialed
	return b[:n]
}

// Where routes have matchers, each client gets the one that fits its first datagram.
func TestDatagramsTakeTheRouteThatMatches(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	server := gate.ListenUDP(addr, gate.Forward(serveUDP(t, tellUDP("other"))))
	for _, route := range []struct {
		upstream string
		match    gate.JSON
	}{
		{"dns", gate.JSON{"dns": gate.JSON{}}},
		{"wireguard", gate.JSON{"wireguard": gate.JSON{}}},
		{"hostile", gate.JSON{"remote_ip": gate.JSON{"ranges": []string{hostile}}}},
	} {
		forward := gate.Forward(serveUDP(t, tellUDP(route.upstream)))
		server.Routes = slices.Insert(server.Routes, len(server.Routes)-1, gate.Route{Match: []gate.JSON{route.match}, Handle: []gate.JSON{forward}})
	}
	gate.Start(t, gate.Layer4(server))
	for i, c := range []struct{ ip, message, upstream string }{
		{"", "hello", "other"},
		{"", string(dnsQuery("portgate.example")), "dns"},
		{"", string(wireguardInitiation()), "wireguard"},
		{hostile, "hello", "hostile"},
	} {
		client := dialUDPFrom(t, c.ip, addr)
		for range 2 { // also what follows
			if name, _, err := ask(client, c.message); err != nil || name != c.upstream {
				t.Errorf("client %d: handled by %q (%v), want %q", i, name, err, c.upstream)
			}
		}
	}
}

// A handler that wraps the connection, or is not forward, gets datagrams one at a time.
func TestOtherHandlersOnGateUDP(t *testing.T) {
	t.Parallel()
	fast := gate.JSON{"handler": "throttle", "read_bytes_per_second": 100 << 20, "read_burst_size": 64 << 10}
	cases := map[string]func(upstream string) []gate.JSON{
		"throttle": func(upstream string) []gate.JSON { return []gate.JSON{fast, gate.Forward(upstream)} },
		"subroute": func(upstream string) []gate.JSON {
			return []gate.JSON{{"handler": "subroute", "routes": []gate.Route{{Handle: []gate.JSON{gate.Forward(upstream)}}}}}
		},
		"echo": func(string) []gate.JSON { return []gate.JSON{{"handler": "echo"}} },
		"proxy": func(upstream string) []gate.JSON {
			return []gate.JSON{{"handler": "proxy", "upstreams": []gate.JSON{{"dial": []string{"udp/" + upstream}}}}}
		},
	}
	for name, handlers := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := gate.ReserveAddr(t)
			gate.Start(t, gate.Layer4(gate.ListenUDP(addr, handlers(serveUDP(t, echoUDP))...)))
			clients := []*net.UDPConn{dialUDP(t, addr), dialUDP(t, addr)}
			for range 20 {
				for _, client := range clients {
					mustExchange(t, client)
				}
			}
		})
	}
}

func TestForwardCommandForwardsDatagrams(t *testing.T) {
	t.Parallel()
	addr, a, b := gate.ReserveAddr(t), serveUDP(t, tellUDP("a")), serveUDP(t, tellUDP("b"))
	p := startForward(t, "--from", "udp/"+addr, "--to", "udp/"+a, "--to", b, "--access-log", "--idle-timeout", "1s")
	for _, word := range []string{addr, a, b, "gate+udp", "idle 1s"} {
		if !strings.Contains(p.Output(), word) {
			t.Errorf("the output does not say %q:\n%s", word, p.Output())
		}
	}
	clients := make(map[int]string)
	for i := range 4 {
		client := dialUDP(t, addr)
		clients[port(client)] = mustAsk(t, client, []string{"a", "b"}[i%2])
		mustAsk(t, client, []string{"a", "b"}[i%2])
	}
	for client := range clients {
		if s := p.WaitSession(client); s.Reason != "idle_timeout" || s.DatagramsUp != 2 || s.DatagramsDown != 2 {
			t.Errorf("access log: %s", s.Line)
		}
	}
}

func TestDatagramPortRangesAreForwardedOneToOne(t *testing.T) {
	t.Parallel()
	const size = 3
	first, firstUpstream := gate.ReserveRange(t, size), gate.ReserveRange(t, size)
	for i := range size {
		answerUDP(t, listenUDP(t, gate.Loopback(firstUpstream+i)), tellUDP(fmt.Sprint(i)))
	}
	p := gate.Start(t, gate.Layer4(gate.ListenUDP(fmt.Sprintf("127.0.0.1:%d-%d", first, first+size-1),
		gate.Forward(fmt.Sprintf("udp/127.0.0.1:%d-%d", firstUpstream, firstUpstream+size-1)))))
	for i := range size {
		client := dialUDP(t, gate.Loopback(first+i))
		mustAsk(t, client, fmt.Sprint(i))
	}
	for i := range size {
		must(t, equal(p.Metrics(), "caddy_portgate_datagrams_total", 1, label("listener", gate.Loopback(first+i)), label("direction", "down")))
	}
}
