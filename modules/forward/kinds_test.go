package forward

import (
	"context"
	"net"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// kind is a kind of client's connection, which decides about the relay's engine.
type kind struct {
	name string
	wrap func(*net.TCPConn) net.Conn
}

// overKinds runs a test over all kinds.
func overKinds(t *testing.T, test func(*testing.T, kind)) {
	for _, k := range []kind{
		{"socket", func(c *net.TCPConn) net.Conn { return c }},
		{"wrapped", func(c *net.TCPConn) net.Conn { return struct{ net.Conn }{c} }},
		{"detachable", detachable},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			test(t, k)
		})
	}
}

// client connects a client to the handler.
func (k kind) client(t *testing.T, h *Handler) *net.TCPConn {
	t.Helper()
	client, accepted := connect(t)
	handle(t, h, k.wrap(accepted))
	return client
}

func init() { caddy.RegisterNetwork("detachable", listenDetachable) }

// networks are those that a layer4 server is tested with.
var networks = []string{"tcp", "detachable"}

// listenDetachable is the stock network with connections that can be detached and that know their listener.
func listenDetachable(ctx context.Context, _, host, portRange string, offset uint, cfg net.ListenConfig) (any, error) {
	addr, err := caddy.ParseNetworkAddress(caddy.JoinNetworkAddress("tcp", host, portRange))
	if err != nil {
		return nil, err
	}
	ln, err := addr.Listen(ctx, offset, cfg)
	if err != nil {
		return nil, err
	}
	return detachableListener{ln.(net.Listener), addr.JoinHostPort(offset)}, nil
}

type detachableListener struct {
	net.Listener
	address string
}

func (l detachableListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return configured{detachable(conn.(*net.TCPConn)).(socket), l.address}, nil
}

// configured knows its listener.
type configured struct {
	socket
	address string
}

func (c configured) ListenerAddr() string { return c.address }

// addressed has addresses where the connection has none.
type addressed struct{ net.Conn }

func (addressed) LocalAddr() net.Addr  { return new(net.TCPAddr) }
func (addressed) RemoteAddr() net.Addr { return new(net.TCPAddr) }
