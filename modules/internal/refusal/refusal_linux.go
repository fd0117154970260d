package refusal

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// vanish makes the kernel send nothing when the connection is closed, by repair mode (TCP_REPAIR in tcp(7)). It reports
// false if that is not possible.
func vanish(conn net.Conn) bool {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	failed := raw.Control(func(fd uintptr) { err = repair(int(fd)) })
	return failed == nil && err == nil
}

func repair(fd int) error {
	const on = 1
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, on)
}

// CanDrop reports whether the process has the capability that Drop needs (CAP_NET_ADMIN).
func CanDrop() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return repair(fd) == nil
}
