package network

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// lineage is the generations that share a socket, one for each config. The oldest one is active: it alone accepts. When it is
// removed, its successor becomes active.
type lineage struct {
	wake      func()              // wakes the active generation, which waits in accept; nil where its close is enough
	activated func(g *generation) // is called with the generation that becomes active; may be nil

	mu          sync.Mutex
	generations []*generation // oldest first
	destructed  func()        // is called when the socket is destructed; may be nil
	moving      bool          // a socket that overlaps this one was bound beside it
	hidden      time.Time     // since then that socket has the address; zero: it has not
}

// errHidden: who needs a socket at this address opens one as soon as this one is closed.
var errHidden = errors.New("the socket is being closed")

// add makes g the youngest generation. It returns an error if its config has one on this socket already, and errHidden if
// the socket is hidden.
func (l *lineage) add(g *generation) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.hidden.IsZero() {
		return errHidden
	}
	if other := l.find(g.config); other != nil {
		return fmt.Errorf("this config listens there already, as %q: expected each address once", other.listener)
	}
	l.generations = append(l.generations, g)
	if len(l.generations) == 1 {
		l.activate()
	}
	return nil
}

// ofConfig returns the generation of a config, nil if it has none.
func (l *lineage) ofConfig(config <-chan struct{}) *generation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.find(config)
}

func (l *lineage) find(config <-chan struct{}) *generation {
	for _, g := range l.generations {
		if config != nil && g.config == config {
			return g
		}
	}
	return nil
}

// interrupt closes g, and wakes it if it is in accept.
func (l *lineage) interrupt(g *generation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(g.closed)
	if l.generations[0] == g && l.wake != nil {
		l.wake()
	}
}

// remove takes g out once it has left accept.
func (l *lineage) remove(g *generation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.generations, g)
	l.generations = slices.Delete(l.generations, i, i+1)
	if i == 0 && len(l.generations) > 0 {
		l.activate()
	}
}

// activate makes the oldest generation the active one.
func (l *lineage) activate() {
	g := l.generations[0]
	if l.activated != nil {
		l.activated(g)
	}
	close(g.active)
}

// onDestruct has f called when the socket is destructed.
func (l *lineage) onDestruct(f func()) { l.destructed = f }

// destruct calls what onDestruct was given.
func (l *lineage) destruct() {
	if l.destructed != nil {
		l.destructed()
	}
}

func (l *lineage) setMoving() {
	l.mu.Lock()
	l.moving = true
	l.mu.Unlock()
}

func (l *lineage) isMoving() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.moving
}

// hideLast calls hide if no other config than this one has the socket. If that is done, no other one gets it any more.
func (l *lineage) hideLast(config <-chan struct{}, hide func() bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.generations) != 1 || l.find(config) == nil || !hide() {
		return false
	}
	l.hidden = time.Now()
	return true
}

// hiddenSince returns when the socket was hidden, zero if it is not.
func (l *lineage) hiddenSince() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hidden
}

func (l *lineage) isHidden() bool { return !l.hiddenSince().IsZero() }
