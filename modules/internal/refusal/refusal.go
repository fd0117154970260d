// Package refusal ends connections that a handler has refused, in the way that an option such as `on_deny` says.
package refusal

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// Action says what happens to a refused connection.
type Action string

// The actions.
const (
	Close   Action = "close"
	Reset   Action = "reset"   // the client gets a reset
	Drop    Action = "drop"    // the client gets nothing, if CanDrop; else a reset
	Tarpit  Action = "tarpit"  // the connection is left open for a while, without an answer
	Respond Action = "respond" // the client is sent a text
)

// Way is an action with its values.
type Way struct {
	Action   Action
	Text     []byte        // of Respond
	Duration time.Duration // of Tarpit
}

// Held is a connection that was refused and is still open, by Tarpit or Respond, or because its datagrams are muted.
type Held struct {
	session *session.Session
	end     session.End
	conn    net.Conn
	among   *atomic.Int64 // counts the held connections of its kind
	done    chan struct{}
	once    sync.Once
}

// maxHeld bounds the held connections of all handlers together. Further ones are closed at once, so that refused clients
// do not take the descriptors that others need.
var maxHeld = min(10_000, descriptors.Limit()/4)

var heldNow, mutedNow atomic.Int64

// Do refuses the connection of a session. If it returns nil, the connection is closed and the session has ended. Otherwise
// both happen later, and Wait returns when they have. Over UDP only Respond sends anything.
func Do(way Way, a *session.Arrival, s *session.Session, end session.End) *Held {
	conn := a.Accepted()
	if gate.Datagrams(a.Network) {
		if way.Action == Respond {
			_, _ = conn.Write(way.Text)
		}
		mute(s, end, conn)
		return nil
	}
	switch way.Action {
	case Tarpit:
		if h := hold(s, end, conn, way.Duration, &heldNow, maxHeld); h != nil {
			return h
		}
	case Respond:
		if h := hold(s, end, conn, lingerTimeout, &heldNow, maxHeld); h != nil {
			go h.respond(a.Conn, way.Text)
			return h
		}
	case Reset:
		reset(conn)
	case Drop:
		if !vanish(conn) {
			reset(conn)
		}
	}
	_ = conn.Close()
	s.End(end)
	return nil
}

// reset makes the kernel send a reset when the connection is closed.
func reset(conn net.Conn) {
	if tcp, ok := conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = tcp.SetLinger(0)
	}
}

// muteTime is how long the datagrams of a refused client are dropped without a look at the rules. A session for each datagram
// would cost too much processor time.
const muteTime = time.Second

// maxMuted bounds the muted clients, because each takes one of the sessions of its listener.
const maxMuted = 1000

// muter is a UDP session that passes its datagrams to a callback.
type muter interface {
	Attach(receive func(b []byte) (taken bool), closed func(reason string)) bool
}

// mute drops the datagrams of a client for muteTime if its network can do that, and closes the session otherwise.
func mute(s *session.Session, end session.End, conn net.Conn) {
	if detacher, ok := conn.(interface{ Detach() (net.Conn, bool) }); ok { // else layer4 would close it
		if detached, ok := detacher.Detach(); ok {
			conn = detached
		}
	}
	if m, ok := conn.(muter); ok {
		if h := hold(s, end, conn, muteTime, &mutedNow, maxMuted); h != nil {
			if !m.Attach(func([]byte) bool { return true }, h.Close) {
				h.release()
			}
			return
		}
	}
	_ = conn.Close()
	s.End(end)
}

// lingerTimeout is how long a client may take to read the text and close.
const lingerTimeout = time.Second

// maxLinger is how much a client may send meanwhile.
const maxLinger = 64 << 10

// hold keeps the connection open for a duration. It returns nil if `most` connections are held already.
func hold(s *session.Session, end session.End, conn net.Conn, duration time.Duration, among *atomic.Int64, most int) *Held {
	if among.Add(1) > int64(most) {
		among.Add(-1)
		return nil
	}
	h := &Held{session: s, end: end, conn: conn, among: among, done: make(chan struct{})}
	time.AfterFunc(duration, h.release)
	s.SetMover(h)
	return h
}

// release closes the connection.
func (h *Held) release() {
	h.once.Do(func() {
		_ = h.conn.Close()
		h.among.Add(-1)
		h.session.End(h.end)
		close(h.done)
	})
}

// Wait returns when the connection is closed. A nil Held is closed already.
func (h *Held) Wait() {
	if h != nil {
		<-h.done
	}
}

// Close releases the connection before its time. It implements session.Mover.
func (h *Held) Close(string) { go h.release() }

// LastActive is when the session began.
func (h *Held) LastActive() time.Time { return h.session.Begun() }

// Refuses implements session.Refusing.
func (h *Held) Refuses() {}

// Moved is always 0: what a refused client sends and gets does not count as traffic.
func (h *Held) Moved() (up, down int64) { return 0, 0 }

// respond sends the text and reads until the client closes. If a connection is closed while bytes are unread, the kernel
// resets it, and the client may never see the text.
func (h *Held) respond(conn net.Conn, text []byte) {
	defer h.release()
	_ = conn.SetDeadline(time.Now().Add(lingerTimeout))
	if _, err := conn.Write(text); err != nil {
		return
	}
	closer, ok := h.conn.(interface{ CloseWrite() error })
	if !ok || closer.CloseWrite() != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(conn, maxLinger))
}

// Interface guards
var _ session.Refusing = (*Held)(nil)
