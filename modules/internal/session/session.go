// Package session keeps one record per connection: the registry of living sessions, their access
// log and their metrics. Each handler that a connection passes adds its part to the record; whoever
// ends the connection ends the session.
package session

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"

	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/recheck"
	"github.com/portgate/caddy-portgate/modules/internal/state"
	"github.com/portgate/caddy-portgate/modules/internal/throttle"
)

// Status codes as nginx's stream module has them.
const (
	StatusDone           = 200
	StatusBadHeader      = 400
	StatusDenied         = 403
	StatusNoRoute        = 404
	StatusLimited        = 429
	StatusClientGone     = 499 // as nginx's HTTP module has it
	StatusInternal       = 500
	StatusNoUpstream     = 502
	StatusBusy           = 503
	StatusConnectTimeout = 504
	StatusLoop           = 508
)

// The reasons that do not come from the relay.
const (
	ReasonAdminClosed  = "admin_closed"
	ReasonDenied       = "denied"
	ReasonDrain        = "drain"
	ReasonLimited      = "limited"
	ReasonListChanged  = "list_changed"
	ReasonLoop         = "loop"
	ReasonSessionLimit = "session_limit"
	ReasonNoRoute      = "no_route"
	ReasonShutdown     = "shutdown"
	ReasonProxyHeader  = "proxy_header"
	ReasonUnhealthy    = "unhealthy"
)

// ReasonOfConfigsEnd is the reason of sessions that end because their config does: it is replaced, or the process
// stops.
func ReasonOfConfigsEnd() string {
	if caddy.ActiveContext().Context == nil {
		return ReasonShutdown
	}
	return ReasonDrain
}

// ID tells the sessions of one process apart. Its string is 16 hexadecimal digits.
type ID uint64

func (id ID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// The upper half is drawn once per process, so that IDs of two processes in one log differ.
var lastID atomic.Uint64

func init() { lastID.Store(uint64(rand.Uint32()) << 32) }

// Session is the record of one connection. The exported fields are set by Begin.
type Session struct {
	ID       ID
	Network  string         // of the listener: "tcp", "unix"
	Listener string         // listen address as configured where the network tells, else ":port"
	Client   netip.AddrPort // zero where the client has none (unix sockets)
	Start    time.Time      // when the connection was accepted, or, where nobody tells, a handler had it wait

	scope     *Scope
	line      *Line
	limits    throttle.Limits
	throttles []*throttle.Throttle
	passes    []recheck.Pass
	waited    time.Duration // from Start until a handler took the connection

	mu       sync.Mutex
	mover    Mover
	rule     string        // that has denied the client
	label    string        // the upstream as configured
	upstream net.Addr      // nil where it could not be resolved
	troubles *troubles     // nil where there were none
	counted  *Count        // that of the upstream which has the session; nil where there is none
	dialed   time.Duration // what the attempt took that has succeeded; 0 where nobody tells
	up, down traffic
	ended    bool // from then on nothing here changes
	indexed  bool // guarded by the registry

	connected microseconds // from when a handler took the connection until it had an upstream; 0 before, and where nobody tells

	datagramsUp, datagramsDown int64 // as counted last
}

// troubles is what few sessions have. The others are small, because many are idle.
type troubles struct {
	closing string   // why to close the mover when there is one
	failed  []string // addresses of upstreams that have failed, oldest first
}

// troublesLocked returns the session's troubles, to add one.
func (s *Session) troublesLocked() *troubles {
	if s.troubles == nil {
		s.troubles = new(troubles)
	}
	return s.troubles
}

// Mover is what moves a session's bytes. None of its methods blocks.
type Mover interface {
	// Close ends the session soon, with reason in its access log entry.
	Close(reason string)
	// LastActive is when the last byte moved.
	LastActive() time.Time
	// Moved is how many bytes have moved so far: from the client to the upstream, and back.
	Moved() (up, down int64)
}

// DatagramMover is a Mover that moves datagrams.
type DatagramMover interface {
	Mover
	// Datagrams is how many datagrams have moved so far: from the client to the upstream, and back.
	Datagrams() (up, down int64)
	// Counts are those of the listener that what moves down is added to, nil where it keeps none.
	Counts() *listeners.Datagrams
}

// Begin returns the session of cx, which begins now unless another handler has begun it.
func Begin(cx *layer4.Connection, scope *Scope) *Session {
	if s, ok := cx.GetVar(sessionKey).(*Session); ok {
		return s
	}
	return ArrivalOf(cx).Begin(scope)
}

func newSession(scope *Scope, a *Arrival) *Session {
	now := time.Now()
	s := &Session{
		ID: ID(lastID.Add(1)), Network: a.Network, Listener: a.Listener, Client: a.Client,
		Start: now, scope: scope, passes: a.passes, throttles: a.throttles,
	}
	if !a.Since.IsZero() {
		s.Start, s.waited = a.Since, now.Sub(a.Since)
	}
	for _, t := range a.throttles {
		s.limits.Add(t.Take())
	}
	scope.begins(s.Listener)
	s.line = lineOf(s.Network, s.Listener)
	s.line.Begun.Add(1)
	s.line.Living.Add(1)
	totals.begun.Add(1)
	scope.metrics.active.WithLabelValues(s.Listener).Inc()
	living.add(s)
	if len(s.passes) > 0 || s.Replaced() { // else no change of a list can concern it
		living.index(s)
	}
	if scope.drained.Load() {
		s.Close(ReasonDrain)
	}
	for i := range s.passes {
		if s.passes[i].Outdated() {
			recheck.RequestClient(s.passes[i].Client)
		}
	}
	return s
}

// Limits returns what bounds the bytes and datagrams of the session.
func (s *Session) Limits() throttle.Limits { return s.limits }

// Passes returns what has admitted the session.
func (s *Session) Passes() []recheck.Pass { return s.passes }

// Replaced tells whether the session's config is no longer the running one.
func (s *Session) Replaced() bool { return s.scope.config.Err() != nil }

// SetMover says who moves the bytes from now on.
func (s *Session) SetMover(m Mover) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	s.mover = m
	troubles := s.troubles
	s.mu.Unlock()
	if troubles != nil && troubles.closing != "" {
		m.Close(troubles.closing)
	}
}

// Count counts the living sessions of an upstream, by its label.
type Count = state.Tally[string]

// SetUpstream says which upstream is tried from now on: as it is configured, which makes a metrics label, and
// its address, nil if there is none. The session is counted among those of the upstream, until it has another one or ends. count may
// be nil. Whoever has the counts keeps the series of the upstream for as long as one of them counts anything.
func (s *Session) SetUpstream(label string, addr net.Addr, count *Count) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.recountLocked(count)
	if s.label != label || s.up.total == nil {
		s.countLocked() // for the one before
		s.label = label
		if count == nil { // else its series stay as long as something is counted
			s.scope.values.Hold("upstream", label)
		}
		s.up.total, s.down.total = s.scope.metrics.traffic(s.Listener, label)
	}
	s.upstream = addr
}

// Reserve counts the session among those of an upstream if fewer than most live, in place of the one that it was counted at, and reports
// whether it is counted there now. SetUpstream then finds it counted. A session that has ended is not.
func (s *Session) Reserve(count *Count, most int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		return false
	case count.Is(s.counted):
		return true
	}
	counted, ok := count.BeginBelow(most)
	if ok {
		s.uncountLocked()
		s.counted = counted
	}
	return ok
}

// Recount counts the session among those of the upstream that it has, whatever their number: where Reserve has had it counted at another one, to which
// it does not go. count may be nil.
func (s *Session) Recount(count *Count) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recountLocked(count)
}

func (s *Session) recountLocked(count *Count) {
	if s.ended || count.Is(s.counted) {
		return
	}
	s.uncountLocked()
	if count != nil {
		s.counted = count.Begin()
	}
}

// Uncount counts the session at no upstream, until SetUpstream or Reserve: while it waits for one.
func (s *Session) Uncount() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uncountLocked()
}

func (s *Session) uncountLocked() {
	if s.counted != nil {
		s.counted.End()
		s.counted = nil
	}
}

// maxFailed bounds the upstreams of a session that have failed and are in its access log entry: one of datagrams may go on
// for days.
const maxFailed = 8

// UpstreamFailed notes that an upstream could not be reached, or refuses what is sent to it: as it is configured, and its
// address, nil where its name has none.
func (s *Session) UpstreamFailed(label string, addr net.Addr) {
	if addr != nil {
		label = addr.String()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	t := s.troublesLocked()
	if n := len(t.failed); n < maxFailed && (n == 0 || t.failed[n-1] != label) {
		t.failed = append(t.failed, label)
	}
}

// Dialed notes what it took to connect to the upstream. Without it that is the time until there was one, which other
// upstreams may have a part in.
func (s *Session) Dialed(took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.dialed, s.connected = took, sinceInMicroseconds(s.Begun())
	}
}

// DialFailed counts an attempt that has failed among those of its upstream.
func (s *Session) DialFailed(label string, took time.Duration) {
	s.scope.metrics.connect.WithLabelValues(label).Observe(took.Seconds())
}

// SetRule says which rule denies the client.
func (s *Session) SetRule(label string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.rule = label
	}
}

// Close asks whoever moves the session's bytes to end it, now or as soon as there is somebody.
func (s *Session) Close(reason string) {
	s.mu.Lock()
	m := s.mover
	if m == nil && !s.ended {
		if t := s.troublesLocked(); t.closing == "" {
			t.closing = reason
		}
	}
	s.mu.Unlock()
	if m != nil {
		m.Close(reason)
	}
}

// LastActive is when the last byte moved.
func (s *Session) LastActive() time.Time {
	s.mu.Lock()
	m := s.mover
	s.mu.Unlock()
	if m != nil {
		return m.LastActive()
	}
	return s.Begun()
}

// Begun returns when a handler took the connection.
func (s *Session) Begun() time.Time { return s.Start.Add(s.waited) }

// count brings bytes_total up to date.
func (s *Session) count() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.countLocked()
}

func (s *Session) countLocked() {
	if s.ended || s.mover == nil || s.up.total == nil {
		return
	}
	up, down := s.mover.Moved()
	if moved := s.up.reach(up); moved > 0 {
		s.line.BytesUp.Add(moved)
		totals.bytesUp.Add(moved)
	}
	if moved := s.down.reach(down); moved > 0 {
		s.line.BytesDown.Add(moved)
		totals.bytesDown.Add(moved)
	}
	if m, ok := s.mover.(DatagramMover); ok {
		s.countDatagrams(m)
	}
}

func (s *Session) countDatagrams(m DatagramMover) {
	up, down := m.Datagrams()
	if counts := m.Counts(); counts != nil {
		counts.Down.Add(down - s.datagramsDown)
	}
	s.datagramsUp, s.datagramsDown = up, down
}

// End is how a session ended.
type End struct {
	Connect   time.Duration // until the upstream was connected, or given up
	Connected bool
	Status    int
	Reason    string
	Err       error
}

// End writes the access log entry and the metrics, once.
func (s *Session) End(e End) {
	if !s.finish() {
		return
	}
	for _, t := range s.throttles { // first: the client knows already, and may come again while a log is written
		t.Release()
	}
	duration := time.Since(s.Start)
	s.line.Living.Add(-1)
	if e.refused() {
		totals.refused.add(e.Reason)
	}
	s.scope.metrics.count(s, &e, duration)
	s.scope.logEnd(s, &e, duration)
	s.scope.ends()
	living.remove(s) // last, because a process that stops waits for the log entries of what lives
}

// finish counts the last bytes. It reports false where the session has ended before.
func (s *Session) finish() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.countLocked()
	s.uncountLocked()
	s.ended = true
	return true
}

// upstreamAddr returns the address that was connected to, or tried last.
func (s *Session) upstreamAddr() string { return addressOr(s.upstream, s.label) }
