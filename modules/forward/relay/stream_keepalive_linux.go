package relay

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stalledTimeout is how long a peer may acknowledge nothing while something waits for it. A shorter idle timeout ends the
// session before.
const stalledTimeout = 15 * time.Minute

// guard sets the keepalive options of both sockets. It is called when a time limit is looked at, so that short sessions don't
// pay for the system calls.
func (s *loopStream) guard() {
	for _, h := range []*half{&s.client, &s.upstream} {
		if !h.keptAlive {
			h.keptAlive = true
			setKeepAlive(h.fd, keepAliveAfter(s.keepAlive))
		}
		// Not always, because it would replace the count of keepalive probes (tcp(7)).
		if stalled := h.waits(); stalled != h.stalled {
			h.stalled = stalled
			setUserTimeout(h.fd, stalled)
		}
	}
}

func setKeepAlive(fd int, c net.KeepAliveConfig) {
	if !c.Enable {
		setsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0)
		return
	}
	setsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	setsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int32(c.Idle/time.Second))
	setsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int32(c.Interval/time.Second))
	setsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, int32(c.Count))
}

// keepAliveRaw is setKeepAlive for a socket that is not known by its descriptor.
func keepAliveRaw(raw syscall.RawConn, c net.KeepAliveConfig) {
	_ = raw.Control(func(fd uintptr) { setKeepAlive(int(fd), c) })
}

func setUserTimeout(fd int, on bool) {
	var ms int32
	if on {
		ms = int32(stalledTimeout / time.Millisecond)
	}
	setsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, ms)
}
