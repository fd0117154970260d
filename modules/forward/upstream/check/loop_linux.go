package check

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// loop makes exchanges in one goroutine, with an epoll instance that Go's poller watches. A dialer of package net takes a goroutine, a timer and
// some registrations for each, which is several times the work.
type loop struct {
	epoll  int
	file   *os.File // keeps it open
	poller syscall.RawConn
	ended  chan struct{}

	mu     sync.Mutex
	last   uint64 // number of the last exchange
	open   map[uint64]*exchange
	closed bool

	found  int
	events [128]unix.EpollEvent
	buffer [maxReply]byte
}

// loopState is what a loop has of an exchange. loop.mu guards it.
type loopState struct {
	number    uint64
	fd        int
	connected bool
	watched   bool   // by epoll
	reply     []byte // of a stream, where more has to come
}

func newLoop() (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	_ = unix.SetNonblock(epoll, true) // lets os.NewFile put it into the poller
	l := &loop{epoll: epoll, file: os.NewFile(uintptr(epoll), "epoll"), ended: make(chan struct{}), open: make(map[uint64]*exchange)}
	if l.poller, err = l.file.SyscallConn(); err != nil {
		_ = l.file.Close()
		return nil, err
	}
	go l.run()
	return l, nil
}

// serves reports whether the loop can make an exchange.
func (*loop) serves(x *exchange) bool { return x.tls == nil }

// begin begins exchanges. It does not block, and may call over before it returns. Many are answered by the time that the last one of them has begun:
// those need no epoll, and wake up nobody.
func (l *loop) begin(all ...*exchange) {
	results := make([]result, 0, len(all))
	begun := all[:0:0]
	for _, x := range all {
		if x.cancelled.Load() {
			continue
		}
		if done, err := x.connect(); done {
			results = append(results, result{x, err})
		} else {
			begun = append(begun, x)
		}
	}
	l.mu.Lock()
	for _, x := range begun {
		if done, err := l.add(x); done {
			results = append(results, result{x, err})
		}
	}
	l.mu.Unlock()
	for _, r := range results {
		r.over(r.err)
	}
}

// connect opens a socket, and sends the request if that can be done at once. It reports whether the exchange is over. If not, the socket is open.
func (x *exchange) connect() (done bool, err error) {
	to, family, kind := sockaddrOf(x.addr)
	x.fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true, os.NewSyscallError("socket", err)
	}
	if family != unix.AF_UNIX && kind == unix.SOCK_STREAM {
		x.prepareStream()
	}
	done, err = x.attempt(to, family)
	if done {
		_ = unix.Close(x.fd)
	}
	return done, err
}

// prepareStream sets what has to be set before a connection is made.
func (x *exchange) prepareStream() {
	// Closing resets the connection, so that neither side keeps it for a minute (TIME_WAIT).
	_ = unix.SetsockoptLinger(x.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if x.judge == nil || len(x.request) > 0 {
		// The system then holds back the last step of the handshake. The request goes with it, as HAProxy's tcp-smart-connect has it; or the reset
		// comes before it, so that the server never accepts a connection over which nothing is said, and does not log that it was useless
		// (tcp_rcv_synsent_state_process in net/ipv4/tcp_input.c).
		_ = unix.SetsockoptInt(x.fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
	}
}

// attempt begins to connect. One on this machine has answered by the time that it returns.
func (x *exchange) attempt(to unix.Sockaddr, family int) (done bool, err error) {
	if x.source.IsValid() && family != unix.AF_UNIX {
		_ = unix.SetsockoptInt(x.fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		if err := unix.Bind(x.fd, sockaddrAt(netip.AddrPortFrom(x.source, 0))); err != nil {
			return true, os.NewSyscallError("bind", err)
		}
	}
	err = unix.Connect(x.fd, to)
	if x.judge == nil && err == unix.EINPROGRESS {
		err = unix.Connect(x.fd, to)
	}
	switch {
	case err != nil && err != unix.EINPROGRESS && err != unix.EALREADY, err == nil && x.judge == nil:
		return true, os.NewSyscallError("connect", err)
	case x.judge == nil || !x.asks():
		return false, nil
	}
	switch err := x.send(); err {
	case nil:
		x.connected = true
		return false, nil
	case unix.EAGAIN:
		return false, nil
	case unix.ECONNRESET, unix.EPIPE:
		return true, os.NewSyscallError("send", err)
	default:
		return true, os.NewSyscallError("connect", err)
	}
}

// asks reports whether there is something to send. A datagram may be empty.
func (x *exchange) asks() bool {
	_, datagrams := x.addr.(*net.UDPAddr)
	return datagrams || len(x.request) > 0
}

// send sends the request, which the buffer of a new socket has room for.
func (x *exchange) send() error {
	return unix.Send(x.fd, x.request, unix.MSG_NOSIGNAL)
}

// add goes on with an exchange, and has run do so where it is not over. It is called with l.mu locked, as all that follows.
func (l *loop) add(x *exchange) (done bool, err error) {
	if l.closed || x.cancelled.Load() {
		_ = unix.Close(x.fd)
		return false, nil
	}
	l.last++
	x.number = l.last
	l.open[x.number] = x
	if x.connected {
		done, err = l.receive(x)
	}
	if !done && !x.watched {
		err = l.watch(x)
		done = err != nil
	}
	if done {
		l.forget(x)
	}
	return done, err
}

// watch has run hear of the socket: of what is there already, too.
func (l *loop) watch(x *exchange) error {
	how := unix.EPOLL_CTL_ADD
	if x.watched {
		how = unix.EPOLL_CTL_MOD
	}
	x.watched = true
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(x.number), Pad: int32(x.number >> 32)}
	if !x.connected {
		event.Events |= unix.EPOLLOUT
	}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(l.epoll, how, x.fd, &event))
}

func sockaddrOf(addr net.Addr) (to unix.Sockaddr, family, kind int) {
	kind = unix.SOCK_STREAM
	switch a := addr.(type) {
	case *net.UnixAddr:
		return &unix.SockaddrUnix{Name: a.Name}, unix.AF_UNIX, kind
	case *net.UDPAddr:
		to, kind = sockaddrAt(a.AddrPort()), unix.SOCK_DGRAM
	case *net.TCPAddr:
		to = sockaddrAt(a.AddrPort())
	}
	if _, six := to.(*unix.SockaddrInet6); six {
		return to, unix.AF_INET6, kind
	}
	return to, unix.AF_INET, kind
}

func sockaddrAt(addr netip.AddrPort) unix.Sockaddr {
	ip := addr.Addr().Unmap()
	if ip.Is4() {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: ip.As4()}
	}
	six := &unix.SockaddrInet6{Port: int(addr.Port()), Addr: ip.As16()}
	if zone := ip.Zone(); zone != "" {
		if link, err := net.InterfaceByName(zone); err == nil {
			six.ZoneId = uint32(link.Index)
		}
	}
	return six
}

// cancel ends an exchange whose result nobody waits for any more.
func (l *loop) cancel(x *exchange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(x)
}

// forget reports false where the exchange is over already.
func (l *loop) forget(x *exchange) bool {
	if x.number == 0 || l.open[x.number] != x {
		return false
	}
	delete(l.open, x.number)
	_ = unix.Close(x.fd)
	x.reply = nil
	return true
}

// result is an exchange that is over.
type result struct {
	*exchange
	err error
}

// run moves exchanges on whenever something has happened to their sockets.
func (l *loop) run() {
	defer close(l.ended)
	var results []result
	poll := func(uintptr) bool {
		n, err := unix.EpollWait(l.epoll, l.events[:], 0)
		l.found = n
		return err != nil || n > 0
	}
	for {
		if err := l.poller.Read(poll); err != nil {
			return // closed
		}
		results = results[:0]
		l.mu.Lock()
		for i := range max(l.found, 0) {
			event := &l.events[i]
			x := l.open[uint64(uint32(event.Fd))|uint64(uint32(event.Pad))<<32]
			if x == nil {
				continue // it was cancelled meanwhile
			}
			if done, err := l.move(x, event.Events); done {
				l.forget(x)
				results = append(results, result{x, err})
			}
		}
		l.mu.Unlock()
		for _, r := range results {
			r.over(r.err)
		}
	}
}

// move goes on with an exchange. It reports whether it is over.
func (l *loop) move(x *exchange, events uint32) (done bool, err error) {
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 && !x.connected {
		if errno, _ := unix.GetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_ERROR); errno != 0 {
			return true, os.NewSyscallError("connect", syscall.Errno(errno))
		}
	}
	if !x.connected {
		if events&(unix.EPOLLOUT|unix.EPOLLIN|unix.EPOLLHUP) == 0 {
			return false, nil
		}
		if x.judge == nil {
			return true, nil
		}
		x.connected = true
		if x.asks() {
			if err := x.send(); err != nil {
				return true, os.NewSyscallError("send", err)
			}
		}
	}
	if events&^unix.EPOLLOUT == 0 {
		return false, nil // nothing to receive yet
	}
	return l.receive(x)
}

// readsAtOnce bounds how often an exchange reads before others have their turn: somebody may send faster than it is read.
const readsAtOnce = 16

func (l *loop) receive(x *exchange) (done bool, err error) {
	_, datagrams := x.addr.(*net.UDPAddr)
	for range readsAtOnce {
		n, err := unix.Read(x.fd, l.buffer[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECONNRESET) && len(x.reply) > 0:
			n = 0 // what has come before says more
		case err != nil:
			return true, os.NewSyscallError("receive", err)
		}
		reply := l.buffer[:n]
		if !datagrams {
			if len(x.reply) > 0 {
				x.reply = append(x.reply, reply...)
				reply = x.reply
			}
			if done, err = x.judge(reply, n == 0); !done && len(x.reply) == 0 {
				x.reply = append(x.reply, reply...)
			}
			if n == 0 {
				done = true
			}
		} else {
			done, err = x.judge(reply, false)
		}
		if done {
			return true, err
		}
	}
	err = l.watch(x)
	return err != nil, err
}

// close ends the loop and all exchanges, without results.
func (l *loop) close() {
	l.mu.Lock()
	l.closed = true
	for _, x := range l.open {
		l.forget(x)
	}
	l.mu.Unlock()
	_ = l.file.Close()
	<-l.ended
}
