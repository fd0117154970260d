package network

import (
	"slices"
	"sync"
)

// turns are the generations that share a socket. The oldest one has the turn: it alone accepts, until it is
// removed.
type turns struct {
	wake   func()              // ends the wait of the generation that has the turn in accept; nil where its close is enough
	begins func(g *generation) // is told which generation has the turn from now on; may be nil

	mu          sync.Mutex
	generations []*generation // oldest first
}

// add makes g the youngest generation. If its config has one on this socket already, add returns that one
// instead.
func (t *turns) add(g *generation) *generation {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, other := range t.generations {
		if g.config != nil && other.config == g.config {
			return other
		}
	}
	t.generations = append(t.generations, g)
	if len(t.generations) == 1 {
		t.begin()
	}
	return nil
}

// interrupt closes g, and wakes it if it is in accept.
func (t *turns) interrupt(g *generation) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(g.closed)
	if t.generations[0] == g && t.wake != nil {
		t.wake()
	}
}

// remove takes g out once it has left accept. If it had the turn, the next one gets it.
func (t *turns) remove(g *generation) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.generations, g)
	t.generations = slices.Delete(t.generations, i, i+1)
	if i == 0 && len(t.generations) > 0 {
		t.begin()
	}
}

// begin gives the oldest generation the turn.
func (t *turns) begin() {
	g := t.generations[0]
	if t.begins != nil {
		t.begins(g)
	}
	close(g.turn)
}
