package relay

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the event loops. None of them blocks, so the scheduler is not told of them.

func recvFD(fd int, buf []byte) (int, syscall.Errno) {
	return retried(func() (uintptr, uintptr, syscall.Errno) {
		return syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0, 0, 0)
	})
}

// recvFlags is recvFD with flags. It does not wait, whatever the socket is set to.
func recvFlags(fd int, buf []byte, flags int) (int, syscall.Errno) {
	return retried(func() (uintptr, uintptr, syscall.Errno) {
		return syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), uintptr(flags|unix.MSG_DONTWAIT), 0, 0)
	})
}

func sendFD(fd int, b []byte) (int, syscall.Errno) {
	return retried(func() (uintptr, uintptr, syscall.Errno) {
		return syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	})
}

func spliceFD(from, to, size int) (int, syscall.Errno) {
	return retried(func() (uintptr, uintptr, syscall.Errno) {
		return syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(size), spliceFlags)
	})
}

// retried repeats a call that a signal has interrupted. It returns -1 with an error.
func retried(call func() (uintptr, uintptr, syscall.Errno)) (int, syscall.Errno) {
	for {
		n, _, errno := call()
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
		default:
			return -1, errno
		}
	}
}

func closeFD(fd int) { _, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// shutdownFD sends a FIN after what is in the send queue.
func shutdownFD(fd int) {
	_, _, _ = syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
}

// resetOnClose makes close send a RST, which discards what is in the send queue.
func resetOnClose(fd int) {
	setsockopt(fd, unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&unix.Linger{Onoff: 1}), unsafe.Sizeof(unix.Linger{}))
}

func setsockoptInt(fd, level, name int, value int32) {
	setsockopt(fd, level, name, unsafe.Pointer(&value), unsafe.Sizeof(value))
}

// setsockopt ignores errors: a socket without the option works, too.
func setsockopt(fd, level, name int, value unsafe.Pointer, size uintptr) {
	_, _, _ = syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(value), size, 0)
}
