package relay

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// socket is a stream socket without a wrapper: *net.TCPConn, *net.UnixConn and what embeds them.
type socket interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// end is one of the two connections of a relay.
type end struct {
	conn   net.Conn
	unwrap func(net.Conn) net.Conn // Config.Unwrap, never nil
	raw    syscall.RawConn         // nil where conn is a wrapper such as TLS, which has to be read and written itself
	sock   socket                  // the socket at the bottom of the wrappers, nil where there is none

	beforeClose func() // is called before conn is closed, perhaps again

	// gone: the peer has reset the connection. closed: the relay has closed it.
	gone, closed atomic.Bool

	// finished: the relay sends a FIN, or has sent it.
	finished atomic.Bool
}

func newEnd(conn net.Conn, unwrap func(net.Conn) net.Conn) *end {
	if unwrap == nil {
		unwrap = func(net.Conn) net.Conn { return nil }
	}
	e := &end{conn: conn, unwrap: unwrap, beforeClose: func() {}}
	if s, ok := conn.(socket); ok {
		if raw, err := s.SyscallConn(); err == nil {
			e.raw = raw
		}
	}
	for c := conn; c != nil && e.sock == nil; c = e.unwrap(c) {
		e.sock, _ = c.(socket)
	}
	return e
}

// closeWrite sends a FIN. The outermost wrapper that can end its own stream does that (TLS sends a close_notify).
func (e *end) closeWrite() {
	e.finished.Store(true)
	for c := e.conn; c != nil; c = e.unwrap(c) {
		if w, ok := c.(interface{ CloseWrite() error }); ok {
			_ = w.CloseWrite()
			return
		}
	}
}

// keepAlive sets how a peer is noticed that has gone without closing the connection.
func (e *end) keepAlive(c net.KeepAliveConfig) {
	tcp, ok := e.sock.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	})
	switch {
	case ok:
		_ = tcp.SetKeepAliveConfig(c)
	case e.sock != nil: // a socket of a network that does not use the net package
		if raw, err := e.sock.SyscallConn(); err == nil {
			keepAliveRaw(raw, c)
		}
	}
}

// close closes the connection in order. It may block while a wrapper sends its last message.
func (e *end) close() {
	e.closed.Store(true)
	e.beforeClose()
	_ = e.conn.Close()
}

// reset closes the connection with a RST, without what is still in the send queue.
func (e *end) reset() {
	e.closed.Store(true)
	e.beforeClose()
	if e.sock != nil {
		if tcp, ok := e.sock.(interface{ SetLinger(int) error }); ok {
			_ = tcp.SetLinger(0)
		}
		_ = e.sock.Close() // first, so that a wrapper's last message is not sent
	}
	_ = e.conn.Close()
}

// wasReset reports whether the end that was read is due to a reset, not to a FIN. The kernel reports the error only once, to a
// read or a write, and reads after it return the end. But a FIN closes one direction, a reset both.
func (e *end) wasReset() bool {
	if e.gone.Load() {
		return true
	}
	tcp, ok := e.sock.(interface {
		socket
		SetLinger(int) error
	})
	if !ok {
		return false // a unix socket that is closed in order is closed in both directions
	}
	raw, err := tcp.SyscallConn()
	return err == nil && hungUp(raw) && !e.finished.Load()
}

// How often drain looks at the send queue: from the time that a peer on the same machine takes, to that of one that
// reads slowly.
const (
	drainPollMin = 500 * time.Microsecond
	drainPollMax = 50 * time.Millisecond
)

// drain waits until the peer has acknowledged everything, because a RST discards what is still in the send queue. It
// gives up once stop reports true.
func (e *end) drain(stop func() bool) {
	if e.sock == nil {
		return
	}
	raw, err := e.sock.SyscallConn()
	if err != nil {
		return
	}
	for wait := drainPollMin; queued(raw) > 0 && !stop(); wait = min(wait*2, drainPollMax) {
		time.Sleep(wait)
	}
}

// isFIN reports whether err is the orderly end of a stream. Many TLS peers send no close_notify, which is no error here.
func isFIN(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
