package integration

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// Clients have addresses of the loopback network of their own: proxyIP is a load balancer's, otherIP somebody else's.
const (
	proxyIP = "127.0.0.8"
	otherIP = "127.0.0.9"
)

const proxyHeader = "PROXY TCP4 192.0.2.7 198.51.100.1 7777 8888\r\n"

// mustDialFrom is dialFrom for a connection that is closed with the test.
func mustDialFrom(t testing.TB, ip, addr string) *net.TCPConn {
	t.Helper()
	conn, err := dialFrom(ip, addr)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// entrances are the two ways of a connection to its handlers: a server with one route without matchers serves it where
// it was accepted; one with a route that needs a matcher leaves it to layer4.
var entrances = map[string]func(addr string, handlers ...gate.JSON) gate.Server{
	"fast path": gate.Listen,
	"layer4": func(addr string, handlers ...gate.JSON) gate.Server {
		server := gate.Listen(addr, handlers...)
		server.Routes[0].Match = []gate.JSON{{"not": []gate.JSON{{"remote_ip": gate.JSON{"ranges": []string{"203.0.113.0/24"}}}}}}
		return server
	},
}

func acceptProxy(options gate.JSON) gate.JSON {
	handler := gate.JSON{"handler": "accept_proxy", "from": []string{proxyIP}}
	for name, value := range options {
		handler = handler.With(name, value)
	}
	return handler
}

// The client that a header names is the one that rules judge, that limits count, and that the access log has.
func TestAcceptProxy(t *testing.T) {
	t.Parallel()
	for name, listen := range entrances {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := gate.ReserveAddr(t)
			upstream := serve(t, echo)
			p := gate.Start(t, gate.Layer4(listen(addr,
				acceptProxy(nil),
				gate.JSON{"handler": "acl", "rules": []gate.JSON{{"allow": []string{"192.0.2.0/24"}}, {"allow": []string{otherIP}}}},
				gate.JSON{"handler": "rate_limit", "concurrent": []gate.JSON{{"max": 1, "per": "ip"}}},
				gate.Forward(upstream))))

			// What is behind the header in its segment arrives first.
			allowed := mustDialFrom(t, proxyIP, addr)
			mustWrite(t, allowed, proxyHeader+"hello")
			mustRead(t, allowed, "hello")
			mustExchange(t, allowed)

			// Another one of the same client is counted for it, one of another client is not.
			second := mustDialFrom(t, proxyIP, addr)
			mustWrite(t, second, strings.Replace(proxyHeader, "7777", "7778", 1))
			mustEnd(t, second)
			if s := p.WaitSession(7778); s.Status != 429 || s.ClientIP != "192.0.2.7" {
				t.Errorf("a second connection of the client: %s", s.Line)
			}
			another := mustDialFrom(t, proxyIP, addr)
			mustWrite(t, another, strings.Replace(proxyHeader, "192.0.2.7", "192.0.2.8", 1))
			mustExchange(t, another)

			// A client that the rules deny is denied, whoever passes it on.
			denied := mustDialFrom(t, proxyIP, addr)
			mustWrite(t, denied, "PROXY TCP4 203.0.113.7 198.51.100.1 7779 8888\r\n")
			mustEnd(t, denied)
			if s := p.WaitSession(7779); s.Status != 403 || s.ClientIP != "203.0.113.7" || s.Upstream != "" {
				t.Errorf("a client that is denied: %s", s.Line)
			}

			// A header of somebody else is not one: it is what the client sends.
			other := mustDialFrom(t, otherIP, addr)
			mustWrite(t, other, proxyHeader)
			mustRead(t, other, proxyHeader)
			other.Close()
			if s := p.WaitSession(port(other)); s.ClientIP != otherIP || s.Status != 200 {
				t.Errorf("a header of somebody who is not believed: %s", s.Line)
			}
			allowed.Close()
			if s := p.WaitSession(7777); s.ClientIP != "192.0.2.7" || s.Status != 200 || s.BytesUp != int64(len("hello")+messageSize) {
				t.Errorf("a client behind the load balancer: %s", s.Line)
			}
		})
	}
}

// F13: a client that is denied names another address, which nobody believes; it also can't get in without a header.
func TestAcceptProxyOthersRefused(t *testing.T) {
	t.Parallel()
	for name, listen := range entrances {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := gate.ReserveAddr(t)
			upstream, accepted := accepting(t)
			p := gate.Start(t, gate.Layer4(listen(addr, acceptProxy(gate.JSON{"others": "refuse"}),
				gate.JSON{"handler": "acl", "rules": []gate.JSON{{"allow": []string{"192.0.2.0/24"}}}}, gate.Forward(upstream))))
			other := mustDialFrom(t, otherIP, addr)
			_, _ = io.WriteString(other, proxyHeader)
			mustEnd(t, other)
			s := p.WaitSession(port(other))
			if s.Status != 403 || s.ClientIP != otherIP || s.Rule != "accept_proxy others refuse" {
				t.Errorf("somebody else: %s", s.Line)
			}
			if len(accepted) > 0 {
				t.Error("the upstream was connected")
			}
		})
	}
}

// A header is complete and valid, in time, or the connection ends with status 400, and no upstream is dialed.
func TestAcceptProxyInvalidHeaders(t *testing.T) {
	t.Parallel()
	for name, listen := range entrances {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := gate.ReserveAddr(t)
			upstream, accepted := accepting(t)
			p := gate.Start(t, gate.Layer4(listen(addr, acceptProxy(gate.JSON{"timeout": "1s"}), gate.Forward(upstream))))
			for what, c := range map[string]struct {
				pieces []string // each after the one before has arrived
				finish bool
			}{
				"nothing":                {},
				"a client that finishes": {[]string{"PROXY"}, true},
				"the beginning":          {[]string{"PROXY TCP4 192.0.2.7 "}, false},
				"something else":         {[]string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n"}, false},
				"too long":               {[]string{"PROXY TCP4 " + strings.Repeat("1", 97), "\r\n"}, false},
				"a wrong length":         {[]string{"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0b" + strings.Repeat("a", 11)}, false},
				"more than may be":       {[]string{"\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff"}, false},
			} {
				client := mustDialFrom(t, proxyIP, addr)
				for _, piece := range c.pieces {
					if _, err := io.WriteString(client, piece); err != nil {
						break // refused by now
					}
				}
				if c.finish {
					client.CloseWrite()
				}
				mustEnd(t, client)
				if s := p.WaitSession(port(client)); s.Status != 400 || s.Reason != "proxy_header" || s.Error == "" || s.Upstream != "" {
					t.Errorf("%s: %s", what, s.Line)
				}
			}
			if len(accepted) > 0 {
				t.Error("the upstream was connected")
			}

			// A header in pieces is one, and what a slow one is followed by is not lost.
			slow := mustDialFrom(t, proxyIP, addr)
			slow.SetNoDelay(true)
			for _, b := range proxyHeader + "x" {
				mustWrite(t, slow, string(b))
			}
			conn := within(t, peerTimeout, "the upstream's accept", accepted)
			mustRead(t, conn, "x")
			reset(slow)
			if s := p.WaitSession(7777); s.ClientIP != "192.0.2.7" {
				t.Errorf("a slow header: %s", s.Line)
			}
		})
	}
}

// A reload loses no connection whose header is on its way.
func TestAcceptProxyReload(t *testing.T) {
	t.Parallel()
	for name, listen := range entrances {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := gate.ReserveAddr(t)
			upstream := serve(t, echo)
			config := gate.Layer4(listen(addr, acceptProxy(gate.JSON{"timeout": "50s"}), gate.Forward(upstream)))
			p := gate.Start(t, config)
			var waiting []*net.TCPConn
			for range 5 {
				client := mustDialFrom(t, proxyIP, addr)
				mustWrite(t, client, proxyHeader[:9])
				mustDrain(t, client, true)
				waiting = append(waiting, client)
				p.Load(config)
			}
			for _, client := range waiting {
				mustWrite(t, client, proxyHeader[9:]+"hello")
				mustRead(t, client, "hello")
			}
		})
	}
}

// HAProxy and nginx, which wrote and took over the protocol, are believed in both versions.
func TestAcceptProxyFromLoadBalancers(t *testing.T) {
	t.Parallel()
	for sender, start := range map[string]func(t *testing.T, addr, to string){
		"HAProxy v1": func(t *testing.T, addr, to string) { sendingHAProxy(t, addr, to, "send-proxy") },
		"HAProxy v2": func(t *testing.T, addr, to string) {
			sendingHAProxy(t, addr, to, "send-proxy-v2 proxy-v2-options crc32c,unique-id")
		},
		"nginx": sendingNginx,
	} {
		for name, listen := range entrances {
			t.Run(sender+", "+name, func(t *testing.T) {
				t.Parallel()
				addr, balancer := gate.ReserveAddr(t), gate.ReserveAddr(t)
				p := gate.Start(t, gate.Layer4(listen(addr, gate.JSON{"handler": "accept_proxy", "from": []string{"127.0.0.1"}, "others": "refuse"},
					gate.Forward(serve(t, echo)))))
				start(t, balancer, addr)
				client := mustDialFrom(t, otherIP, balancer)
				mustExchange(t, client)
				client.Close()
				if s := p.WaitSession(port(client)); s.ClientIP != otherIP || s.Status != 200 || s.BytesUp != int64(messageSize) {
					t.Errorf("%s", s.Line)
				}
			})
		}
	}
}

func sendingHAProxy(t *testing.T, addr, to, options string) {
	path := writeFile(t, "haproxy.cfg", fmt.Sprintf(`defaults
	mode tcp
	timeout connect 10s
	timeout client 60s
	timeout server 60s
listen l
	bind %s
	unique-id-format %%[uuid]
	server s %s %s
`, addr, to, options))
	server(t, addr, exec.Command(program(t, "haproxy"), "-db", "-f", path))
}

func sendingNginx(t *testing.T, addr, to string) {
	path := writeFile(t, "nginx.conf", fmt.Sprintf(`%s
daemon off;
pid %s/nginx.pid;
error_log stderr;
events {}
stream {
	server {
		listen %s;
		proxy_pass %s;
		proxy_protocol on;
	}
}
`, loadStreamModule(), t.TempDir(), addr, to))
	server(t, addr, exec.Command(program(t, "nginx"), "-c", path))
}
