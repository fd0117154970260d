package relay

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

var loopPairs = []pair{
	{name: "loop/tcp", accept: acceptDetachable, listen: listenTCP, loop: true, spliced: true},
	{name: "loop/unix", accept: acceptDetachable, listen: listenUnix, loop: true, spliced: true, unix: true},
}

// detachable gives its socket away.
type detachable struct{ *net.TCPConn }

func (d detachable) Detach() (fd int, ok bool) {
	raw, err := d.SyscallConn()
	if err != nil {
		return -1, false
	}
	_ = raw.Control(func(s uintptr) {
		fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) // non-blocking as s is
	})
	if err != nil {
		return -1, false
	}
	return fd, d.TCPConn.Close() == nil
}

func acceptDetachable(t testing.TB) (net.Conn, stream) {
	t.Helper()
	ours, theirs := acceptTCP(t)
	return detachable{ours.(*net.TCPConn)}, theirs
}
