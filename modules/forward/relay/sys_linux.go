package relay

import (
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of the event loops. None of them blocks, so the scheduler is not told.

func recvFD(fd int, buf []byte) (int, syscall.Errno) {
	return retried(func() (uintptr, uintptr, syscall.Errno) {
		return syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0, 0, 0)
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

func closeFD(fd int) { _, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// shutdownFD sends a FIN behind what was sent.
func shutdownFD(fd int) {
	_, _, _ = syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
}

// resetOnClose makes close send a RST, and discard what was not sent.
func resetOnClose(fd int) {
	setsockopt(fd, unix.SOL_SOCKET, unix.SO_LINGER, unsafe.Pointer(&unix.Linger{Onoff: 1}), unsafe.Sizeof(unix.Linger{}))
}

func setsockoptInt(fd, level, name int, value int32) {
	setsockopt(fd, level, name, unsafe.Pointer(&value), unsafe.Sizeof(value))
}

// setsockopt ignores errors: a socket that does not know an option works without it.
func setsockopt(fd, level, name int, value unsafe.Pointer, size uintptr) {
	_, _, _ = syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(value), size, 0)
}

// startConnect opens a socket and begins to connect it to addr.
func startConnect(addr net.Addr) (fd int, err error) {
	var to rawSockaddr
	if err := to.set(addr); err != nil {
		return 0, err
	}
	s, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(to.family()),
		unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return 0, os.NewSyscallError("socket", errno)
	}
	if to.family() != unix.AF_UNIX {
		setsockoptInt(int(s), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_CONNECT, s, uintptr(unsafe.Pointer(&to.any)), to.size)
	switch errno {
	case 0, unix.EINPROGRESS, unix.EINTR:
		return int(s), nil
	default:
		closeFD(int(s))
		return 0, errno
	}
}

// connectPackets opens a socket that sends to addr and receives from it. The kernel may give it that very address,
// where it is this machine's and nobody listens there: it would then answer itself.
func connectPackets(addr *net.UDPAddr) (int, error) {
	var to rawSockaddr
	if err := to.set(addr); err != nil {
		return -1, err
	}
	for {
		fd, err := openPacketSocket(&to)
		if err != nil || !hasPeersAddr(fd, addr.Port) {
			return fd, err
		}
		defer closeFD(fd) // only then, so that another one gets another address
	}
}

// openPacketSocket opens a socket that is connected to addr.
func openPacketSocket(to *rawSockaddr) (int, error) {
	s, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(to.family()),
		unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_CONNECT, s, uintptr(unsafe.Pointer(&to.any)), to.size)
	if errno != 0 {
		closeFD(int(s))
		return -1, errno
	}
	return int(s), nil
}

// isItself reports whether a socket is connected to its own address. A local port that nobody listens on
// may be given to the socket that wants to connect to it, and TCP lets it: both sides open at once
// (RFC 9293, section 3.5).
func isItself(fd int, target net.Addr) bool {
	to, ok := target.(*net.TCPAddr)
	return ok && hasPeersAddr(fd, to.Port)
}

// hasPeersAddr is cheap where the peer's port is none that the kernel gives to clients.
func hasPeersAddr(fd, peersPort int) bool {
	if peersPort < firstClientPort() {
		return false
	}
	var local, remote rawSockaddr
	local.get(unix.SYS_GETSOCKNAME, fd)
	if local.port() != peersPort {
		return false
	}
	remote.get(unix.SYS_GETPEERNAME, fd)
	return local == remote
}

// firstClientPort is the first port that the kernel gives to sockets that connect, 0 if it does not say.
var firstClientPort = sync.OnceValue(func() int {
	ports, _ := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	first, _, _ := strings.Cut(string(ports), "\t")
	port, _ := strconv.Atoi(first)
	return port
})

// rawSockaddr is an address as the kernel takes it.
type rawSockaddr struct {
	any  unix.RawSockaddrAny
	size uintptr
}

func (r *rawSockaddr) family() uint16 { return r.any.Addr.Family }

// port is at the same place in addresses of IPv4 and IPv6.
func (r *rawSockaddr) port() int {
	return int(uint8(r.any.Addr.Data[0]))<<8 | int(uint8(r.any.Addr.Data[1]))
}

// get asks the kernel for an address of fd.
func (r *rawSockaddr) get(call uintptr, fd int) {
	size := uint32(unsafe.Sizeof(r.any))
	_, _, _ = syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&r.any)), uintptr(unsafe.Pointer(&size)))
	r.size = uintptr(size)
}

func (r *rawSockaddr) set(addr net.Addr) error {
	switch a := addr.(type) {
	case *net.TCPAddr:
		if r.setIP(a.IP, a.Port, a.Zone) {
			return nil
		}
	case *net.UDPAddr:
		if r.setIP(a.IP, a.Port, a.Zone) {
			return nil
		}
	case *net.UnixAddr:
		return r.setUnix(a)
	}
	return &net.AddrError{Err: "unexpected address", Addr: addr.String()}
}

func (r *rawSockaddr) setIP(ip net.IP, number int, zone string) bool {
	port := [2]byte{byte(number >> 8), byte(number)}
	if ip4 := ip.To4(); ip4 != nil {
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&r.any))
		sa.Family, sa.Port, sa.Addr = unix.AF_INET, *(*uint16)(unsafe.Pointer(&port)), [4]byte(ip4)
		r.size = unix.SizeofSockaddrInet4
		return true
	}
	if ip = ip.To16(); ip != nil {
		sa := (*unix.RawSockaddrInet6)(unsafe.Pointer(&r.any))
		sa.Family, sa.Port, sa.Addr = unix.AF_INET6, *(*uint16)(unsafe.Pointer(&port)), [16]byte(ip)
		sa.Scope_id = zoneID(zone)
		r.size = unix.SizeofSockaddrInet6
		return true
	}
	return false
}

// setUnix takes a path, or with a leading @ a name in Linux's abstract namespace (unix(7)).
func (r *rawSockaddr) setUnix(a *net.UnixAddr) error {
	sa := (*unix.RawSockaddrUnix)(unsafe.Pointer(&r.any))
	if len(a.Name) == 0 || len(a.Name) >= len(sa.Path) {
		return &net.AddrError{Err: "path is empty or too long for a unix socket", Addr: a.Name}
	}
	sa.Family = unix.AF_UNIX
	for i := range len(a.Name) {
		sa.Path[i] = int8(a.Name[i])
	}
	r.size = unsafe.Offsetof(sa.Path) + uintptr(len(a.Name))
	if a.Name[0] == '@' {
		sa.Path[0] = 0
	} else {
		r.size++ // the terminating zero
	}
	return nil
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
