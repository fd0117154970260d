package listeners

import (
	"crypto/tls"
	"net"
	"net/netip"
	"testing"

	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"
)

// conn is a connection that has addresses and nothing else.
type conn struct {
	net.Conn
	local, remote net.Addr
}

func (c conn) LocalAddr() net.Addr  { return c.local }
func (c conn) RemoteAddr() net.Addr { return c.remote }

func tcpAddr(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }

func wrap(c net.Conn) *layer4.Connection { return layer4.WrapConnection(c, nil, zap.NewNop()) }

func TestAccepted(t *testing.T) {
	t.Parallel()
	bottom := conn{nil, tcpAddr("127.0.0.1:80"), tcpAddr("127.0.0.1:81")}
	for name, cx := range map[string]*layer4.Connection{
		"itself":           wrap(bottom),
		"struct":           wrap(struct{ net.Conn }{bottom}),
		"pointer":          wrap(&struct{ net.Conn }{bottom}),
		"nested":           wrap(wrap(bottom)),
		"NetConn":          wrap(tls.Server(bottom, nil)),
		"wrapped again":    wrap(bottom).Wrap(struct{ net.Conn }{wrap(bottom)}),
		"a pointer to TLS": wrap(struct{ *tls.Conn }{tls.Server(bottom, nil)}),
	} {
		if got := Accepted(cx); got != bottom {
			t.Errorf("%s: got %#v", name, got)
		}
	}
}

type holder struct{ net.Conn }

func TestUnwrap(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]net.Conn{
		"a socket":       new(net.TCPConn),
		"an empty field": holder{},
		"a field that is not embedded": struct {
			*net.TCPConn
			Conn net.Conn
		}{Conn: new(net.TCPConn)},
		"behind a nil pointer": struct{ *holder }{},
		"a nil pointer":        (*holder)(nil),
		"a nil pointer to TLS": (*tls.Conn)(nil),
	} {
		if got := Unwrap(c); got != nil {
			t.Errorf("%s: got %#v", name, got)
		}
	}
	deep := struct{ *holder }{&holder{new(net.UnixConn)}}
	if got := Unwrap(deep); got != deep.Conn {
		t.Errorf("deeper: got %#v", got)
	}
}
