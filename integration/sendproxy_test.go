package integration

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"

	"github.com/portgate/caddy-portgate/integration/gate"
)

func sendProxy(option, upstream string) gate.JSON {
	return gate.Forward(upstream).With("proxy_protocol", option)
}

var proxyVersions = []string{"v1", "v2"}

// overProxies runs a test for both versions and both ways of a connection to its handlers.
func overProxies(t *testing.T, test func(t *testing.T, version string, listen func(addr string, handlers ...gate.JSON) gate.Server)) {
	for _, version := range proxyVersions {
		for name, listen := range entrances {
			t.Run(version+", "+name, func(t *testing.T) {
				t.Parallel()
				test(t, version, listen)
			})
		}
	}
}

// nginx tells what it has read. It speaks first, so the header waits for nothing.
func TestSendProxyToNginx(t *testing.T) {
	t.Parallel()
	overProxies(t, func(t *testing.T, version string, listen func(addr string, handlers ...gate.JSON) gate.Server) {
		nginx, addr := gate.ReserveAddr(t), gate.ReserveAddr(t)
		receivingNginx(t, nginx)
		_, listens, _ := net.SplitHostPort(addr)
		p := gate.Start(t, gate.Layer4(listen(addr, sendProxy(version, nginx))))
		client := mustDialFrom(t, otherIP, addr)
		told := fmt.Sprintf("%s %d 127.0.0.1 %s\n", otherIP, port(client), listens)
		mustRead(t, client, told)
		mustEnd(t, client)
		client.Close()
		if s := p.WaitSession(port(client)); s.Status != 200 || s.BytesUp != 0 || s.BytesDown != int64(len(told)) {
			t.Errorf("%s", s.Line)
		}
	})
}

// Behind a load balancer the addresses in its header are passed on.
func TestSendProxyOfAProxiedClient(t *testing.T) {
	t.Parallel()
	overProxies(t, func(t *testing.T, version string, listen func(addr string, handlers ...gate.JSON) gate.Server) {
		nginx, addr := gate.ReserveAddr(t), gate.ReserveAddr(t)
		receivingNginx(t, nginx)
		gate.Start(t, gate.Layer4(listen(addr, acceptProxy(nil), sendProxy(version, nginx))))
		client := mustDialFrom(t, proxyIP, addr)
		mustWrite(t, client, proxyHeader)
		mustRead(t, client, "192.0.2.7 7777 198.51.100.1 8888\n")
	})
}

// HAProxy lets in the client that the header names, and nobody else.
func TestSendProxyToHAProxy(t *testing.T) {
	t.Parallel()
	overProxies(t, func(t *testing.T, version string, listen func(addr string, handlers ...gate.JSON) gate.Server) {
		haproxy, addr := gate.ReserveAddr(t), gate.ReserveAddr(t)
		_, listens, _ := net.SplitHostPort(addr)
		receivingHAProxy(t, haproxy, serve(t, echo), fmt.Sprintf("{ src %s } { dst 127.0.0.1 } { dst_port %s }", otherIP, listens))
		p := gate.Start(t, gate.Layer4(listen(addr, sendProxy(version, haproxy))))
		client := mustDialFrom(t, otherIP, addr)
		mustExchange(t, client)
		client.Close()
		if s := p.WaitSession(port(client)); s.Status != 200 || s.BytesUp != int64(messageSize) || s.BytesDown != int64(messageSize) {
			t.Errorf("%s", s.Line)
		}
		mustEnd(t, mustDialFrom(t, proxyIP, addr))
	})
}

// Another Portgate takes the client from the header, and the counts of both are the client's bytes.
func TestSendProxyToAcceptProxy(t *testing.T) {
	t.Parallel()
	overProxies(t, func(t *testing.T, version string, listen func(addr string, handlers ...gate.JSON) gate.Server) {
		outer, inner := gate.ReserveAddr(t), gate.ReserveAddr(t)
		second := gate.Start(t, gate.Layer4(listen(inner, gate.JSON{"handler": "accept_proxy", "from": []string{"127.0.0.1"}, "others": "refuse"},
			gate.Forward(serve(t, echo)))))
		first := gate.Start(t, gate.Layer4(listen(outer, sendProxy(version, inner))))
		idle := mustDialFrom(t, otherIP, outer)
		mustExchange(t, idle) // the event loops have started
		before := first.Goroutines()
		for range 20 {
			client := mustDialFrom(t, otherIP, outer)
			mustExchange(t, client)
			t.Cleanup(func() { client.Close() })
		}
		gate.Eventually(t, peerTimeout, func() error {
			if now := first.Goroutines(); now > before {
				return fmt.Errorf("%d goroutines with 20 sessions more, %d before", now, before)
			}
			return nil
		})
		idle.Close()
		for _, p := range []*gate.Process{first, second} {
			if s := p.WaitSession(port(idle)); s.ClientIP != otherIP || s.Status != 200 || s.BytesUp != int64(messageSize) {
				t.Errorf("%s", s.Line)
			}
		}
	})
}

// The header and what the client has sent by then leave in one segment.
func TestSendProxyInOneSegment(t *testing.T) {
	t.Parallel()
	for name, listen := range entrances {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			upstream, accepted := accepting(t)
			addr := gate.ReserveAddr(t)
			gate.Start(t, gate.Layer4(listen(addr, acceptProxy(nil), sendProxy("v1", upstream))))
			client := mustDialFrom(t, proxyIP, addr)
			mustWrite(t, client, proxyHeader+"hello") // what is behind the header has arrived when the upstream is connected
			conn := within(t, peerTimeout, "the upstream's accept", accepted)
			mustRead(t, conn, proxyHeader+"hello")
			raw, err := conn.SyscallConn()
			must(t, err)
			must(t, raw.Control(func(fd uintptr) {
				info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
				if err != nil || info.Data_segs_in != 1 {
					t.Errorf("%d segments, %v", info.Data_segs_in, err)
				}
			}))
		})
	}
}

// unbound answers the client that the header names, over UDP and TCP, and refuses others. It wants the gateway allowed as well.
func TestSendProxyToUnbound(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	receivingUnbound(t, addr)
	p, host, port := throughGateBoth(t, addr, gate.JSON{"proxy_protocol": "v2"})
	for _, transport := range []string{"+notcp", "+tcp"} {
		dig := func(ip string) string {
			return output(t, exec.Command(program(t, "dig"), "-b", ip, "@"+host, "-p", port, "+tries=1", "+time=10", transport, "name.test", "A"))
		}
		if got := dig(otherIP); !strings.Contains(got, "NOERROR") || !strings.Contains(got, "192.0.2.1") {
			t.Errorf("%s: unbound does not know the client:\n%s", transport, got)
		}
		if got := dig(proxyIP); !strings.Contains(got, "REFUSED") {
			t.Errorf("%s: unbound answers a client that it is to refuse:\n%s", transport, got)
		}
	}
	p.Stop()
}

// Over UDP each datagram has the header, or the first one of a session; the counts are of what the client has sent.
func TestSendProxyOverUDP(t *testing.T) {
	t.Parallel()
	for option, prefaced := range map[string][]bool{"v2": {true, true, true}, "v2 each": {true, true, true}, "v2 first": {true, false, false}} {
		t.Run(option, func(t *testing.T) {
			t.Parallel()
			addr := gate.ReserveAddr(t)
			_, listens, _ := net.SplitHostPort(addr)
			told := serveUDP(t, func(_ netip.AddrPort, b []byte) []byte {
				head, payload, err := proxyproto.ParseUDPDatagram(b)
				if err != nil {
					return fmt.Appendf(nil, "none: %s", b)
				}
				return fmt.Appendf(nil, "%s %s: %s", head.SourceAddr, head.DestinationAddr, payload)
			})
			p := gate.Start(t, gate.Layer4(gate.ListenUDP("0.0.0.0:"+listens, sendProxy(option, told))))
			client := dialUDPFrom(t, otherIP, addr)
			named := fmt.Sprintf("%s 127.0.0.1:%s", client.LocalAddr(), listens)
			for i, with := range prefaced {
				want := "none: message"
				if with {
					want = named + ": message"
				}
				mustWrite(t, client, "message")
				b := make([]byte, maxDatagram)
				n, err := client.Read(b)
				must(t, err)
				if string(b[:n]) != want {
					t.Errorf("datagram %d: got %q, want %q", i, b[:n], want)
				}
			}
			p.Load(gate.Layer4()) // ends the session
			if s := p.WaitSession(client.LocalAddr().(*net.UDPAddr).Port); s.BytesUp != int64(3*len("message")) {
				t.Errorf("%s", s.Line)
			}
		})
	}
}

// The command has the option too.
func TestForwardCommandProxyProtocol(t *testing.T) {
	t.Parallel()
	nginx, addr := gate.ReserveAddr(t), gate.ReserveAddr(t)
	receivingNginx(t, nginx)
	p := startForward(t, "--from", addr, "--to", nginx, "--proxy-protocol", "v2")
	client := mustDialFrom(t, otherIP, addr)
	_, listens, _ := net.SplitHostPort(addr)
	mustRead(t, client, fmt.Sprintf("%s %d 127.0.0.1 %s\n", otherIP, port(client), listens))
	p.Stop()
}

func receivingNginx(t *testing.T, addr string) {
	path := writeFile(t, "nginx.conf", fmt.Sprintf(`%s
daemon off;
pid %s/nginx.pid;
error_log stderr;
events {}
stream {
	server {
		listen %s proxy_protocol;
		return "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port\n";
	}
}
`, loadStreamModule(), t.TempDir(), addr))
	server(t, addr, exec.Command(program(t, "nginx"), "-c", path))
}

func receivingHAProxy(t *testing.T, addr, to, unless string) {
	path := writeFile(t, "haproxy.cfg", fmt.Sprintf(`defaults
	mode tcp
	timeout connect 10s
	timeout client 60s
	timeout server 60s
listen l
	bind %s accept-proxy
	tcp-request content reject unless %s
	server s %s
`, addr, unless, to))
	server(t, addr, exec.Command(program(t, "haproxy"), "-db", "-f", path))
}

func receivingUnbound(t *testing.T, addr string) {
	host, listens, _ := net.SplitHostPort(addr)
	path := writeFile(t, "unbound.conf", fmt.Sprintf(`server:
	directory: "%s"
	chroot: ""
	username: ""
	pidfile: ""
	use-syslog: no
	do-daemonize: no
	module-config: "iterator"
	interface: %s@%s
	proxy-protocol-port: %s
	access-control: 127.0.0.0/8 refuse
	access-control: 127.0.0.1/32 allow
	access-control: %s/32 allow
	local-zone: "test." static
	local-data: "name.test. A 192.0.2.1"
remote-control:
	control-enable: no
`, t.TempDir(), host, listens, listens, otherIP))
	server(t, addr, exec.Command(program(t, "unbound"), "-d", "-c", path))
}
