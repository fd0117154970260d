package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// entrancesUDP are [entrances] for gate+udp.
var entrancesUDP = map[string]func(addr string, handlers ...gate.JSON) gate.Server{
	"fast path": gate.ListenUDP,
	"layer4": func(addr string, handlers ...gate.JSON) gate.Server {
		return entrances["layer4"]("gate+udp/"+addr, handlers...)
	},
}

// prefaced is a payload with a header that names a client in front of it.
func prefaced(t testing.TB, client, payload string, tlvs ...proxyproto.TLV) string {
	t.Helper()
	head := proxyproto.HeaderProxyFromAddrs(2, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(client)), net.UDPAddrFromAddrPort(netip.MustParseAddrPort("198.51.100.1:53")))
	must(t, head.SetTLVs(tlvs))
	b, err := head.FormatUDPDatagram([]byte(payload))
	must(t, err)
	return string(b)
}

func mustHear(t testing.TB, conn net.Conn, want string) {
	t.Helper()
	b := make([]byte, maxDatagram)
	n, err := conn.Read(b)
	if err != nil || string(b[:n]) != want {
		t.Fatalf("got %q, %v, want %q", b[:n], err, want)
	}
}

// question is a DNS query, as short as one can be, for an address of n.test.
func question(id uint16, n int) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	b = append(b, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	name := fmt.Sprint(n)
	b = append(append(b, byte(len(name))), name...)
	return append(b, "\x04test\x00\x00\x01\x00\x01"...)
}

// answerQuestion says that a name has no address.
func answerQuestion(_ netip.AddrPort, b []byte) []byte {
	if len(b) < 12 {
		return nil
	}
	answer := append([]byte(nil), b...)
	answer[2], answer[3] = 0x81, 0x80
	return answer
}

// dnsdist sends the queries of all clients from one socket. Each client has a session of its own, whose answers it gets, over reloads; a client that the rules
// deny has none.
func TestAcceptProxyFromDNSDist(t *testing.T) {
	t.Parallel()
	for name, listen := range entrancesUDP {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr, balancer, denied := gate.ReserveAddr(t), gate.ReserveAddr(t), "127.0.0.66"
			config := gate.Layer4(listen(addr,
				gate.JSON{"handler": "accept_proxy", "from": []string{"127.0.0.1"}, "others": "refuse"},
				gate.JSON{"handler": "acl", "rules": []gate.JSON{{"deny": []string{denied}}}},
				gate.Forward(serveUDP(t, answerQuestion))))
			p := gate.Start(t, config)
			sendingDNSDist(t, balancer, addr)

			clients := make([]*net.UDPConn, 30)
			for i := range clients {
				clients[i] = dialUDPFrom(t, otherIP, balancer)
			}
			const rounds = 4
			for round := range rounds {
				for i, client := range clients { // all of them ask before anybody listens
					mustWrite(t, client, string(question(uint16(i), 100*round+i)))
				}
				for i, client := range clients {
					mustHear(t, client, string(answerQuestion(netip.AddrPort{}, question(uint16(i), 100*round+i))))
				}
				p.Load(config)
			}
			from := dialUDPFrom(t, denied, balancer)
			mustWrite(t, from, string(question(1, 1)))
			if s := p.WaitSession(from.LocalAddr().(*net.UDPAddr).Port); s.Status != 403 || s.ClientIP != denied || s.Upstream != "" {
				t.Errorf("a client that is denied: %s", s.Line)
			}
			p.Load(gate.Layer4()) // ends the sessions
			for _, client := range clients {
				s := p.WaitSession(client.LocalAddr().(*net.UDPAddr).Port)
				if s.ClientIP != otherIP || s.Status != 200 || s.DatagramsUp != rounds || s.DatagramsDown != rounds {
					t.Errorf("%s", s.Line)
				}
			}
		})
	}
}

// sendingDNSDist sends what it is asked with headers, and waits until it is served.
func sendingDNSDist(t *testing.T, addr, to string) {
	path := writeFile(t, "dnsdist.conf", fmt.Sprintf(`
setLocal(%q)
setACL("127.0.0.0/8")
setSecurityPollSuffix("")
newServer({address=%q, useProxyProtocol=true, sockets=1, checkInterval=1})
`, addr, to))
	server(t, addr, exec.Command(program(t, "dnsdist"), "--supervised", "--disable-syslog", "-C", path))
	gate.Eventually(t, peerTimeout, func() error {
		client := dialUDP(t, addr)
		defer client.Close()
		mustWrite(t, client, string(question(7, 7)))
		_ = client.SetReadDeadline(time.Now().Add(time.Second))
		_, err := client.Read(make([]byte, maxDatagram))
		return err
	})
}

// Another Portgate sends headers in each datagram or in the first one, and a client can't name another address by a header of its own.
func TestAcceptProxyFromPortgateOverUDP(t *testing.T) {
	t.Parallel()
	for which := range map[string]bool{"each": true, "first": true} {
		for name, listen := range entrancesUDP {
			t.Run(which+", "+name, func(t *testing.T) {
				t.Parallel()
				outer, inner := gate.ReserveAddr(t), gate.ReserveAddr(t)
				config := gate.Layer4(listen(inner,
					gate.JSON{"handler": "accept_proxy", "from": []string{"127.0.0.1"}, "others": "refuse", "udp": which},
					gate.JSON{"handler": "acl", "rules": []gate.JSON{{"allow": []string{otherIP}}}},
					gate.Forward(serveUDP(t, echoUDP))))
				second := gate.Start(t, config)
				first := gate.Start(t, gate.Layer4(gate.ListenUDP(outer, sendProxy("v2 "+which, inner))))
				var clients []*net.UDPConn
				for range 10 {
					clients = append(clients, dialUDPFrom(t, otherIP, outer))
				}
				for round := range 3 {
					for i, client := range clients {
						message := fmt.Sprintf("%d%d", round, i)
						mustWrite(t, client, message)
						mustHear(t, client, message)
					}
					second.Load(config)
				}
				forged := prefaced(t, "192.0.2.7:7777", "forged")
				mustWrite(t, clients[0], forged)
				if which == "each" {
					mustHear(t, clients[0], forged) // it is payload, as any other
				} else {
					_ = second.WaitSessions(1, func(s gate.Session) bool { return s.Status == 400 && s.Reason == "proxy_header" })
				}
				second.Load(gate.Layer4())
				first.Load(gate.Layer4())
				for i, client := range clients {
					for _, p := range []*gate.Process{first, second} {
						s := p.WaitSession(client.LocalAddr().(*net.UDPAddr).Port)
						if s.ClientIP != otherIP || s.Status != 200 || i > 0 && (s.DatagramsUp != 3 || s.BytesUp != 6) {
							t.Errorf("%s", s.Line)
						}
					}
				}
				for _, s := range second.Sessions() {
					if s.ClientIP == "192.0.2.7" {
						t.Errorf("believed: %s", s.Line)
					}
				}
			})
		}
	}
}

// Datagrams without a valid header reach nobody, however many there are, and the clients that are named don't suffer from it.
func TestAcceptProxyOverUDPInvalidHeaders(t *testing.T) {
	t.Parallel()
	for name, listen := range entrancesUDP {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := gate.ReserveAddr(t)
			asked := make(chan string, 1000)
			upstream := serveUDP(t, func(_ netip.AddrPort, b []byte) []byte {
				asked <- string(b)
				return b
			})
			p := gate.Start(t, gate.Layer4(listen(addr, acceptProxy(nil), gate.Forward(upstream))))
			balancer := dialUDPFrom(t, proxyIP, addr)
			valid := prefaced(t, "192.0.2.7:7777", "hello")
			broken := []string{
				"", "hello", proxyHeader + "hello", valid[:27], valid[:12], strings.Replace(valid, "\x21\x12", "\x21\x11", 1),
				strings.Replace(valid, "\x21\x12", "\x31\x12", 1), valid[:14] + "\xff\xff" + valid[16:], valid[:15] + "\x10" + valid[16:],
			}
			const rounds = 100
			for range rounds {
				for _, b := range broken {
					mustWrite(t, balancer, b)
				}
				mustWrite(t, balancer, valid)
				mustHear(t, balancer, "hello")
			}
			gate.Eventually(t, peerTimeout, func() error {
				if got := p.Metrics().Sum("caddy_portgate_datagrams_dropped_total", `reason="proxy_header"`); got != float64(rounds*len(broken)) {
					return fmt.Errorf("%v are counted as dropped, want %d", got, rounds*len(broken))
				}
				return nil
			})
			refused := p.WaitSessions(1, func(s gate.Session) bool { return s.Status == 400 })
			if s := refused[0]; s.Reason != "proxy_header" || s.Error == "" || s.ClientIP != proxyIP || s.Upstream != "" {
				t.Errorf("%s", s.Line)
			}
			if len(refused) == rounds*len(broken) {
				t.Error("each of them has an entry in the access log")
			}
			for len(asked) > 0 {
				if got := <-asked; got != "hello" {
					t.Errorf("the upstream got %q", got)
				}
			}
			other := dialUDPFrom(t, otherIP, addr)
			mustWrite(t, other, valid) // of somebody else it is not a header
			mustHear(t, other, valid)
		})
	}
}

// What a header has beside addresses is there as placeholders.
func TestAcceptProxyFieldsOverUDP(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"gate+udp/", "udp/"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			addr := gate.ReserveAddr(t)
			upstreams := map[string]string{"192.0.2.7:1": serveUDP(t, tellUDP("one")), "192.0.2.8:2": serveUDP(t, tellUDP("two"))}
			gate.Start(t, gate.Layer4(gate.Listen(network+addr, acceptProxy(nil), gate.Forward("{portgate.proxy.authority}"))))
			balancer := dialUDPFrom(t, proxyIP, addr)
			for client, upstream := range upstreams {
				if network == "udp/" {
					balancer = dialUDPFrom(t, proxyIP, addr)
				}
				mustWrite(t, balancer, prefaced(t, client, "hello", proxyproto.TLV{Type: proxyproto.PP2_TYPE_AUTHORITY, Value: []byte(upstream)}))
				b := make([]byte, maxDatagram)
				n, err := balancer.Read(b)
				want := map[string]string{"192.0.2.7:1": "one", "192.0.2.8:2": "two"}[client]
				if err != nil || !strings.HasPrefix(string(b[:n]), want) {
					t.Errorf("%s: got %q, %v", client, b[:n], err)
				}
			}
		})
	}
}

// A flood of clients that a load balancer names is bounded as one of clients that come directly: a session that has been answered and has spoken since stays.
func TestAcceptProxyFloodOverUDP(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	upstream := serveUDP(t, func(_ netip.AddrPort, b []byte) []byte {
		if string(b) == "flood" {
			return nil
		}
		return b
	})
	config := gate.Layer4(gate.ListenUDP(addr, acceptProxy(nil), gate.Forward(upstream)))
	p := gate.Start(t, config.WithApp("portgate", gate.JSON{"udp_max_sessions": 50}))
	balancer := dialUDPFrom(t, proxyIP, addr)
	hello := prefaced(t, "192.0.2.7:7777", "hello")
	for range 2 {
		mustWrite(t, balancer, hello)
		mustHear(t, balancer, "hello")
	}
	for n := range 1000 {
		mustWrite(t, balancer, prefaced(t, fmt.Sprintf("198.51.100.%d:%d", n%250+1, n+1), "flood"))
		if n%50 == 0 {
			mustWrite(t, balancer, hello)
			mustHear(t, balancer, "hello")
		}
	}
	mustWrite(t, balancer, hello)
	mustHear(t, balancer, "hello")
	if got := p.Metrics().Sum("caddy_portgate_sessions_active"); got > 60 {
		t.Errorf("%v sessions", got)
	}
	for _, s := range p.Sessions() {
		if s.ClientIP == "192.0.2.7" {
			t.Errorf("the session that was there has ended: %s", s.Line)
		}
	}
	_ = balancer.SetReadDeadline(time.Now().Add(time.Millisecond))
	if n, err := balancer.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("an answer too many: %d bytes, %v", n, err)
	}
}
