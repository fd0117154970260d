package network

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// How long accepting rests after an error that did not go away: from too short for a client to notice, to
// long enough to leave the processor alone, and still short against the two seconds within which a port has
// to answer again when there are descriptors.
const (
	minPause = 5 * time.Millisecond
	maxPause = 100 * time.Millisecond

	logInterval = time.Second // of one socket: an attack must not fill the log
)

// socket is the listening socket of an address, with the generations that share it. The oldest generation
// has the turn: it alone accepts, until it is removed.
type socket struct {
	listener *listener
	accept   func() (*Conn, error) // of the listener; tests make it fail

	mu          sync.Mutex
	generations []*generation // oldest first

	lastLogged time.Time // belongs to the generation that has the turn
}

func openSocket(ctx context.Context, addr *net.TCPAddr, cfg net.ListenConfig) (*socket, error) {
	cfg = inherit(cfg)
	cfg.SetMultipathTCP(false) // a plain TCP socket is what the kernel splices without copying
	ln, err := listenSocket(ctx, cfg, addr)
	if err != nil {
		return nil, err
	}
	return &socket{listener: ln, accept: ln.accept}, nil
}

// Destruct closes the socket when its last generation has closed.
func (s *socket) Destruct() error { return s.listener.Close() }

// add makes g the youngest generation. If its config has one on this socket already, add returns that one
// instead.
func (s *socket) add(g *generation) *generation {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.generations {
		if g.config != nil && other.config == g.config {
			return other
		}
	}
	s.generations = append(s.generations, g)
	if len(s.generations) == 1 {
		close(g.turn)
	}
	return nil
}

// interrupt closes g, and wakes it if it is in accept.
func (s *socket) interrupt(g *generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(g.closed)
	if s.generations[0] == g {
		_ = s.listener.SetDeadline(time.Unix(1, 0)) // the listener is open, so this can't fail
	}
}

// remove takes g out once it has left accept. If it had the turn, the next one gets it.
func (s *socket) remove(g *generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.generations, g)
	s.generations = slices.Delete(s.generations, i, i+1)
	if i == 0 && len(s.generations) > 0 {
		close(s.generations[0].turn)
	}
}

// acceptFor waits for a connection on behalf of g, which has the turn, until g is closed. A connection that
// arrives together with the close is g's: it is returned, not dropped.
func (s *socket) acceptFor(g *generation) (*Conn, error) {
	for failures := 0; s.ready(g); failures++ {
		conn, err := s.accept()
		if err == nil {
			return conn, nil
		}
		s.pause(g, failures, err)
	}
	return nil, net.ErrClosed
}

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

// pause lets time pass after an error of accept, but not after g is closed. The first error in a row may
// concern a single connection, which has then left the queue: there is no pause. An error that stays means
// that the process or the machine is out of descriptors or memory (EMFILE, ENFILE, ENOBUFS, ENOMEM).
func (s *socket) pause(g *generation, failures int, err error) {
	if failures == 0 || g.isClosed() {
		return
	}
	if now := time.Now(); now.Sub(s.lastLogged) >= logInterval {
		s.lastLogged = now
		caddy.Log().Named("network").Error("accepting a connection failed, trying again",
			zap.String("network", gateTCP), zap.String("address", g.address), zap.Error(err))
	}
	pause := time.NewTimer(min(minPause<<min(failures-1, 10), maxPause))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-g.closed:
	}
}
