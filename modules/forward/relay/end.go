package relay

import (
	"errors"
	"io"
	"net"
	"reflect"
	"sync/atomic"
	"syscall"
	"time"
)

// socket is what the relay needs of a raw stream socket: *net.TCPConn, *net.UnixConn and what embeds them.
type socket interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// end is one of the two connections of a relay.
type end struct {
	conn net.Conn
	raw  syscall.RawConn // nil where conn is wrapped: it must then be read and written as a net.Conn
	sock socket          // the socket at the bottom, nil where there is none

	// gone is set when the peer has reset the connection, closed when the relay has closed it.
	gone, closed atomic.Bool

	// finished is set before a FIN is sent.
	finished atomic.Bool
}

func newEnd(conn net.Conn) *end {
	e := &end{conn: conn}
	if s, ok := conn.(socket); ok {
		if raw, err := s.SyscallConn(); err == nil {
			e.raw = raw
		}
	}
	for c := conn; c != nil && e.sock == nil; c = unwrap(c) {
		e.sock, _ = c.(socket)
	}
	return e
}

// unwrap returns the connection that c wraps, nil where none can be found: by the methods that
// crypto/tls and go-proxyproto have for it, else the field of a struct that embeds a net.Conn.
func unwrap(c net.Conn) net.Conn {
	switch w := c.(type) {
	case interface{ NetConn() net.Conn }:
		return w.NetConn()
	case interface{ Raw() net.Conn }:
		return w.Raw()
	}
	v := reflect.Indirect(reflect.ValueOf(c))
	if v.Kind() != reflect.Struct {
		return nil
	}
	field, ok := v.Type().FieldByName("Conn")
	if !ok || !field.Anonymous {
		return nil
	}
	inner, _ := v.FieldByIndex(field.Index).Interface().(net.Conn)
	return inner
}

// closeWrite passes a FIN on. A wrapper that can finish its own stream (TLS has close_notify) does;
// one that can't leaves it to what it wraps.
func (e *end) closeWrite() {
	e.finished.Store(true)
	for c := e.conn; c != nil; c = unwrap(c) {
		if w, ok := c.(interface{ CloseWrite() error }); ok {
			_ = w.CloseWrite()
			return
		}
	}
}

// keepAlive sets up how a peer that has gone without a word is found out.
func (e *end) keepAlive(c net.KeepAliveConfig) {
	if tcp, ok := e.sock.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok {
		_ = tcp.SetKeepAliveConfig(c)
	}
}

// close closes the connection in order. A wrapper's farewell may wait for its peer.
func (e *end) close() {
	e.closed.Store(true)
	_ = e.conn.Close()
}

// reset closes the connection with a RST, without what is still in the send queue.
func (e *end) reset() {
	e.closed.Store(true)
	if e.sock != nil {
		if tcp, ok := e.sock.(interface{ SetLinger(int) error }); ok {
			_ = tcp.SetLinger(0)
		}
		_ = e.sock.Close() // below a wrapper's farewell
	}
	_ = e.conn.Close()
}

// wasReset tells an end that was read because of a reset from a FIN. The error is given only once, to a
// read or a write, and a read then finds nothing but the end; but a FIN closes one direction, a reset both.
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

// How often the send queue is looked at while it empties, from a wait for a peer on the same
// machine to one that reads slowly.
const (
	drainPollMin = 500 * time.Microsecond
	drainPollMax = 50 * time.Millisecond
)

// drain waits until the peer has everything that was sent to it, because a RST discards what is
// still queued. It gives up when stop says so.
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

// isFIN tells the orderly end of a stream. TLS peers often leave out the close_notify.
func isFIN(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
