package network

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// idleTimeout ends a session that nobody has attached to, when no datagram has passed either way for so
// long and its handler waits for one.
const idleTimeout = time.Minute

// epoch is what sessions count time from, by a clock that steps of the system's do not touch.
var epoch = time.Now()

// PacketSession is what one client and one address of a gate+udp listener say to each other. As a net.Conn
// it has one datagram per Read and Write; a relay attaches to it instead.
//
// Of its mutexes and those of its socket, this one's comes first.
type PacketSession struct {
	socket       *packetSocket
	tuple        fiveTuple
	proxied      *proxied // what a load balancer says; nil where none has passed the session on
	path         replyPath
	listenerAddr string
	counts       *listeners.Datagrams
	remote       *net.UDPAddr
	local        *net.UDPAddr

	entry   entry // belongs to the socket
	replied atomic.Bool
	active  atomic.Int64 // when a datagram passed last, as long as nobody is attached; in ns since epoch, see toClient
	ended   atomic.Bool  // by whoever
	closing atomic.Bool  // by Close

	mu      sync.Mutex
	inbox   *inbox // nil once somebody is attached, or the session gone
	receive func(b []byte) (taken bool)
	closed  func(reason string)
	gone    func(reason string)
	why     string      // the listener has ended the session
	relay   interface { // nil where nobody is attached who answers
		Unanswered(within time.Duration) bool
	}
}

// toClient is set in active where the datagram was sent to the client, and not where it came from it: the nanosecond is not missed.
const toClient = 1

// Attach hands the datagrams to receive instead of Read: those that wait first, together with those that
// Read has given before. It reports false, and does nothing, where the session is gone or Read has given
// more than matchers may read.
//
// receive is called with one datagram at a time, in order: from Attach before it returns, and then from the
// receive loop, which serves all clients. It must not block. b is its own only during the call. Once Close
// has returned it is not called any more. It must therefore neither call Close, nor wait for somebody who does. Where it
// reports false the session is to be closed soon, and b begins another one.
//
// closed is called at most once, when the listener ends the session: to make room for others ("evicted"), or
// because no config has the listener any more ("drain"). It must not block, but may call Close; where both
// come together it may be called during Close, or after. The session is still to be closed then.
func (c *PacketSession) Attach(receive func(b []byte) (taken bool), closed func(reason string)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inbox == nil || c.inbox.forgot {
		return false
	}
	in := c.takeInbox()
	for _, b := range in.datagrams {
		_ = receive(b) // who has just attached takes them
	}
	c.receive, c.closed = receive, closed
	return true
}

// ServedBy says who is attached. Before the listener ends a session whose client waits for an answer, it waits as well.
func (c *PacketSession) ServedBy(relay interface {
	Unanswered(within time.Duration) bool
},
) {
	c.mu.Lock()
	c.relay = relay
	c.mu.Unlock()
}

// unanswered reports whether the client waits for an answer, which it does for maxAnswer at most.
func (c *PacketSession) unanswered() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended.Load():
		return false
	case c.relay != nil:
		return c.relay.Unanswered(maxAnswer)
	case c.inbox == nil:
		return false // what comes is thrown away
	}
	active := c.active.Load()
	return active&toClient == 0 && time.Since(epoch)-time.Duration(active) < maxAnswer
}

// OnEnd has f called with the reason, which is one of Attach's, when the listener ends the session before somebody attaches to it; nil
// ends that. f must not block. Where the session has ended it is called at once.
func (c *PacketSession) OnEnd(f func(reason string)) {
	c.mu.Lock()
	ended, why := c.ended.Load(), c.why
	if !ended {
		c.gone = f
	}
	c.mu.Unlock()
	if ended && f != nil {
		f(why)
	}
}

// takeInbox takes the inbox away, so that nothing can be read or put into it any more.
func (c *PacketSession) takeInbox() *inbox {
	in := c.inbox
	c.inbox = nil
	c.socket.held.Add(-int64(in.held))
	if in.timer != nil {
		in.timer.Stop()
	}
	in.arrived.Broadcast()
	return in
}

// Answered says that a reply is about to be sent other than by Write. It is to be called before the first one: the
// client may say something to it at once.
func (c *PacketSession) Answered() {
	if !c.replied.Load() && !c.replied.Swap(true) {
		c.socket.answered(c)
	}
}

// MakeRoom ends a session that is worth less than this one, as a new session does at the cap: one of this listener if it has any, else one of
// another listener. It is for what sessions of all listeners share, and that has run out.
func (c *PacketSession) MakeRoom() {
	for t := unanswered; t < established; t++ {
		if c.socket.evict(t, c) {
			return
		}
		found := false
		sockets.Each(func(_ socketKey, s shared) bool {
			other, ok := s.(*packetSocket)
			found = ok && other != c.socket && other.evict(t, c)
			return !found
		})
		if found {
			return
		}
	}
}

// outcome is what has become of a datagram.
type outcome int

const (
	delivered outcome = iota
	full              // dropped, because too much is waiting
	gone              // left to the session that comes after
)

// deliver hands a datagram over.
func (c *PacketSession) deliver(b []byte) outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.receive != nil:
		if !c.receive(b) {
			c.socket.forget(c)
			return gone
		}
	case c.inbox == nil:
		return gone
	case !c.inbox.put(b, c.socket.held.Load()+int64(len(b)) > maxHeldBytes):
		return full
	default:
		c.socket.held.Add(int64(len(b)))
		c.active.Store(int64(time.Since(epoch)) &^ toClient)
	}
	return delivered
}

// Read gives the next datagram, as far as b takes it, and what is left of it the next time. It returns
// io.EOF once the session is gone.
func (c *PacketSession) Read(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.inbox != nil {
		in := c.inbox
		now := time.Now()
		if !in.deadline.IsZero() && !now.Before(in.deadline) {
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		}
		if !in.empty() {
			held := in.held
			n := in.read(b)
			c.socket.held.Add(int64(in.held - held))
			return n, nil
		}
		idle := epoch.Add(time.Duration(c.active.Load()) + idleTimeout)
		if !now.Before(idle) {
			c.socket.forget(c)
			c.leave()
			break
		}
		if !in.deadline.IsZero() && in.deadline.Before(idle) {
			idle = in.deadline
		}
		c.wakeAfter(in, idle.Sub(now))
		in.arrived.Wait()
	}
	return 0, io.EOF
}

func (c *PacketSession) wakeAfter(in *inbox, d time.Duration) {
	if in.timer != nil {
		in.timer.Reset(d)
		return
	}
	in.timer = time.AfterFunc(d, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		in.arrived.Broadcast()
	})
}

// Write sends b as one datagram to the client. It does not wait: where the socket takes no more, the
// datagram is dropped and counted, as it may be anywhere on its way.
func (c *PacketSession) Write(b []byte) (int, error) {
	if c.ended.Load() {
		return 0, c.opError("write", net.ErrClosed)
	}
	c.Answered()
	c.counts.Down.Add(1)
	sent, err := c.socket.listener.send(&c.path, b)
	if !sent {
		c.counts.Down.Add(-1)
	}
	if err != nil {
		return 0, c.opError("write", err)
	}
	c.active.Store(int64(time.Since(epoch)) | toClient)
	if !sent {
		c.counts.Dropped[listeners.DropSendFailed].Add(1)
	}
	return len(b), nil
}

func (c *PacketSession) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: c.local, Addr: c.remote, Err: err}
}

// end ends the session on behalf of the listener. Who has the session still has to close it.
func (c *PacketSession) end(reason string) {
	c.mu.Lock()
	closed, gone := c.closed, c.gone
	c.leave()
	c.why = reason
	c.mu.Unlock()
	if closed != nil {
		closed(reason)
	}
	if gone != nil {
		gone(reason)
	}
}

// leave makes the session deliver nothing more. It has left the table before.
func (c *PacketSession) leave() {
	c.ended.Store(true)
	c.receive, c.closed, c.gone = nil, nil, nil
	if c.inbox != nil {
		c.takeInbox()
	}
}

// Close ends the session: the next datagram of the client starts another one.
func (c *PacketSession) Close() error {
	if c.closing.Swap(true) {
		return c.opError("close", net.ErrClosed)
	}
	c.socket.forget(c)
	c.mu.Lock()
	c.leave()
	c.mu.Unlock()
	c.socket.release(true)
	return nil
}

// ListenerAddr returns the address of the listener as it is configured, such as ":53".
func (c *PacketSession) ListenerAddr() string { return c.listenerAddr }

// LocalAddr returns the address that the client has sent to, where the system tells.
func (c *PacketSession) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the client's address.
func (c *PacketSession) RemoteAddr() net.Addr { return c.remote }

func (c *PacketSession) client() netip.AddrPort { return c.remote.AddrPort() }

// SetDeadline is SetReadDeadline: Write never waits.
func (c *PacketSession) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline sets the deadline of Read.
func (c *PacketSession) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inbox != nil {
		c.inbox.deadline = t
		c.inbox.arrived.Broadcast()
	}
	return nil
}

// SetWriteDeadline does nothing: Write never waits.
func (c *PacketSession) SetWriteDeadline(time.Time) error { return nil }

// PacketConn is a session as gate+udp's listener gives it to a server, which closes it when its handlers
// have returned. A handler that wants to keep the session detaches it.
type PacketConn struct {
	net.Conn // the session
	session  *PacketSession
	given    atomic.Bool // detached or closed
	unrouted
}

func (c *PacketSession) forServer(watcher *session.Scope) net.Conn {
	conn := &PacketConn{Conn: c, session: c}
	conn.watch(watcher)
	return conn
}

// Read reads a datagram.
func (c *PacketConn) Read(b []byte) (int, error) {
	n, err := c.session.Read(b)
	c.read.Add(int64(n))
	return n, err
}

// Write sends a datagram to the client.
func (c *PacketConn) Write(b []byte) (int, error) {
	c.Taken()
	return c.session.Write(b)
}

// Detach gives the session away, which is a [*PacketSession]: it must be closed by whoever has it, and
// closing the connection does nothing any more. It reports false where the connection was closed before.
func (c *PacketConn) Detach() (packetSession net.Conn, ok bool) {
	return c.session, !c.given.Swap(true)
}

// OnEnd is [PacketSession.OnEnd].
func (c *PacketConn) OnEnd(f func(reason string)) { c.session.OnEnd(f) }

// Close ends the session, unless it was detached.
func (c *PacketConn) Close() error {
	if c.given.Swap(true) {
		return net.ErrClosed
	}
	err := c.session.Close()
	c.closed(c, "udp", c.session.listenerAddr, c.session.client())
	return err
}

// ListenerAddr returns the address of the listener as it is configured, such as ":53". It fits a metrics
// label: unlike LocalAddr, it doesn't depend on what the client does.
func (c *PacketConn) ListenerAddr() string { return c.session.listenerAddr }

// Interface guards
var (
	_ net.Conn = (*PacketConn)(nil)
	_ net.Conn = (*PacketSession)(nil)
)
