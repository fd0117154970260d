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

// hide connects the socket to itself: it gets nothing from anybody else then, but answers may still be sent.
func (l *packetListener) hide() bool {
	ip := l.addr.AddrPort().Addr()
	if ip.IsUnspecified() {
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if l.family == unix.AF_INET6 {
			ip = netip.IPv6Loopback()
		}
	}
	var self unix.Sockaddr
	if l.family == unix.AF_INET {
		self = &unix.SockaddrInet4{Port: l.addr.Port, Addr: ip.Unmap().As4()}
	} else {
		self = &unix.SockaddrInet6{Port: l.addr.Port, Addr: ip.As16()}
	}
	var err error
	failed := l.raw.Control(func(fd uintptr) { err = unix.Connect(int(fd), self) })
	return failed == nil && err == nil
}
