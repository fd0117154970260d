package forward

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"sync"
	"time"

	"github.com/portgate/caddy-portgate/modules/forward/upstream/discovery"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// asked is what a source asks, and whom. How often, and for how long an answer is used, are no part of it: a source for which they change begins
// with what is known.
type asked struct{ what, whom string }

// storageKeys returns where answers are stored: those of the ones that are asked, and those of whoever is asked. Without the former,
// sources that ask different servers the same would mix up their answers; without the latter, one that asks another server than before a restart
// would begin with nothing.
func (a asked) storageKeys() []string {
	keys := []string{storageKey(a.what)}
	if a.whom != "" {
		keys = slices.Insert(keys, 0, storageKey(a.what+"\n"+a.whom))
	}
	return keys
}

func storageKey(of string) string {
	sum := sha256.Sum256([]byte(of))
	return "portgate/upstreams/" + hex.EncodeToString(sum[:16])
}

// sources is the pool of all sources, with those that ask the same side by side.
type sources struct {
	*state.Pool[string, *discovered]

	mu      sync.Mutex
	askedOf map[string][]*discovered // by what they ask
}

func newSources() *sources {
	return &sources{Pool: state.NewPool[string, *discovered](), askedOf: make(map[string][]*discovered)}
}

func (s *sources) add(d *discovered) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.askedOf[d.asked.what] = append(s.askedOf[d.asked.what], d)
}

func (s *sources) remove(d *discovered) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := slices.DeleteFunc(s.askedOf[d.asked.what], func(other *discovered) bool { return other == d })
	if s.askedOf[d.asked.what] = left; len(left) == 0 {
		delete(s.askedOf, d.asked.what)
	}
}

// known returns the source that knows best what another one is about to ask, and what it knows; nil if none does. One that asks the same server
// comes first, then the one that was answered last.
func (s *sources) known(a asked) (best *discovered, state discovery.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.askedOf[a.what] {
		now := d.keeper.State()
		switch {
		case !now.Known:
			continue
		case best == nil:
		case (d.asked == a) != (best.asked == a):
			if best.asked == a {
				continue
			}
		case !now.Confirmed.After(state.Confirmed):
			continue
		}
		best, state = d, now
	}
	return best, state
}

// outdated reports whether another source that stores its answers in the same place has a later one than this, as during a reload.
func (s *sources) outdated(d *discovered, confirmed time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.askedOf[d.asked.what], func(other *discovered) bool {
		return other != d && other.asked == d.asked && other.keeper.State().Confirmed.After(confirmed)
	})
}
