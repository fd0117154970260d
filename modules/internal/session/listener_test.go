package session

import (
	"crypto/tls"
	"io"
	"net"
	"path/filepath"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	"github.com/mholt/caddy-l4/modules/l4proxyprotocol"
	"github.com/mholt/caddy-l4/modules/l4throttle"
)

// behind passes cx through a real handler and returns what comes out.
func behind(t *testing.T, h layer4.NextHandler, cx *layer4.Connection) *layer4.Connection {
	t.Helper()
	ctx, unload := caddy.NewContext(caddy.ActiveContext())
	t.Cleanup(unload)
	if err := h.(caddy.Provisioner).Provision(ctx); err != nil {
		t.Fatal(err)
	}
	var passed *layer4.Connection
	err := h.Handle(cx, layer4.HandlerFunc(func(cx *layer4.Connection) error {
		passed = cx
		return nil
	}))
	if err != nil || passed == nil {
		t.Fatalf("%T: passed %v, %v", h, passed, err)
	}
	return passed
}

func behindProxyProtocol(t *testing.T, cx *layer4.Connection) *layer4.Connection {
	t.Helper()
	return behind(t, &l4proxyprotocol.Handler{Allow: []string{"0.0.0.0/0", "::/0"}}, cx)
}

func behindThrottle(t *testing.T, cx *layer4.Connection) *layer4.Connection {
	t.Helper()
	return behind(t, &l4throttle.Handler{ReadBytesPerSecond: 1e9, ReadBurstSize: 1e9}, cx)
}

func behindTLS(cx *layer4.Connection) *layer4.Connection {
	return cx.Wrap(tls.Server(cx, new(tls.Config)))
}

// accept returns the server's end of a connection on which the client has sent something.
func accept(t *testing.T, network, address, sent string) net.Conn {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial(network, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if _, err := io.WriteString(client, sent); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func port(addr net.Addr) string {
	_, port, _ := net.SplitHostPort(addr.String())
	return ":" + port
}

// accepted is a connection of a gate network over a real one.
type accepted struct {
	net.Conn
	address string
}

func (a accepted) ListenerAddr() string { return a.address }

func TestListener(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	const header = "PROXY TCP4 192.0.2.7 198.51.100.1 7777 8888\r\n"
	tcp := func(sent string) net.Conn { return accept(t, "tcp", "127.0.0.1:0", sent) }
	gate := func(sent string) net.Conn { return accepted{tcp(sent), "gate.example:80"} }
	path := filepath.Join(t.TempDir(), "s")

	type connection struct {
		cx       *layer4.Connection
		network  string
		listener string
		client   string
	}
	cases := make(map[string]connection)
	add := func(name string, conn net.Conn, wrapped func(*layer4.Connection) *layer4.Connection, network, listener, client string) {
		cx := wrap(conn)
		if wrapped != nil {
			cx = wrapped(cx)
		}
		if listener == "" {
			listener = port(conn.LocalAddr())
		}
		if client == "" {
			client = conn.RemoteAddr().String()
		}
		cases[name] = connection{cx, network, listener, client}
	}
	proxied := func(cx *layer4.Connection) *layer4.Connection { return behindProxyProtocol(t, cx) }
	throttled := func(cx *layer4.Connection) *layer4.Connection { return behindThrottle(t, cx) }

	add("gate", gate(""), nil, "tcp", "gate.example:80", "")
	add("gate, nested", gate(""), func(cx *layer4.Connection) *layer4.Connection { return wrap(cx) }, "tcp", "gate.example:80", "")
	add("gate, TLS", gate(""), behindTLS, "tcp", "gate.example:80", "")
	add("gate, throttle", gate(""), throttled, "tcp", "gate.example:80", "")
	add("gate, PROXY", gate(header), proxied, "tcp", "gate.example:80", "192.0.2.7:7777")
	add("gate, PROXY without a header", gate("GET / HTTP/1.1\r\n"), proxied, "tcp", "gate.example:80", "")
	add("gate, PROXY, throttle and TLS", gate(header), func(cx *layer4.Connection) *layer4.Connection {
		return behindTLS(throttled(proxied(cx)))
	}, "tcp", "gate.example:80", "192.0.2.7:7777")
	add("gate, a wrapper that hides it", gate(""), func(cx *layer4.Connection) *layer4.Connection {
		return cx.Wrap(conn{nil, tcpAddr("127.0.0.1:4321"), tcpAddr("192.0.2.9:99")})
	}, "tcp", ":4321", "192.0.2.9:99")
	add("stock", tcp(""), nil, "tcp", "", "")
	add("stock, IPv6", accept(t, "tcp", "[::1]:0", ""), nil, "tcp", "", "")
	add("stock, TLS", tcp(""), behindTLS, "tcp", "", "")
	add("stock, PROXY", tcp(header), proxied, "tcp", "", "192.0.2.7:7777")
	add("mapped", conn{nil, tcpAddr("[::ffff:10.0.0.1]:80"), tcpAddr("[::ffff:192.0.2.1]:81")}, nil, "tcp", ":80", "192.0.2.1:81")
	add("unix", accept(t, "unix", path, ""), nil, "unix", path, "invalid AddrPort")
	add("unix, TLS", accept(t, "unix", path, ""), behindTLS, "unix", path, "invalid AddrPort")

	for name, c := range cases {
		s := Begin(c.cx, sc)
		if s.Network != c.network || s.Listener != c.listener || s.Client.String() != c.client {
			t.Errorf("%s: got %s %s, client %s, want %s %s, client %s",
				name, s.Network, s.Listener, s.Client, c.network, c.listener, c.client)
		}
		s.End(End{})
	}
}

// No client can make labels: what a PROXY header says of the address that was connected to is not one.
func TestPROXYHeadersMakeNoLabels(t *testing.T) {
	t.Parallel()
	sc, _, _ := newScope(t, 0, 0)
	for _, header := range []string{
		"PROXY TCP4 192.0.2.7 198.51.100.1 7777 1\r\n",
		"PROXY TCP4 192.0.2.7 198.51.100.1 7777 2\r\n",
		"PROXY TCP6 2001:db8::7 2001:db8::1 7777 3\r\n",
		"PROXY UNKNOWN\r\n",
	} {
		conn := accept(t, "tcp", "127.0.0.1:0", header)
		cx := behindProxyProtocol(t, wrap(conn))
		s := Begin(cx, sc)
		if want := port(conn.LocalAddr()); s.Listener != want {
			t.Errorf("%q: got %s, want %s", header, s.Listener, want)
		}
		s.End(End{})
	}
}
