package relay

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// hungUp reports whether both directions of a socket are closed.
func hungUp(raw syscall.RawConn) (hup bool) {
	_ = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, 0)
		hup = err == nil && n > 0 && fds[0].Revents&unix.POLLHUP != 0
	})
	return hup
}
