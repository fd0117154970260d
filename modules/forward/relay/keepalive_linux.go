package relay

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// stalledTimeout is for how long a peer may take nothing of what waits for it, where no idle timeout says less.
const stalledTimeout = 15 * time.Minute

// guard sets up the sockets of a flow that has lived for a while: most never need it, and pay nothing.
func (f *flow) guard() {
	for _, h := range []*half{&f.client, &f.upstream} {
		if !h.keptAlive {
			h.keptAlive = true
			setKeepAlive(h.fd, f.cfg.keepAlive())
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

func setUserTimeout(fd int, on bool) {
	var ms int32
	if on {
		ms = int32(stalledTimeout / time.Millisecond)
	}
	setsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, ms)
}
