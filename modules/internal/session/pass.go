package session

import (
	"net/netip"
	"sync"
	"sync/atomic"
)

// Gate is what lets sessions pass and may change its mind later: an access control list of one config.
type Gate struct{ edition atomic.Int64 }

// Edition is to be read before a client is judged, so that the pass tells by what it was let through.
func (g *Gate) Edition() int64 { return g.edition.Load() }

// Changed is called when a list has changed, before the living sessions are judged again: those that were judged by
// the lists of before, and have not begun yet, are then noticed when they begin.
func (g *Gate) Changed() { g.edition.Add(1) }

// Pass is noted when a gate has let a client through.
type Pass struct {
	Gate    *Gate
	Edition int64
	Client  netip.Addr // as the gate has seen it: before or behind PROXY protocol
	// Places are where the gate stands in its config.
	Places []string
}

// passKey is where a connection carries its passes until its session begins.
const passKey = "portgate.passes"

// outdated tells whether the gate has changed since.
func (p *Pass) outdated() bool { return p.Gate.Edition() != p.Edition }

// Passes returns what has let the session through.
func (s *Session) Passes() []Pass { return s.passes }

// Replaced tells whether the session's config is no longer the running one.
func (s *Session) Replaced() bool { return s.scope.config.Err() != nil }

// Living returns the sessions that have begun and not ended.
func Living() []*Session { return living.list() }

// rejudge are those who judge living sessions.
var rejudge = struct {
	sync.Mutex
	all map[chan<- struct{}]struct{}
}{all: make(map[chan<- struct{}]struct{})}

// WatchGates has due told when living sessions have to be judged again though no list has changed: when a config was
// replaced, and when a session has begun that was judged before a change. The capacity of due must be 1. The
// function that is returned ends it.
func WatchGates(due chan<- struct{}) (end func()) {
	rejudge.Lock()
	defer rejudge.Unlock()
	rejudge.all[due] = struct{}{}
	return func() {
		rejudge.Lock()
		defer rejudge.Unlock()
		delete(rejudge.all, due)
	}
}

// judgeAgain tells all who judge living sessions to do so.
func judgeAgain() {
	rejudge.Lock()
	defer rejudge.Unlock()
	for due := range rejudge.all {
		select {
		case due <- struct{}{}:
		default: // it is due already
		}
	}
}
