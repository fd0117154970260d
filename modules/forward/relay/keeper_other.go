//go:build !linux

package relay

import (
	"net"
	"os"
	"time"
)

// look reads from the connection for a moment: what can be read is either its end or something that was not asked for.
func (c *keptConn) look() Fate {
	_ = c.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	n, err := c.conn.Read(make([]byte, 1))
	_ = c.conn.SetReadDeadline(time.Time{})
	switch {
	case n > 0:
		return KeptSpoke
	case os.IsTimeout(err):
		return ""
	}
	return KeptClosed
}

func probed(conn net.Conn) net.Conn { return conn }
