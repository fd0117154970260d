package forward

import (
	"net"

	"golang.org/x/sys/unix"
)

// socket gives its descriptor away.
type socket struct{ *net.TCPConn }

func detachable(c *net.TCPConn) net.Conn { return socket{c} }

func (s socket) Detach() (fd int, ok bool) {
	raw, err := s.SyscallConn()
	if err != nil {
		return -1, false
	}
	_ = raw.Control(func(own uintptr) {
		fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) // non-blocking as own is
	})
	if err != nil {
		return -1, false
	}
	return fd, s.TCPConn.Close() == nil
}
