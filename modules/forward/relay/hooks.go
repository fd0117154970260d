package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// Tracker learns which sockets a relay opens to its upstreams, so that a connection which comes back to this process can
// be recognized by its client address. Event loops call it: it must not block.
type Tracker interface {
	// Connecting is called before a socket is connected to remote. It returns nil for a socket that need not be tracked,
	// which then costs no further system call.
	Connecting(remote netip.AddrPort) TrackedSocket

	// ConnectingUnix is Connecting for a unix socket. The relay binds the socket to the name before it connects it, so that the other
	// side sees who its client is: a name in Linux's abstract namespace, which begins with @. Where that is not possible, it
	// connects it without. Connected is not called.
	ConnectingUnix() (name string, s TrackedSocket)
}

// TrackedSocket is one socket to an upstream.
type TrackedSocket interface {
	// Connected is called once the system has chosen the local address. For datagrams that is before the first one is
	// sent. For TCP it is right after connect(2) was called: the other side, if it is on this machine, may accept the
	// connection a moment before. A client address that is not known while there are sockets between Connecting and
	// Connected may therefore be known a moment later.
	Connected(local netip.AddrPort)

	// Closed is called exactly once, before the socket is closed, or where it could not be connected: then Connected may
	// not have been called. After a reset the system may give the address to another socket before Closed is called.
	Closed()
}

// trackConnecting returns nil where the socket is not tracked.
func trackConnecting(t Tracker, remote net.Addr) TrackedSocket {
	if t == nil {
		return nil
	}
	addr, ok := addrPort(remote)
	if !ok {
		return nil
	}
	return t.Connecting(addr)
}

// trackConnectingUnix returns no name and nil where the socket is not tracked.
func trackConnectingUnix(t Tracker) (name string, s TrackedSocket) {
	if t == nil {
		return "", nil
	}
	return t.ConnectingUnix()
}

func addrPort(addr net.Addr) (netip.AddrPort, bool) {
	a, ok := addr.(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return netip.AddrPort{}, false
	}
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), true
}

// attemptFunc is Config.Attempt.
type attemptFunc func(addr net.Addr, took time.Duration, err error)

// report calls the function unless it is nil, or the error says nothing about the upstream.
func (f attemptFunc) report(addr net.Addr, took time.Duration, err error) {
	if f != nil && !isOurs(err) {
		f(addr, took, err)
	}
}

// isOurs reports whether an attempt has failed because of this system, or because the relay was closed.
func isOurs(err error) bool {
	if err == nil {
		return false
	}
	for _, errno := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ENOSPC, syscall.EADDRNOTAVAIL,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	var local *LocalError
	return errors.Is(err, context.Canceled) || errors.Is(err, net.ErrClosed) || errors.As(err, &local)
}
