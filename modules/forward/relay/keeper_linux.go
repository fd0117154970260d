package relay

import (
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// takeSocket is take for an event loop. The descriptor is in no poller.
func (k *Keeper) takeSocket(addr net.Addr, track Tracker) (fd int, tracked TrackedSocket, ok bool) {
	c := k.take(addr, track)
	if c == nil {
		return -1, nil, false
	}
	fd, ok = copyDescriptor(c.conn)
	_ = c.conn.Close() // leaves the copy open
	if !ok && c.tracked != nil {
		c.tracked.Closed()
	}
	return fd, c.tracked, ok
}

func copyDescriptor(conn net.Conn) (fd int, ok bool) {
	s, ok := conn.(socket)
	if !ok {
		return -1, false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return -1, false
	}
	failed := raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, failed == nil && err == nil
}

// look reads from the connection without waiting: what can be read is either its end or something that was not asked for.
func (c *keptConn) look() Fate {
	var b [1]byte
	if !c.wrapped {
		n, errno := recvNow(c.sock, b[:], unix.MSG_PEEK)
		return fateOf(n, errno)
	}
	under, ok := unwrapUpstream(c.conn).(*probedSocket)
	if !ok {
		return KeptClosed // a wrapper that does not tell can't be looked at
	}
	under.now.Store(true)
	n, err := c.conn.Read(b[:]) // takes what the wrapper itself is sent, such as tickets of TLS
	under.now.Store(false)
	switch {
	case n > 0:
		return KeptSpoke
	case os.IsTimeout(err):
		return ""
	}
	return KeptClosed
}

func fateOf(n int, errno syscall.Errno) Fate {
	switch {
	case n > 0:
		return KeptSpoke
	case n < 0 && errno == unix.EAGAIN:
		return ""
	}
	return KeptClosed
}

// recvNow is recv(2) on a socket, which does not wait.
func recvNow(conn net.Conn, b []byte, flags int) (n int, errno syscall.Errno) {
	n, errno = -1, unix.EBADF
	s, ok := conn.(socket)
	if !ok {
		return n, errno
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return n, errno
	}
	_ = raw.Control(func(fd uintptr) { n, errno = recvFlags(int(fd), b, flags) })
	return n, errno
}

// probedSocket is beneath a wrapper that is looked at.
type probedSocket struct {
	net.Conn             // the socket
	now      atomic.Bool // reads don't wait
}

func probed(conn net.Conn) net.Conn { return &probedSocket{Conn: conn} }

// NetConn returns the socket.
func (p *probedSocket) NetConn() net.Conn { return p.Conn }

func (p *probedSocket) Read(b []byte) (int, error) {
	if !p.now.Load() {
		return p.Conn.Read(b)
	}
	switch n, errno := recvNow(p.Conn, b, 0); {
	case n > 0 || len(b) == 0:
		return max(n, 0), nil
	case n == 0:
		return 0, io.EOF
	case errno == unix.EAGAIN:
		return 0, os.ErrDeadlineExceeded
	default:
		return 0, os.NewSyscallError("recvfrom", errno)
	}
}
