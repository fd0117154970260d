package forward

import (
	"cmp"
	"maps"
	"slices"
	"sync"
)

// handlers are those of all configs that live.
var handlers = new(registry)

// registry has the handlers that are between Provision and Cleanup.
type registry struct {
	mu   sync.Mutex
	last uint64
	all  map[*Handler]uint64 // numbered in the order in which they came
}

// add is called before a handler has its first roster: whoever sets an upstream after that finds the handler, and what was set before is found
// by the handler.
func (r *registry) add(h *Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = make(map[*Handler]uint64)
	}
	r.last++
	r.all[h] = r.last
}

// remove does nothing for a handler that was not added, as after a Provision that failed.
func (r *registry) remove(h *Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, h)
}

// newestFirst returns those that live now.
func (r *registry) newestFirst() []*Handler {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Keys(r.all), func(a, b *Handler) int { return cmp.Compare(r.all[b], r.all[a]) })
}
