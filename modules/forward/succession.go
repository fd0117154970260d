package forward

import (
	"net"
	"sync"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// lines of all configs.
var lines = state.NewPool[lineKey, *line]()

type lineKey struct {
	listener  string // listen address as configured, which may be a range
	canonical string // JSON of the handlers
}

// line keeps the UDP sessions of one listener over reloads, for as long as each new config has an identical handler for it.
// They end when a config comes that has not: the next datagram of a client then begins a session of the new config.
type line struct {
	mu       sync.Mutex
	sessions map[*session.Session]struct{} // nil once the line has ended
}

func newLine() *line { return &line{sessions: make(map[*session.Session]struct{})} }

// add reports false if the line has ended.
func (l *line) add(s *session.Session) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions == nil {
		return false
	}
	l.sessions[s] = struct{}{}
	return true
}

func (l *line) remove(s *session.Session) {
	l.mu.Lock()
	delete(l.sessions, s)
	l.mu.Unlock()
}

// Destruct closes the sessions.
func (l *line) Destruct() error {
	l.mu.Lock()
	sessions := l.sessions
	l.sessions = nil
	l.mu.Unlock()
	for s := range sessions {
		s.Close(session.ReasonOfConfigsEnd())
	}
	return nil
}

// succession has the lines that a handler belongs to.
type succession struct {
	refs       []*state.Ref[*line]
	byListener map[string]*line // listeners of datagrams of the gate networks, by their address, which has one port
	own        *line            // for sessions of other networks, whose sockets close with the config
}

// begin acquires the lines of a handler. After an error, end releases those that it has acquired.
func (s *succession) begin(canonical string, listen []caddy.NetworkAddress) error {
	s.own, s.byListener = newLine(), make(map[string]*line)
	for _, addr := range listen {
		n, ok := gate.Parse(addr.Network)
		if !ok || n.Transport != "udp" {
			continue
		}
		ref, err := lines.Acquire(lineKey{addr.String(), canonical}, func() (*line, error) { return newLine(), nil })
		if err != nil {
			return err
		}
		s.refs = append(s.refs, ref)
		for offset := range addr.PortRangeSize() {
			s.byListener[gate.Listener(n, addr, offset)] = ref.Value()
		}
	}
	return nil
}

// of returns the line of a client's session, and the counters of its listener; nil if the listener has none.
func (s *succession) of(client net.Conn) (*line, *listeners.Datagrams) {
	if gate, ok := client.(interface{ ListenerAddr() string }); ok {
		listener := gate.ListenerAddr()
		if line := s.byListener[listener]; line != nil {
			return line, listeners.DatagramsOf(listener)
		}
	}
	return s.own, nil
}

func (s *succession) end() {
	if s.own != nil {
		_ = s.own.Destruct()
	}
	for _, ref := range s.refs {
		_ = ref.Release()
	}
}
