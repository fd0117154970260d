package network

import (
	"errors"
	"math"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sharePort sets SO_REUSEPORT, or takes it back. The kernel looks at it while a socket is bound.
func sharePort(conn syscall.RawConn, on bool) error {
	value := 0
	if on {
		value = 1
	}
	var err error
	failed := conn.Control(func(fd uintptr) {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, value))
	})
	return errors.Join(failed, err)
}

func (l *listener) sharePort(on bool) error { return sharePort(l.raw, on) }

// hide binds the socket to an interface that there is not, so that no connection arrives. Those that have arrived stay. Anybody may set the
// interface of a socket that has none, but not change it again.
func (l *listener) hide() bool {
	var err error
	failed := l.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, math.MaxInt32)
	})
	return failed == nil && err == nil
}

// acceptWaiting returns a connection of the accept queue, nil if there is none.
func (l *listener) acceptWaiting() *Conn {
	if l.raw.Control(func(fd uintptr) { l.tryAccept(fd) }) != nil || l.err != nil {
		return nil
	}
	return l.accepted()
}

func (l *packetListener) sharePort(on bool) error { return sharePort(l.raw, on) }

// hide connects the socket to itself: it gets nothing from anybody else then, but answers may still be sent. What it has received before
// stays in its queue.
func (l *packetListener) hide() bool {
	var hidden bool
	failed := l.raw.Control(func(fd uintptr) { hidden = connectToItself(int(fd)) == nil })
	return failed == nil && hidden
}

func connectToItself(fd int) error {
	self, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	switch self := self.(type) {
	case *unix.SockaddrInet4:
		if netip.AddrFrom4(self.Addr).IsUnspecified() {
			self.Addr = loopback.As4()
		}
	case *unix.SockaddrInet6:
		if netip.AddrFrom16(self.Addr).IsUnspecified() {
			self.Addr = netip.IPv6Loopback().As16()
			if unix.Connect(fd, self) == nil {
				return nil
			}
			self.Addr = loopback.As16() // this system has no IPv6
		}
	}
	return unix.Connect(fd, self)
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// isEmpty reports whether everything that the socket has received was delivered.
func (l *packetListener) isEmpty() bool {
	l.receiving.Lock()
	defer l.receiving.Unlock()
	socket := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
	_, err := unix.Poll(socket, 0)
	return err == nil && socket[0].Revents&unix.POLLIN == 0
}
