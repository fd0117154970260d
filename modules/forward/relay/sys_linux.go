package relay

import (
	"net"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of the event loops. None of them blocks, so the scheduler is not told.

func recvFD(fd int, buf *[loopBuffer]byte) (int, syscall.Errno) {
	return retried(func() (uintptr, uintptr, syscall.Errno) {
		return syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd),
			uintptr(unsafe.Pointer(buf)), loopBuffer, 0, 0, 0)
	})
}

func sendFD(fd int, b []byte) (int, syscall.Errno) {
	return retried(func() (uintptr, uintptr, syscall.Errno) {
		return syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	})
}

func spliceFD(from, to, size int) (int, syscall.Errno) {
	return retried(func() (uintptr, uintptr, syscall.Errno) {
		return syscall.RawSyscall6(syscall.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(size), spliceFlags)
	})
}

// retried returns -1 with an error.
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

func closeFD(fd int) { _, _, _ = syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(fd), 0, 0) }

// resetOnClose makes close send a RST, and discard what was not sent.
func resetOnClose(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// queuedFD returns how many bytes the peer has not acknowledged yet.
func queuedFD(fd int) int {
	n, _ := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	return n
}

// startConnect opens a socket and begins to connect it to addr.
func startConnect(addr net.Addr) (fd int, err error) {
	family, to, err := sockaddr(addr)
	if err != nil {
		return 0, err
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	if family != unix.AF_UNIX {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	switch err = unix.Connect(fd, to); err {
	case nil, unix.EINPROGRESS, unix.EINTR:
		return fd, nil
	default:
		closeFD(fd)
		return 0, err
	}
}

func sockaddr(addr net.Addr) (family int, to unix.Sockaddr, err error) {
	switch a := addr.(type) {
	case *net.TCPAddr:
		if ip := a.IP.To4(); ip != nil {
			return unix.AF_INET, &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(ip)}, nil
		}
		if ip := a.IP.To16(); ip != nil {
			return unix.AF_INET6, &unix.SockaddrInet6{Port: a.Port, Addr: [16]byte(ip), ZoneId: zoneID(a.Zone)}, nil
		}
	case *net.UnixAddr:
		return unix.AF_UNIX, &unix.SockaddrUnix{Name: a.Name}, nil
	}
	return 0, nil, &net.AddrError{Err: "unexpected address", Addr: addr.String()}
}

func zoneID(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index)
	}
	n, _ := strconv.ParseUint(zone, 10, 32)
	return uint32(n)
}

// errTimeout is what an attempt that took too long ends with.
var errTimeout = os.ErrDeadlineExceeded

// dialError says which attempt has failed, in the words of the net package.
func dialError(addr net.Addr, err error) error {
	if errno, ok := err.(syscall.Errno); ok {
		err = os.NewSyscallError("connect", errno)
	}
	return &net.OpError{Op: "dial", Net: addr.Network(), Addr: addr, Err: err}
}
