package forward

import (
	"net"
	"sync"

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

// lineages of all configs, by the JSON of handlers.
var lineages = state.NewPool[string, *lineage]()

// lineage is the handlers of all configs that are alike: those of a config, and those of the next one that take their place.
type lineage struct{ configs state.Youngest[*alike] }

// Destruct has nothing to release.
func (*lineage) Destruct() error { return nil }

// alike has the lines of all handlers of a config that are alike. There may be thousands of them, each with the listeners of all.
type alike struct {
	lineage    *state.Ref[*lineage]
	gone       func() // from the lineage
	refs       []*state.Ref[*line]
	handler    *Handler          // one of them
	byListener gate.Index[*line] // listeners of datagrams of the gate networks
}

// alikes of all configs. A finding is of one config.
var alikes = state.NewPool[*placement.Finding, *alike]()

// newAlike acquires the lines of the gate networks among the listen addresses.
func newAlike(canonical string, listen []caddy.NetworkAddress, h *Handler) (a *alike, err error) {
	a = &alike{handler: h}
	if a.lineage, err = lineages.Acquire(canonical, func() (*lineage, error) { return new(lineage), nil }); err != nil {
		return nil, err
	}
	a.gone = a.lineage.Value().configs.Use(a)
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
		a.byListener.Add(n.Transport, gate.Listener(n, addr, 0), addr.PortRangeSize(), ref.Value())
	}
	return a, nil
}

// Destruct releases the lines.
func (a *alike) Destruct() error {
	a.gone()
	_ = a.lineage.Release()
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
func (s *succession) begin(at *placement.Finding, canonical string, listen []caddy.NetworkAddress, h *Handler) (err error) {
	s.own = newLine()
	s.alike, err = alikes.Acquire(at, func() (*alike, error) { return newAlike(canonical, listen, h) })
	return err
}

// latest returns the handler of the youngest config that is like this one, nil if no config has one any more.
func (s *succession) latest() *Handler {
	if s.alike == nil {
		return nil
	}
	if a, ok := s.alike.Value().lineage.Value().configs.Latest(); ok {
		return a.handler
	}
	return nil
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
