package network

import (
	"context"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// socket is the listening socket of an address for TCP.
type socket struct {
	lineage
	listener *listener
	accept   func() (*Conn, error) // of the listener; tests make it fail
	sessions descriptors.Listener

	rest // belongs to the active generation
}

func openSocket(ctx context.Context, ep endpoint, cfg net.ListenConfig) (*socket, error) {
	cfg = inherit(cfg)
	cfg.SetMultipathTCP(false) // a plain TCP socket is what the kernel splices without copying
	ln, err := listenSocket(ctx, cfg, ep)
	if err != nil {
		return nil, err
	}
	descriptors.Opened(1)
	s := &socket{listener: ln, accept: ln.accept}
	s.wake = func() { _ = ln.SetDeadline(time.Unix(1, 0)) } // the listener is open, so this can't fail
	return s, nil
}

// Addr returns the address that the socket is bound to.
func (s *socket) Addr() net.Addr { return s.listener.Addr() }

// Destruct closes the socket when its last generation has closed.
func (s *socket) Destruct() error {
	s.destruct()
	descriptors.Opened(-1)
	return s.listener.Close()
}

// acceptFor waits for a connection on behalf of g, the active generation, until g is closed. A connection that
// arrives together with the close is g's: it is returned, not dropped.
func (s *socket) acceptFor(g *generation) (accepted, error) {
	for failures := 0; s.ready(g); failures++ {
		conn, err := s.accept()
		if err == nil {
			if s.admit(g, conn) {
				return conn, nil
			}
			failures = -1
			continue
		}
		s.pause(g.closed, failures, "accepting a connection failed, trying again",
			zap.String("network", g.Name), zap.String("address", g.listener), zap.Error(err))
	}
	if s.isHidden() {
		for conn := s.listener.acceptWaiting(); conn != nil; conn = s.listener.acceptWaiting() {
			if s.admit(g, conn) {
				return conn, nil
			}
		}
	}
	return nil, net.ErrClosed
}

// admit gives the connection its place in the count, or refuses it.
func (s *socket) admit(g *generation, conn *Conn) bool {
	conn.listenerAddr = g.listener
	if !s.sessions.Take(g.settings.maxSessions, g.settings.reserve) {
		g.refuse(conn)
		return false
	}
	conn.descriptors = &s.sessions
	return true
}

func (s *socket) sharePort(on bool) error { return s.listener.sharePort(on) }

// hide leaves what arrives from now on to a socket that overlaps. The accept queue is served before the active generation ends.
func (s *socket) hide() bool { return s.listener.hide() }

// settle does nothing: acceptFor serves the accept queue of a hidden socket.
func (*socket) settle(time.Time) {}

// ready tells whether g is not closed. Then it takes back the interruption of an older generation, which
// would keep g from accepting.
func (s *socket) ready(g *generation) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.isClosed() {
		return false
	}
	_ = s.listener.SetDeadline(time.Time{}) // the listener is open, so this can't fail
	return true
}

// refuse resets a connection for which there is no session left. Left in the accept queue it would wait there with all that
// come after it, and no client would hear why.
func (g *generation) refuse(conn *Conn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
	if g.scope == nil {
		return
	}
	a := session.Arrival{Conn: conn, Network: g.Transport, Listener: g.listener, Client: conn.client()}
	a.Begin(g.scope).End(session.End{Status: session.StatusLimited, Reason: session.ReasonSessionLimit})
}
