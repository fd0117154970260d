package relay

import (
	"math"
	"syscall"

	"golang.org/x/sys/unix"
)

// largestWhole returns how large a datagram may be to be sent on a connected socket as one packet, as far as the system knows the way (IP_MTU in ip(7)):
// larger ones are sent in fragments.
func largestWhole(fd int) int {
	level, option, headers := unix.IPPROTO_IP, unix.IP_MTU, 20+8
	if local := localAddr(fd).Addr(); local.Is6() {
		level, option, headers = unix.IPPROTO_IPV6, unix.IPV6_MTU, 40+8
	}
	mtu, err := unix.GetsockoptInt(fd, level, option)
	if err != nil {
		return math.MaxInt
	}
	return mtu - headers
}

func largestWholeOf(raw syscall.RawConn) (size int) {
	size = math.MaxInt
	_ = raw.Control(func(fd uintptr) { size = largestWhole(int(fd)) })
	return size
}
