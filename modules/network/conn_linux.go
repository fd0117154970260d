package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
)

// listener is a listening socket in Go's poller, the connections of which are not.
type listener struct {
	file *os.File
	raw  syscall.RawConn
	addr *net.TCPAddr

	try  func(fd uintptr) bool
	fd   int
	peer unix.RawSockaddrAny
	err  error
}

func listenSocket(ctx context.Context, cfg net.ListenConfig, ep endpoint) (*listener, error) {
	ln, err := ep.listen(ctx, cfg)
	if err != nil {
		return nil, err
	}
	// A TCPListener has no RawConn.Read, a copy of its descriptor as a file has.
	defer func() { _ = ln.Close() }()
	file, err := ln.File()
	if err != nil {
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	l := &listener{file: file, raw: raw, addr: ln.Addr().(*net.TCPAddr)}
	l.try = l.tryAccept
	return l, nil
}

func (l *listener) Addr() net.Addr                { return l.addr }
func (l *listener) Close() error                  { return l.file.Close() }
func (l *listener) SetDeadline(t time.Time) error { return l.file.SetReadDeadline(t) }

// accept is not for concurrent use.
func (l *listener) accept() (*Conn, error) {
	if err := l.raw.Read(l.try); err != nil {
		return nil, err
	}
	if l.err != nil {
		return nil, os.NewSyscallError("accept4", l.err)
	}
	return l.accepted(), nil
}

// accepted returns the connection that tryAccept has accepted.
func (l *listener) accepted() *Conn {
	conn := &Conn{fd: l.fd, remote: addrPort(&l.peer)}
	if !l.addr.IP.IsUnspecified() {
		conn.local = l.addr
	}
	return conn
}

// tryAccept is called by the poller: false waits for a connection.
func (l *listener) tryAccept(fd uintptr) bool {
	size := uint32(unsafe.Sizeof(l.peer))
	conn, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, fd, uintptr(unsafe.Pointer(&l.peer)),
		uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	l.fd, l.err = int(conn), nil
	if errno != 0 {
		l.err = errno
	}
	return errno != syscall.EAGAIN
}

func addrPort(sa *unix.RawSockaddrAny) netip.AddrPort {
	var addr netip.Addr
	var port [2]byte
	switch sa.Addr.Family {
	case unix.AF_INET:
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		addr, port = netip.AddrFrom4(sa4.Addr), *(*[2]byte)(unsafe.Pointer(&sa4.Port))
	case unix.AF_INET6:
		sa6 := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		addr, port = netip.AddrFrom16(sa6.Addr).Unmap(), *(*[2]byte)(unsafe.Pointer(&sa6.Port))
		if sa6.Scope_id != 0 {
			if ifi, err := net.InterfaceByIndex(int(sa6.Scope_id)); err == nil {
				addr = addr.WithZone(ifi.Name)
			}
		}
	}
	return netip.AddrPortFrom(addr, uint16(port[0])<<8|uint16(port[1]))
}

// Conn is a connection that was accepted on gate+tcp. It stays out of Go's poller until somebody
// reads or writes it, and its socket can be detached, so that an event loop can have it.
type Conn struct {
	listenerAddr string
	remote       netip.AddrPort
	local        *net.TCPAddr
	unrouted

	mu            sync.Mutex
	descriptors   *descriptors.Listener // nil once they are somebody else's, or given back
	fd            int                   // -1 once it is attached, detached or closed
	file          *os.File              // the socket in Go's poller, nil before
	readDeadline  time.Time
	writeDeadline time.Time
}

// Detach gives the socket away: its descriptor is non-blocking and in no poller. What was read from
// the connection before is the caller's to know. From then on the connection is closed, without
// the socket being so. It reports false where it was closed before.
func (c *Conn) Detach() (fd int, ok bool) {
	c.Taken()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd >= 0 {
		fd, c.fd = c.fd, -1
		return fd, true
	}
	if c.file == nil {
		return -1, false
	}
	raw, err := c.file.SyscallConn()
	if err != nil {
		return -1, false
	}
	failed := raw.Control(func(attached uintptr) { fd, err = unix.FcntlInt(attached, unix.F_DUPFD_CLOEXEC, 0) })
	if failed != nil || err != nil {
		return -1, false
	}
	_ = c.file.Close()
	return fd, true
}

// attach puts the socket into Go's poller.
func (c *Conn) attach() (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != nil {
		return c.file, nil
	}
	if c.fd < 0 {
		return nil, net.ErrClosed
	}
	c.file, c.fd = os.NewFile(uintptr(c.fd), "tcp"), -1
	_ = c.file.SetReadDeadline(c.readDeadline)
	_ = c.file.SetWriteDeadline(c.writeDeadline)
	return c.file, nil
}

// Peek copies what has arrived into b, and leaves it there to be read. It does not wait: it returns 0 where nothing has
// arrived, and [io.EOF] where the client has finished.
func (c *Conn) Peek(b []byte) (n int, err error) {
	err = c.control("recv", func(fd int) error {
		got, errno := recvNow(fd, b, unix.MSG_PEEK)
		switch {
		case errno == unix.EAGAIN:
			return nil
		case errno != 0:
			return errno
		case got == 0 && len(b) > 0:
			return io.EOF
		}
		n = got
		return nil
	})
	return n, err
}

// Skip drops what Peek has copied into b.
func (c *Conn) Skip(b []byte) error {
	return c.control("recv", func(fd int) error {
		// With MSG_TRUNC, TCP drops bytes without copying them (tcp(7)).
		n, errno := recvNow(fd, b, unix.MSG_TRUNC)
		if errno != 0 {
			return errno
		}
		if n != len(b) {
			return io.ErrUnexpectedEOF
		}
		return nil
	})
}

// recvNow is recv(2), which does not wait.
func recvNow(fd int, b []byte, flags int) (n int, errno syscall.Errno) {
	got, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))),
		uintptr(len(b)), uintptr(flags|unix.MSG_DONTWAIT), 0, 0)
	return int(got), errno
}

// Close closes the socket, unless it was detached.
func (c *Conn) Close() error {
	err := c.closeSocket()
	if !errors.Is(err, net.ErrClosed) {
		c.closed(c, "tcp", c.listenerAddr, c.remote)
	}
	return err
}

func (c *Conn) closeSocket() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 && c.file == nil {
		return net.ErrClosed
	}
	var err error
	if c.file != nil {
		err = c.asNetError("close", c.file.Close())
	} else {
		err = os.NewSyscallError("close", closeSocket(c.fd))
		c.fd = -1
	}
	c.descriptors.Release()
	c.descriptors = nil
	return err
}

// Descriptors implements [descriptors.Owner].
func (c *Conn) Descriptors() *descriptors.Listener {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.descriptors
	c.descriptors = nil
	return d
}

// closeSocket closes a socket that does not linger, which takes no time that the scheduler need know of: told, it
// takes the processor away from the goroutine that accepts, where it takes longer than 20 us.
func closeSocket(fd int) error {
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(fd), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// Read reads from the connection.
func (c *Conn) Read(b []byte) (int, error) {
	file, err := c.attach()
	if err != nil {
		return 0, err
	}
	n, err := file.Read(b)
	if c.scope != nil {
		c.read.Add(int64(n))
	}
	return n, c.asNetError("read", err)
}

// Write writes to the connection.
func (c *Conn) Write(b []byte) (int, error) {
	file, err := c.attach()
	if err != nil {
		return 0, err
	}
	c.Taken()
	n, err := file.Write(b)
	return n, c.asNetError("write", err)
}

// asNetError makes what a net.Conn returns of a file's error.
func (c *Conn) asNetError(op string, err error) error {
	var failed *os.PathError
	if !errors.As(err, &failed) {
		return err
	}
	if err = failed.Err; errors.Is(err, os.ErrClosed) {
		err = net.ErrClosed
	}
	return &net.OpError{Op: op, Net: "tcp", Addr: c.RemoteAddr(), Err: err}
}

// CloseRead closes the reading side.
func (c *Conn) CloseRead() error { return c.shutdown(unix.SHUT_RD) }

// CloseWrite closes the writing side: the peer gets a FIN.
func (c *Conn) CloseWrite() error { return c.shutdown(unix.SHUT_WR) }

func (c *Conn) shutdown(how int) error {
	return c.control("shutdown", func(fd int) error { return unix.Shutdown(fd, how) })
}

// SetLinger is [net.TCPConn.SetLinger].
func (c *Conn) SetLinger(seconds int) error {
	linger := unix.Linger{Linger: int32(max(seconds, 0))}
	if seconds >= 0 {
		linger.Onoff = 1
	}
	return c.control("setsockopt", func(fd int) error {
		return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &linger)
	})
}

// Control calls f with the socket, which stays where it is: in Go's poller, or out of it.
func (c *Conn) Control(f func(fd int) error) error { return c.control("control", f) }

// control calls f with the socket, attached or not.
func (c *Conn) control(call string, f func(fd int) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd >= 0 {
		return os.NewSyscallError(call, f(c.fd))
	}
	if c.file == nil {
		return net.ErrClosed
	}
	raw, err := c.file.SyscallConn()
	if err != nil {
		return c.asNetError(call, err)
	}
	if failed := raw.Control(func(fd uintptr) { err = os.NewSyscallError(call, f(int(fd))) }); failed != nil {
		return net.ErrClosed
	}
	return err
}

// SyscallConn gives access to the socket.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	file, err := c.attach()
	if err != nil {
		return nil, err
	}
	return file.SyscallConn()
}

// LocalAddr returns the address that the client has connected to.
func (c *Conn) LocalAddr() net.Addr {
	c.mu.Lock()
	known := c.local
	c.mu.Unlock()
	if known != nil {
		return known
	}
	local := new(net.TCPAddr)
	_ = c.control("getsockname", func(fd int) error {
		var sa unix.RawSockaddrAny
		size := uint32(unsafe.Sizeof(sa))
		_, _, errno := syscall.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd),
			uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)))
		if errno == 0 {
			local = net.TCPAddrFromAddrPort(addrPort(&sa))
			c.local = local
		}
		return nil
	})
	return local
}

// RemoteAddr returns the client's address.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *Conn) client() netip.AddrPort { return c.remote }

// SetDeadline sets both deadlines. Like those below it only notes them until somebody reads or writes.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline sets the deadline of Read.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readDeadline = t
	if c.file == nil {
		return nil
	}
	return c.asNetError("set", c.file.SetReadDeadline(t))
}

// SetWriteDeadline sets the deadline of Write.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeDeadline = t
	if c.file == nil {
		return nil
	}
	return c.asNetError("set", c.file.SetWriteDeadline(t))
}
