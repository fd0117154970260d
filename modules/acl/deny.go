package acl

import (
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// held is a connection that is denied and still open.
type held struct {
	session *session.Session
	conn    net.Conn
	timer   *time.Timer
	count   *atomic.Int64 // of its kind
	done    chan struct{}
	once    sync.Once
}

// maxHeld bounds the connections that are denied and still open, of all handlers together. Beyond it, those that come
// are closed at once: a tarpit must not take the descriptors away from the clients that are wanted.
var maxHeld = min(10_000, openFileLimit()/4)

var heldNow, mutedNow atomic.Int64

// deny does with the connection what on_deny says. The connection is closed then, or will be: wait tells when.
func (h *Handler) deny(a *session.Arrival, r *rule) *held {
	s := a.Begin(h.scope)
	s.SetRule(r.label)
	conn := a.Accepted()
	if strings.HasPrefix(a.Network, "udp") {
		h.denyDatagrams(s, conn)
		return nil
	}
	switch h.reaction.action {
	case onTarpit:
		if held := hold(s, conn, h.reaction.duration, &heldNow, maxHeld); held != nil {
			return held
		}
	case onRespond:
		if held := hold(s, conn, lingerTimeout, &heldNow, maxHeld); held != nil {
			go held.respond(a.Conn, h.reaction.text)
			return held
		}
	case onReset:
		reset(conn)
	case onDrop:
		if !vanish(conn) {
			reset(conn)
		}
	}
	_ = conn.Close()
	end(s)
	return nil
}

// muteTime is how long the datagrams of a client that is denied are thrown away unseen: to judge it again for each one would
// give it more of the processor than it is due. One whose ban is lifted is let in after that time.
const muteTime = time.Second

// maxMuted bounds the clients whose datagrams are thrown away, because each has a session of its listener. Those beyond it
// are judged for each datagram.
const maxMuted = 1000

// muter is a UDP session that can be told to hand its datagrams over; see the package network.
type muter interface {
	Attach(receive func([]byte), closed func(reason string)) bool
}

// denyDatagrams throws a client's datagrams away. Only respond sends anything, and not more than once in muteTime.
func (h *Handler) denyDatagrams(s *session.Session, conn net.Conn) {
	if h.reaction.action == onRespond {
		_, _ = conn.Write(h.reaction.text)
	}
	if detacher, ok := conn.(interface{ Detach() (net.Conn, bool) }); ok { // else layer4 would close it
		if detached, ok := detacher.Detach(); ok {
			conn = detached
		}
	}
	if m, ok := conn.(muter); ok {
		if held := hold(s, conn, muteTime, &mutedNow, maxMuted); held != nil {
			if !m.Attach(func([]byte) {}, held.Close) {
				held.release()
			}
			return
		}
	}
	_ = conn.Close()
	end(s)
}

func end(s *session.Session) {
	s.End(session.End{Status: session.StatusDenied, Reason: session.ReasonDenied})
}

// reset has the client told that its connection is no more, when it is closed.
func reset(conn net.Conn) {
	if tcp, ok := conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = tcp.SetLinger(0)
	}
}

// hold keeps the connection open for so long. It returns nil where as many are as may be.
func hold(s *session.Session, conn net.Conn, duration time.Duration, count *atomic.Int64, most int) *held {
	if count.Add(1) > int64(most) {
		count.Add(-1)
		return nil
	}
	h := &held{session: s, conn: conn, count: count, done: make(chan struct{})}
	h.timer = time.AfterFunc(duration, h.release)
	s.SetMover(h)
	return h
}

// release closes the connection.
func (h *held) release() {
	h.once.Do(func() {
		_ = h.conn.Close()
		h.count.Add(-1)
		end(h.session)
		close(h.done)
	})
}

// wait returns when the connection is closed.
func (h *held) wait() {
	if h != nil {
		<-h.done
	}
}

// Close, LastActive and Moved make it a [session.Mover].
func (h *held) Close(string) {
	if h.timer.Stop() {
		go h.release() // the caller must not be made to wait for a log
	}
}

// LastActive is when the connection began.
func (h *held) LastActive() time.Time { return h.session.Start }

// Moved is nothing: what is sent to a client that is denied is not traffic.
func (h *held) Moved() (up, down int64) { return 0, 0 }

// lingerTimeout bounds the wait for a client to take the text and close.
const lingerTimeout = time.Second

// maxLinger is how much a client may send meanwhile.
const maxLinger = 64 << 10

// respond sends the text, and reads on until the client closes: a connection that is closed with something unread is
// reset, and the client may never see the text.
func (h *held) respond(conn net.Conn, text []byte) {
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
