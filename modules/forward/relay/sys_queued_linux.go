package relay

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// queued returns how many bytes in the send queue the peer has not acknowledged yet but still may.
func queued(raw syscall.RawConn) (bytes int) {
	_ = raw.Control(func(fd uintptr) { bytes = queuedFD(int(fd)) })
	return bytes
}

func queuedFD(fd int) int {
	var n int32
	_, _, _ = syscall.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCOUTQ, uintptr(unsafe.Pointer(&n)))
	bytes := int(n)
	if bytes == 0 {
		return 0
	}
	// A connection that was reset or has timed out has no queue any more, but the kernel still counts it.
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err == nil && info.State == unix.BPF_TCP_CLOSE {
		return 0
	}
	return bytes
}
