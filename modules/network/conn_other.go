//go:build !linux

package network

import (
	"context"
	"net"
	"net/netip"
)

// listener is a listening socket.
type listener struct{ *net.TCPListener }

func listenSocket(ctx context.Context, cfg net.ListenConfig, ep endpoint) (*listener, error) {
	ln, err := ep.listen(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &listener{ln}, nil
}

func (l *listener) accept() (*Conn, error) {
	conn, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return &Conn{TCPConn: conn}, nil
}

// Conn is a connection that was accepted on gate+tcp.
type Conn struct {
	*net.TCPConn
	listenerAddr string
}

// client returns the client's address.
func (c *Conn) client() netip.AddrPort {
	remote := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
}
