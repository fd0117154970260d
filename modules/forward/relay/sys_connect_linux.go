package relay

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// startConnect opens a socket and begins to connect it to addr. A unix socket is bound to the name before, if that can be.
func startConnect(local *Local, addr net.Addr, name string) (fd int, err error) {
	var to rawSockaddr
	if err := to.set(addr); err != nil {
		return 0, err
	}
	err = local.connect(addr, func(source netip.Addr) error {
		fd, err = startConnectFrom(source, name, &to)
		return err
	})
	return fd, err
}

func startConnectFrom(source netip.Addr, name string, to *rawSockaddr) (fd int, err error) {
	s, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(to.family()),
		unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return 0, os.NewSyscallError("socket", errno)
	}
	if to.family() != unix.AF_UNIX {
		setsockoptInt(int(s), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	} else if name != "" {
		bindUnix(int(s), name)
	}
	if source.IsValid() {
		bindWithoutPort(int(s))
		if err := bindSource(int(s), source, false); err != nil {
			closeFD(int(s))
			return 0, err
		}
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_CONNECT, s, uintptr(unsafe.Pointer(&to.any)), to.size)
	switch errno {
	case 0, unix.EINPROGRESS, unix.EINTR:
		return int(s), nil
	}
	closeFD(int(s))
	if to.family() == unix.AF_UNIX {
		return 0, errno
	}
	return 0, localError("connect", errno, false, source)
}

// bindWithoutPort has connect(2) choose the port, and not bind(2): then connections to different upstreams may have the same one
// (IP_BIND_ADDRESS_NO_PORT in ip(7)).
func bindWithoutPort(fd int) { setsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) }

// bindSource has a socket send from an address.
func bindSource(fd int, source netip.Addr, datagrams bool) error {
	var from rawSockaddr
	from.setIP(source.AsSlice(), 0, source.Zone())
	_, _, errno := syscall.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&from.any)), from.size)
	if errno != 0 {
		return localError("bind", errno, datagrams, source)
	}
	return nil
}

// bindUnix binds a unix socket to a name.
func bindUnix(fd int, name string) {
	var own rawSockaddr
	if own.setUnix(&net.UnixAddr{Name: name}) == nil {
		_, _, _ = syscall.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&own.any)), own.size)
	}
}

// connectPackets opens a socket that sends to addr and receives from it. Where nobody listens on an address of this machine,
// the kernel may choose that very address for the socket, which would then talk to itself: such a socket is not used.
func connectPackets(local *Local, addr *net.UDPAddr) (fd int, err error) {
	var to rawSockaddr
	if err := to.set(addr); err != nil {
		return -1, err
	}
	if !addr.IP.IsLoopback() {
		watchAddresses()
	}
	for {
		err := local.connect(addr, func(source netip.Addr) (err error) {
			fd, err = openPacketSocket(source, &to)
			return err
		})
		if err != nil || !hasPeersAddr(fd, addr.Port) {
			return fd, err
		}
		defer closeFD(fd) // after the next one is open, which therefore gets another port
	}
}

// openPacketSocket opens a socket that is connected to addr.
func openPacketSocket(source netip.Addr, to *rawSockaddr) (int, error) {
	s, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(to.family()),
		unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	if source.IsValid() {
		if err := bindSource(int(s), source, true); err != nil {
			closeFD(int(s))
			return -1, err
		}
	}
	_, _, errno = syscall.RawSyscall(unix.SYS_CONNECT, s, uintptr(unsafe.Pointer(&to.any)), to.size)
	if errno != 0 {
		closeFD(int(s))
		return -1, localError("connect", errno, true, source)
	}
	return int(s), nil
}

// isItself reports whether a socket is connected to itself. Where nobody listens on a local port, the kernel may
// choose that port for the socket that connects to it, and TCP then opens it from both sides at once (RFC 9293, section 3.5).
func isItself(fd int, target net.Addr) bool {
	to, ok := target.(*net.TCPAddr)
	return ok && hasPeersAddr(fd, to.Port)
}

// hasPeersAddr reports whether both addresses of a socket are the same. It needs no system call where the peer's port is below those
// that the kernel gives to clients.
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

// firstClientPort is the first port that the kernel gives to sockets that connect, 0 if that can't be read.
var firstClientPort = sync.OnceValue(func() int {
	ports, _ := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	first, _, _ := strings.Cut(string(ports), "\t")
	port, _ := strconv.Atoi(first)
	return port
})

// errTimeout is the error of a connection attempt that took too long.
var errTimeout = os.ErrDeadlineExceeded
