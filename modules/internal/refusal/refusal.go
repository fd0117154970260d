// Package refusal ends connections that are not wanted, in the ways that an option may ask for.
package refusal

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// Action is what happens to the connection.
type Action string

// The actions.
const (
	Close   Action = "close"
	Reset   Action = "reset"   // the client is told that the connection is no more
	Drop    Action = "drop"    // the client is told nothing, where CanDrop
	Tarpit  Action = "tarpit"  // the connection is left open for a while, without an answer
	Respond Action = "respond" // the client is sent a text
)

// Way is how a connection is refused.
type Way struct {
	Action   Action
	Text     []byte        // of Respond
	Duration time.Duration // of Tarpit
}

// Held is a connection that is refused and still open.
type Held struct {
	session *session.Session
	end     session.End
	conn    net.Conn
	among   *atomic.Int64 // those of its kind
	done    chan struct{}
	once    sync.Once
}

// maxHeld bounds the connections that are refused and still open, of all handlers together. Beyond it, those that come
// are closed at once: they must not take the descriptors away from the clients that are wanted.
var maxHeld = min(10_000, openFileLimit()/4)

var heldNow, mutedNow atomic.Int64

// Do refuses the connection of a session, and ends that. The connection is closed then, or will be: Wait tells when.
//
// Over UDP only Respond sends anything.
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

// reset has the client told that its connection is no more, when it is closed.
func reset(conn net.Conn) {
	if tcp, ok := conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = tcp.SetLinger(0)
	}
}

// muteTime is how long the datagrams of a client that is refused are thrown away unseen: a session for each one would give it
// more of the processor than it is due.
const muteTime = time.Second

// maxMuted bounds those whose datagrams are thrown away, because each has a session of its listener.
const maxMuted = 1000

// muter is a session of datagrams that can be told to hand them over.
type muter interface {
	Attach(receive func(b []byte) (taken bool), closed func(reason string)) bool
}

// mute throws the datagrams of a client away, for a while where the network can do that by itself.
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

// lingerTimeout bounds the wait for a client to take the text and close.
const lingerTimeout = time.Second

// maxLinger is how much a client may send meanwhile.
const maxLinger = 64 << 10

// hold keeps the connection open for so long. It returns nil where as many are as may be.
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

// Wait returns when the connection is closed.
func (h *Held) Wait() {
	if h != nil {
		<-h.done
	}
}

// Close ends the waiting.
func (h *Held) Close(string) { go h.release() }

// LastActive is when the connection began.
func (h *Held) LastActive() time.Time { return h.session.Start }

// Moved is nothing: what is sent to a client that is refused is not traffic.
func (h *Held) Moved() (up, down int64) { return 0, 0 }

// respond sends the text, and reads on until the client closes: a connection that is closed with something unread is
// reset, and the client may never see the text.
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
