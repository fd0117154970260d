package session

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

// Line counts the sessions of one listener and network. Bytes are added when somebody calls [CountLiving], and when a session ends.
type Line struct {
	Network, Listener string

	Living, Begun      atomic.Int64
	BytesUp, BytesDown atomic.Int64
}

type lineKey struct{ network, listener string }

// lines are those that somebody holds the listener of, and those that have sessions. Like metrics they outlive the configs.
var lines struct {
	mu  sync.RWMutex
	all map[lineKey]*Line
}

func init() {
	meter.Forget("listener", func(listener string) {
		lines.mu.Lock()
		defer lines.mu.Unlock()
		for key := range lines.all {
			if key.listener == listener {
				delete(lines.all, key)
			}
		}
	})
}

// lineOf is called when the listener is held.
func lineOf(network, listener string) *Line {
	key := lineKey{network, listener}
	lines.mu.RLock()
	l := lines.all[key]
	lines.mu.RUnlock()
	if l != nil {
		return l
	}
	lines.mu.Lock()
	defer lines.mu.Unlock()
	if l = lines.all[key]; l == nil {
		if lines.all == nil {
			lines.all = make(map[lineKey]*Line)
		}
		l = &Line{Network: network, Listener: listener}
		lines.all[key] = l
	}
	return l
}

// Lines returns all lines.
func Lines() []*Line {
	lines.mu.RLock()
	defer lines.mu.RUnlock()
	all := make([]*Line, 0, len(lines.all))
	for _, l := range lines.all {
		all = append(all, l)
	}
	return all
}

// Datagrams reports whether its sessions move datagrams.
func (l *Line) Datagrams() bool {
	return gate.Datagrams(l.Network)
}

// totals are of all sessions since the process began.
var totals struct {
	begun, bytesUp, bytesDown atomic.Int64
	refused                   refusals
}

// Totals are counts of all sessions since the process began.
type Totals struct {
	Begun              int64
	BytesUp, BytesDown int64            // of living sessions as of the last [CountLiving]
	Refused            map[string]int64 // sessions that nobody was served in, by the reason
}

// ReadTotals returns the counts.
func ReadTotals() Totals {
	return Totals{totals.begun.Load(), totals.bytesUp.Load(), totals.bytesDown.Load(), totals.refused.read()}
}

// CountLiving brings what is counted of living sessions up to date, and returns how many of them have a config that was replaced. It calls step before
// each of them, without a lock. Nothing on the way of a byte waits for it.
func CountLiving(step func()) (replaced int) {
	living.each(func(s *Session) {
		step()
		s.count()
		if s.Replaced() {
			replaced++
		}
	})
	return replaced
}

// refusals counts sessions by their reason. There are few reasons: they are words of the code.
type refusals struct {
	mu  sync.Mutex
	now atomic.Pointer[map[string]*atomic.Int64]
}

func (r *refusals) add(reason string) {
	if now := r.now.Load(); now != nil {
		if n := (*now)[reason]; n != nil {
			n.Add(1)
			return
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	next := make(map[string]*atomic.Int64)
	if now := r.now.Load(); now != nil {
		if n := (*now)[reason]; n != nil {
			n.Add(1)
			return
		}
		next = maps.Clone(*now)
	}
	n := new(atomic.Int64)
	n.Add(1)
	next[reason] = n
	r.now.Store(&next)
}

func (r *refusals) read() map[string]int64 {
	all := make(map[string]int64)
	if now := r.now.Load(); now != nil {
		for reason, n := range *now {
			all[reason] = n.Load()
		}
	}
	return all
}

// refused reports whether nobody was served in a session that has ended so: it was turned away, or there was no upstream for it. That its client has
// left is no refusal.
func (e *End) refused() bool { return e.Status != StatusDone && e.Status != StatusClientGone }
