package relay

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// queued returns how many bytes of the send queue the peer has not acknowledged yet.
func queued(raw syscall.RawConn) (bytes int) {
	_ = raw.Control(func(fd uintptr) {
		bytes, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
	})
	return bytes
}
