package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/redis/rueidis"
)

// conn is a connection without TLS that tells why the server has closed it. A server that has too many clients, or takes none from other
// machines (protected-mode), says so, unasked, and closes: the client is still writing then, or waits for more answers, and would
// only learn that the connection has ended.
type conn struct {
	net.Conn
	read bool   // something
	said string // all that was read, where that is an error
}

// setDialer has the connections made as a conn.
func setDialer(options *rueidis.ClientOption) {
	if options.TLSConfig != nil {
		return // such a server says nothing before TLS is set up
	}
	dial := options.DialCtxFn
	if dial == nil {
		dial = func(ctx context.Context, address string, dialer *net.Dialer, _ *tls.Config) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}
	}
	options.DialCtxFn = func(ctx context.Context, address string, dialer *net.Dialer, config *tls.Config) (net.Conn, error) {
		c, err := dial(ctx, address, dialer, config)
		if err != nil {
			return nil, err
		}
		return &conn{Conn: c}, nil
	}
}

// Write takes what the server does not any more: Read tells why.
func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if isClosed(err) {
		return len(b), nil
	}
	return n, err
}

// Read returns an error that the server said before it closed in place of the end.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	switch {
	case n > 0 && b[0] == '-' && !c.read:
		line, _, _ := strings.Cut(string(b[1:n]), "\r\n")
		c.read, c.said = true, strings.TrimPrefix(line, "ERR ") // as the client has it in an answer
	case n > 0:
		c.read, c.said = true, ""
	case isClosed(err) && c.said != "":
		err = errors.New(c.said)
	}
	return n, err
}

// isClosed tells the end of a connection by the other side from other errors.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
