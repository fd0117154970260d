package main

import (
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"
)

// The generator and the backend share the machine with the proxy under test, so what they cost is
// taken away from it. They are therefore event loops on threads of their own: sockets that never
// block, one epoll descriptor per loop, and system calls that Go's scheduler does not see (a loop that
// waits keeps its processor, which is why GOMAXPROCS is larger than the number of loops).

// poller is an epoll descriptor.
type poller struct {
	fd     int
	events [256]syscall.EpollEvent
}

// pollTimeoutMS bounds a wait, so that a loop without traffic still sees that its phase has changed.
const pollTimeoutMS = 5

const (
	readable    = syscall.EPOLLIN
	writable    = syscall.EPOLLOUT
	edge        = 1 << 31 // EPOLLET, which syscall has as a negative number
	oneWakes    = 1 << 28 // EPOLLEXCLUSIVE
	noSignal    = syscall.MSG_NOSIGNAL | syscall.MSG_DONTWAIT
	throwAway   = syscall.MSG_TRUNC | syscall.MSG_DONTWAIT // tcp(7): the bytes are discarded, not copied
	nonBlocking = syscall.SOCK_NONBLOCK | syscall.SOCK_CLOEXEC
	listenSize  = 4096
)

func newPoller() (*poller, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	return &poller{fd: fd}, nil
}

// add asks for events of fd, which come back with the tag.
func (p *poller) add(fd int, tag int32, events uint32) syscall.Errno {
	return p.control(syscall.EPOLL_CTL_ADD, fd, tag, events)
}

func (p *poller) modify(fd int, tag int32, events uint32) syscall.Errno {
	return p.control(syscall.EPOLL_CTL_MOD, fd, tag, events)
}

func (p *poller) control(op, fd int, tag int32, events uint32) syscall.Errno {
	event := syscall.EpollEvent{Events: events, Fd: tag}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_CTL, uintptr(p.fd), uintptr(op), uintptr(fd),
		uintptr(unsafe.Pointer(&event)), 0, 0)
	return errno
}

// wait returns the events that are ready, none of them after pollTimeoutMS or a signal.
func (p *poller) wait() []syscall.EpollEvent {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])),
		uintptr(len(p.events)), pollTimeoutMS, 0, 0)
	if errno != 0 {
		return nil
	}
	return p.events[:n]
}

func (p *poller) close() { closeSocket(p.fd) }

func send(fd int, data []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&data[0])),
		uintptr(len(data)), noSignal, 0, 0)
	return int(n), errno
}

func receive(fd int, buffer []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&buffer[0])),
		uintptr(len(buffer)), syscall.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

// discard takes up to limit bytes from the socket without copying them.
func discard(fd, limit int) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), 0, uintptr(limit), throwAway, 0, 0)
	return int(n), errno
}

// receiveFrom takes one datagram and notes who has sent it.
func receiveFrom(fd int, buffer []byte, from *syscall.RawSockaddrInet4) (int, syscall.Errno) {
	size := uint32(unsafe.Sizeof(*from))
	n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&buffer[0])),
		uintptr(len(buffer)), syscall.MSG_DONTWAIT, uintptr(unsafe.Pointer(from)), uintptr(unsafe.Pointer(&size)))
	return int(n), errno
}

// sendTo sends one datagram, or drops it where there is no room.
func sendTo(fd int, data []byte, to *syscall.RawSockaddrInet4) {
	_, _, _ = syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&data[0])),
		uintptr(len(data)), noSignal, uintptr(unsafe.Pointer(to)), unsafe.Sizeof(*to))
}

// nap lets the thread sleep for as short as the kernel's timers do, which is about 0.1 ms.
func nap() {
	t := syscall.Timespec{Nsec: 50_000}
	_, _, _ = syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&t)), 0, 0)
}

// connect starts a connection of the socket type. It may be complete when connect returns; a first send tells.
func connect(kind uintptr, to *syscall.RawSockaddrInet4) (int, syscall.Errno) {
	fd, _, errno := syscall.RawSyscall(syscall.SYS_SOCKET, syscall.AF_INET, kind|nonBlocking, 0)
	if errno != 0 {
		return -1, errno
	}
	_, _, errno = syscall.RawSyscall(syscall.SYS_CONNECT, fd, uintptr(unsafe.Pointer(to)), unsafe.Sizeof(*to))
	if errno != 0 && errno != syscall.EINPROGRESS {
		closeSocket(int(fd))
		return -1, errno
	}
	return int(fd), 0
}

func accept(listener int) (int, syscall.Errno) {
	fd, _, errno := syscall.RawSyscall6(syscall.SYS_ACCEPT4, uintptr(listener), 0, 0, nonBlocking, 0, 0)
	return int(fd), errno
}

func setOption(fd, level, name, value int) {
	v := int32(value)
	_, _, _ = syscall.RawSyscall6(syscall.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
}

func closeSocket(fd int) { _, _, _ = syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(fd), 0, 0) }

// reset closes the connection with an RST, which leaves no port in TIME_WAIT behind.
func reset(fd int) {
	linger := syscall.Linger{Onoff: 1}
	_, _, _ = syscall.RawSyscall6(syscall.SYS_SETSOCKOPT, uintptr(fd), syscall.SOL_SOCKET, syscall.SO_LINGER,
		uintptr(unsafe.Pointer(&linger)), unsafe.Sizeof(linger), 0)
	closeSocket(fd)
}

// listen opens a listening socket on a port of 127.0.0.1 that the kernel picks. Accepted connections inherit TCP_NODELAY.
func listen() (fd, port int, err error) {
	fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|nonBlocking, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("socket: %w", err)
	}
	setOption(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	if port, err = bind(fd); err == nil {
		err = syscall.Listen(fd, listenSize)
	}
	if err != nil {
		syscall.Close(fd)
		return 0, 0, fmt.Errorf("listening on a free port: %w", err)
	}
	return fd, port, nil
}

// listenDatagrams opens a UDP socket on a port of 127.0.0.1 that the kernel picks. It has room for what arrives while the
// backend waits for a processor: what is lost there would be counted as the proxy's.
func listenDatagrams() (fd, port int, err error) {
	const room = 32 << 20
	fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|nonBlocking, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("socket: %w", err)
	}
	if port, err = bind(fd); err != nil {
		syscall.Close(fd)
		return 0, 0, fmt.Errorf("taking a free UDP port: %w", err)
	}
	setOption(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, room)      // as far as net.core.rmem_max lets it
	setOption(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, room) // root may have more
	return fd, port, nil
}

// freeDatagramPort finds a UDP port for a proxy that is started at once. Nothing else here opens sockets meanwhile.
func freeDatagramPort() (int, error) {
	fd, port, err := listenDatagrams()
	if err != nil {
		return 0, err
	}
	return port, syscall.Close(fd)
}

// bind gives the socket a free port of 127.0.0.1.
func bind(fd int) (port int, err error) {
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, err
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	return name.(*syscall.SockaddrInet4).Port, nil
}

// reservePort finds a free port for a proxy, and keeps it until this process ends. The socket that holds it never listens,
// so the kernel gives the port to nobody else, and yet lets the proxy listen on it, as both sides set SO_REUSEADDR.
func reservePort() (port int, err error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|nonBlocking, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	port, err = bind(fd) // before SO_REUSEADDR, or the kernel would pick a port that somebody shares
	if err != nil {
		syscall.Close(fd)
		return 0, fmt.Errorf("reserving a port: %w", err)
	}
	setOption(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	return port, nil
}

// rawAddress is the form that the connect system call takes.
func rawAddress(addr netip.AddrPort) *syscall.RawSockaddrInet4 {
	raw := &syscall.RawSockaddrInet4{Family: syscall.AF_INET, Addr: addr.Addr().As4()}
	port := (*[2]byte)(unsafe.Pointer(&raw.Port))
	port[0], port[1] = byte(addr.Port()>>8), byte(addr.Port())
	return raw
}
