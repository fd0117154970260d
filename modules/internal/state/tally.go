package state

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Tallies count what lives, such as sessions, by keys. A tally is there as long as a config holds it or anything lives that it counts, so a
// reload resets none, and neither does one that leaves a key out while its sessions go on. The zero value is ready to use.
type Tallies[K comparable] struct {
	// Begun is called when there is a tally of a key, and Over when there is none any more: in turns for each key. They are set before the first Hold,
	// and must not use the tallies. Nil: nobody wants to know.
	Begun, Over func(key K)

	mu  sync.Mutex
	all map[K]*Tally[K]
}

// Tally counts what lives of one key.
type Tally[K comparable] struct {
	of     *Tallies[K]
	key    K
	living atomic.Int64
	held   atomic.Int64                          // by configs
	ends   atomic.Pointer[[]*func(living int64)] // nil where nobody watches; guarded by of.mu for changes
}

// Hold returns the tally of a key, until Release.
func (t *Tallies[K]) Hold(key K) *Tally[K] {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.all[key]
	if c == nil {
		c = &Tally[K]{of: t, key: key}
		t.add(c)
	}
	c.held.Add(1)
	return c
}

func (t *Tallies[K]) add(c *Tally[K]) {
	if t.all == nil {
		t.all = make(map[K]*Tally[K])
	}
	t.all[c.key] = c
	if t.Begun != nil {
		t.Begun(c.key)
	}
}

// Each calls f with what lives of every key. f must not use the tallies.
func (t *Tallies[K]) Each(f func(key K, living int64)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, c := range t.all {
		f(key, c.living.Load())
	}
}

// Has reports whether there is a tally of a key.
func (t *Tallies[K]) Has(key K) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.all[key] != nil
}

// Held reports whether a config holds the tally of a key.
func (t *Tallies[K]) Held(key K) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.all[key]
	return c != nil && c.held.Load() > 0
}

// Living is what lives of a key.
func (t *Tallies[K]) Living(key K) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.all[key]; c != nil {
		return c.living.Load()
	}
	return 0
}

// Release is called once for each Hold.
func (c *Tally[K]) Release() {
	if c.held.Add(-1) == 0 {
		c.tidy()
	}
}

// Living is what is counted now. Who holds the tally may read it, and must not change it.
func (c *Tally[K]) Living() *atomic.Int64 { return &c.living }

// Is reports whether two tallies, which may be nil, count what lives of the same key.
func (c *Tally[K]) Is(other *Tally[K]) bool {
	return c == other || c != nil && other != nil && c.of == other.of && c.key == other.key
}

// Watch has f called whenever something has ended that was counted, with what lives then, until stop is called. f must not block, and may be called
// once more after stop. The tally has to be held until stop is called.
func (c *Tally[K]) Watch(f func(living int64)) (stop func()) {
	this := &f
	c.change(func(all []*func(int64)) []*func(int64) { return append(all, this) })
	return func() {
		c.change(func(all []*func(int64)) []*func(int64) {
			return slices.DeleteFunc(all, func(one *func(int64)) bool { return one == this })
		})
	}
}

// change sets who watches.
func (c *Tally[K]) change(from func([]*func(int64)) []*func(int64)) {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	var all []*func(int64)
	if now := c.ends.Load(); now != nil {
		all = slices.Clone(*now)
	}
	if all = from(all); len(all) == 0 {
		c.ends.Store(nil)
		return
	}
	c.ends.Store(&all)
}

// BeginBelow is Begin where fewer than most live. Otherwise it counts nothing, and reports false. However many call it at once, no more than most
// live that it has counted.
func (c *Tally[K]) BeginBelow(most int64) (counted *Tally[K], ok bool) {
	for {
		n := c.living.Load()
		if n >= most {
			return nil, false
		}
		if c.living.CompareAndSwap(n, n+1) {
			break
		}
	}
	if c.held.Load() > 0 {
		return c, true
	}
	t := c.of
	t.mu.Lock()
	defer t.mu.Unlock()
	switch now := t.all[c.key]; now {
	case c:
		return c, true
	case nil:
		t.add(c)
		return c, true
	default:
		c.living.Add(-1)
		for n := now.living.Load(); n < most; n = now.living.Load() {
			if now.living.CompareAndSwap(n, n+1) {
				return now, true
			}
		}
		return nil, false
	}
}

// Begin counts one more. It returns the tally to call End of, which is another one only if the key was released and held again since.
func (c *Tally[K]) Begin() *Tally[K] {
	// First counted and then looked whether it is held, while tidy looks in the other order: one of both sees the other.
	c.living.Add(1)
	if c.held.Load() > 0 {
		return c
	}
	t := c.of
	t.mu.Lock()
	defer t.mu.Unlock()
	switch now := t.all[c.key]; now {
	case c:
	case nil:
		t.add(c)
	default:
		c.living.Add(-1)
		now.living.Add(1)
		return now
	}
	return c
}

// End is called once for each Begin.
func (c *Tally[K]) End() {
	living := c.living.Add(-1)
	if watching := c.ends.Load(); watching != nil {
		for _, f := range *watching {
			(*f)(living)
		}
	}
	if living == 0 && c.held.Load() == 0 {
		c.tidy()
	}
}

// tidy removes a tally that is neither held nor counts anything.
func (c *Tally[K]) tidy() {
	t := c.of
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.held.Load() == 0 && c.living.Load() == 0 && t.all[c.key] == c {
		delete(t.all, c.key)
		if t.Over != nil {
			t.Over(c.key)
		}
	}
}
