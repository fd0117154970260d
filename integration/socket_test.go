package integration

import (
	"fmt"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// control runs f with the connection's descriptor.
func control(t testing.TB, conn *net.TCPConn, f func(fd int)) {
	t.Helper()
	raw, err := conn.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { f(int(fd)) }))
}

// unacknowledged is how many bytes the other end's kernel has not taken yet (SIOCOUTQ, tcp(7)).
func unacknowledged(t testing.TB, conn *net.TCPConn) (n int64) {
	t.Helper()
	control(t, conn, func(fd int) {
		queued, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		must(t, err)
		n = int64(queued)
	})
	return n
}

// mustDrain waits until everything was taken; where the reader can't take it all, until nothing moves any more. It returns what is left.
func mustDrain(t testing.TB, conn *net.TCPConn, all bool) int64 {
	t.Helper()
	const still = 20 // polls without a change
	last, same := int64(-1), 0
	gate.Eventually(t, peerTimeout, func() error {
		left := unacknowledged(t, conn)
		if left == last {
			same++
		} else {
			last, same = left, 0
		}
		if left == 0 || !all && same >= still {
			return nil
		}
		return fmt.Errorf("%d bytes not acknowledged", left)
	})
	return last
}
