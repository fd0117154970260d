//go:build !linux

package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"

	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
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
	unrouted

	mu          sync.Mutex
	descriptors *descriptors.Listener // nil once they are somebody else's, or given back
}

// Close closes the connection.
func (c *Conn) Close() error {
	err := c.TCPConn.Close()
	c.Descriptors().Release()
	if !errors.Is(err, net.ErrClosed) {
		c.closed(c, "tcp", c.listenerAddr, c.client())
	}
	return err
}

// Write writes to the connection.
func (c *Conn) Write(b []byte) (int, error) {
	c.Taken()
	return c.TCPConn.Write(b)
}

// Descriptors implements [descriptors.Owner].
func (c *Conn) Descriptors() *descriptors.Listener {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.descriptors
	c.descriptors = nil
	return d
}

// client returns the client's address.
func (c *Conn) client() netip.AddrPort {
	remote := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
}
