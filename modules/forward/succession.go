package forward

import (
	"net"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
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

	alikes state.Youngest[*alike] // of the configs that have it
}

// rosters returns where the sessions of the line find upstreams now: sessions of an earlier config go by what the running one knows. It returns nil for a line
// that is not one of several configs.
func (l *line) rosters() *rosters {
	if a, ok := l.alikes.Latest(); ok {
		return a.rosters.Load()
	}
	return nil
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

func (l *line) has(s *session.Session) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.sessions[s]
	return ok
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

// alike has the lines of all handlers of a config that are alike. There may be thousands of them, each with the listeners of all.
type alike struct {
	refs       []*state.Ref[*line]
	gone       []func()
	rosters    atomic.Pointer[rosters] // of one of the handlers
	byListener gate.Index[*line]       // listeners of datagrams of the gate networks
}

// alikes of all configs. A finding is of one config.
var alikes = state.NewPool[*placement.Finding, *alike]()

// newAlike acquires the lines of the gate networks among the listen addresses.
func newAlike(canonical string, listen []caddy.NetworkAddress) (*alike, error) {
	a := new(alike)
	for _, addr := range listen {
		n, ok := gate.Parse(addr.Network)
		if !ok || n.Transport != "udp" {
			continue
		}
		ref, err := lines.Acquire(lineKey{addr.String(), canonical}, func() (*line, error) { return newLine(), nil })
		if err != nil {
			_ = a.Destruct()
			return nil, err
		}
		a.refs = append(a.refs, ref)
		a.gone = append(a.gone, ref.Value().alikes.Use(a))
		a.byListener.Add(n.Transport, gate.Listener(n, addr, 0), addr.PortRangeSize(), ref.Value())
	}
	return a, nil
}

// Destruct releases the lines.
func (a *alike) Destruct() error {
	for _, gone := range a.gone {
		gone()
	}
	for _, ref := range a.refs {
		_ = ref.Release()
	}
	return nil
}

// succession has the lines that a handler belongs to.
type succession struct {
	alike *state.Ref[*alike]
	own   *line // for sessions of other networks, whose sockets close with the config
}

// begin acquires the lines of a handler, which stands at these listen addresses. After an error, end releases what it has acquired.
func (s *succession) begin(at *placement.Finding, canonical string, listen []caddy.NetworkAddress, now *rosters) (err error) {
	s.own = newLine()
	if s.alike, err = alikes.Acquire(at, func() (*alike, error) { return newAlike(canonical, listen) }); err == nil {
		s.alike.Value().rosters.Store(now)
	}
	return err
}

// of returns the line of a client's session, and the counters of its listener; nil if the listener has none.
func (s *succession) of(client net.Conn) (*line, *listeners.Datagrams) {
	if conn, ok := client.(interface{ ListenerAddr() string }); ok {
		listener := conn.ListenerAddr()
		if line, ok := s.alike.Value().byListener.First("udp", listener); ok {
			return line, listeners.DatagramsOf(listener)
		}
	}
	return s.own, nil
}

// has reports whether a session belongs to one of the lines.
func (s *succession) has(sess *session.Session) bool {
	if s.alike == nil {
		return false
	}
	for _, ref := range s.alike.Value().refs {
		if ref.Value().has(sess) {
			return true
		}
	}
	return false
}

func (s *succession) end() {
	if s.own != nil {
		_ = s.own.Destruct()
	}
	_ = s.alike.Release()
}
