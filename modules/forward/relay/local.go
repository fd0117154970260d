package relay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
)

// Local is what sockets that lead to upstreams need of this system. Many relays share one, which [NewLocal] makes. Nil is one without
// source addresses, of whose failures nobody hears.
type Local struct {
	v4, v6 []netip.Addr
	failed func(*LocalError)
	turn   atomic.Uint32
}

// NewLocal returns a Local whose sockets connect from these addresses, in turn; without any the system chooses. A TCP socket takes a
// port that no other connection to the same upstream has, so one address is enough for as many connections to each upstream as there are ports. For
// UDP it is enough for as many sessions as there are ports. failed is called when an attempt fails because of this system: it must not
// block, and may be nil.
func NewLocal(sources []netip.Addr, failed func(*LocalError)) *Local {
	l := &Local{failed: failed}
	for _, ip := range sources {
		if ip = ip.Unmap(); ip.Is4() {
			l.v4 = append(l.v4, ip)
		} else {
			l.v6 = append(l.v6, ip)
		}
	}
	return l
}

// LocalError is why this system could not connect a socket, whatever the upstream is.
type LocalError struct {
	// Source is the source address that was to be used. It is not valid where the system was to choose one.
	Source netip.Addr
	// NoPort: no port is free.
	NoPort bool
	Err    error
}

func (e *LocalError) Error() string {
	from := ""
	if e.Source.IsValid() {
		from = fmt.Sprintf(" from source %q", e.Source)
	}
	if e.NoPort {
		return fmt.Sprintf("no port is free to connect%s, net.ipv4.ip_local_port_range is used up: %v", from, e.Err)
	}
	return fmt.Sprintf("can't connect%s: %v", from, e.Err)
}

// Unwrap returns the system's error.
func (e *LocalError) Unwrap() error { return e.Err }

// connect calls try with the source addresses for an upstream, until it returns another error than a [*LocalError].
func (l *Local) connect(to net.Addr, try func(source netip.Addr) error) (err error) {
	sources, chosen := l.sourcesFor(to)
	switch {
	case chosen:
		return l.report(try(netip.Addr{}))
	case len(sources) == 0:
		return l.report(&LocalError{Err: errNoSource})
	}
	first := l.turn.Add(1)
	for i := range uint32(len(sources)) {
		if err = try(sources[(first+i)%uint32(len(sources))]); err == nil {
			return nil
		}
		switch local := (*LocalError)(nil); {
		case !errors.As(err, &local):
			return err
		case !local.NoPort: // where another source has one, nothing is missing
			_ = l.report(err)
		}
	}
	if isNoPort(err) {
		_ = l.report(err)
	}
	return err
}

// fixed reports whether there are source addresses.
func (l *Local) fixed() bool { return l != nil && len(l.v4)+len(l.v6) > 0 }

var errNoSource = errors.New("no source address is of the upstream's family")

// sourcesFor returns the source addresses of an upstream's family, or that the system chooses one.
func (l *Local) sourcesFor(to net.Addr) (sources []netip.Addr, chosen bool) {
	if !l.fixed() {
		return nil, true
	}
	addr, ok := addrPort(to)
	switch {
	case !ok: // a unix socket
		return nil, true
	case addr.Addr().Is4():
		return l.v4, false
	default:
		return l.v6, false
	}
}

// report tells of an error that is due to this system.
func (l *Local) report(err error) error {
	if err == nil {
		return nil
	}
	var local *LocalError
	if l != nil && l.failed != nil && errors.As(err, &local) {
		l.failed(local)
	}
	return err
}

// localError returns a [*LocalError] where a call, "bind" or "connect", has failed because of this system, and the system's error else.
// Where all ports are in use connect(2) says so with EAGAIN for UDP, and with EADDRNOTAVAIL for TCP (ip(7), tcp(7)); bind(2) with EADDRINUSE.
func localError(call string, errno syscall.Errno, datagrams bool, source netip.Addr) error {
	var noPort bool
	switch {
	case call == "bind":
		noPort = errno == syscall.EADDRINUSE
	case call != "connect":
		return errno
	case datagrams && errno == syscall.EAGAIN, !datagrams && errno == syscall.EADDRNOTAVAIL:
		noPort = true
	default:
		return errno
	}
	return &LocalError{Source: source, NoPort: noPort, Err: os.NewSyscallError(call, errno)}
}

// localErrorOf is localError for an error of the net package.
func localErrorOf(err error, datagrams bool, source netip.Addr) error {
	var call *os.SyscallError
	if !errors.As(err, &call) {
		return err
	}
	var local *LocalError
	if e := localError(call.Syscall, errnoOf(err), datagrams, source); errors.As(e, &local) {
		return e
	}
	return err
}

// isNoPort reports whether no port was free.
func isNoPort(err error) bool {
	if err == nil {
		return false
	}
	var local *LocalError
	return errors.As(err, &local) && local.NoPort
}
