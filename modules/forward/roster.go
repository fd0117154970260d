package forward

import (
	"net"
	"sync"
	"sync/atomic"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/hops"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// roster is the upstreams of a handler, with what belongs to each of them by its position in the pool. Nothing of it changes: other upstreams,
// or other weights, make another roster. A session keeps the one that it has begun with.
type roster struct {
	pool   *upstream.Pool
	counts []*session.Count
	named  []datagramUpstream      // those that need no look-up
	known  *state.Ref[*knownNames] // nil where no upstream has a name
	local  hops.Where              // tells whether an upstream is on this machine
}

// newRoster returns a roster that holds what it needs, until end.
func (h *Handler) newRoster(upstreams []upstream.Upstream) (r *roster, err error) {
	r = &roster{counts: make([]*session.Count, len(upstreams)), named: make([]datagramUpstream, len(upstreams))}
	for i := range upstreams {
		u := &upstreams[i]
		h.watch.series(u.Name) // begin at 0
		r.counts[i] = counts.Hold(u.Name)
		r.named[i].name, u.Living = u.Name, r.counts[i].Living()
	}
	r.pool = upstream.NewPool(upstreams)
	r.pool.Balance, r.pool.Failures = h.balance, h.watch.failures()
	if r.known, err = holdNames(r.pool); err != nil {
		r.end()
		return nil, err
	}
	return r, nil
}

// end releases what a roster holds. Sessions that have it may go on, and others may begin.
func (r *roster) end() {
	for _, count := range r.counts {
		count.Release()
	}
	if r.known != nil {
		r.pool.Release()
		_ = r.known.Release()
	}
}

// mayLoop reports whether an upstream may be on this machine. Where none is, sessions need not be tracked.
func (r *roster) mayLoop() bool {
	return !r.pool.Fixed() || r.local.AnyLocal(r.pool.EachIP) || r.pool.AnyUnix() && hops.ListensUnix()
}

// count says which upstream a session has now, and counts it there.
func (r *roster) count(sess *session.Session, walk *upstream.Walk, addr net.Addr) {
	name, _ := walk.Current()
	var count *session.Count
	if position := walk.Position(); position >= 0 {
		count = r.counts[position]
	}
	sess.SetUpstream(name, addr, count)
}

// upstreamOf returns the upstream that a walk has come to.
func (r *roster) upstreamOf(walk *upstream.Walk) *datagramUpstream {
	if walk.Source() == (upstream.Source{}) && walk.Position() >= 0 {
		return &r.named[walk.Position()]
	}
	name, _ := walk.Current()
	return &datagramUpstream{name, walk.Source()}
}

// rosters has the roster that new sessions of a handler begin with.
type rosters struct {
	now   atomic.Pointer[roster]
	mu    sync.Mutex
	ended bool
}

// set has new sessions begin with another roster. Turns go on where they are. After end it only ends the new one.
func (r *rosters) set(next *roster) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		next.end()
		return
	}
	before := r.now.Load()
	if before != nil {
		next.pool.Succeed(before.pool)
	}
	r.now.Store(next)
	if before != nil {
		before.end() // now, so that what both have was held all the time
	}
}

// end is called in Cleanup. Sessions may go on, and begin.
func (r *rosters) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.now.Load(); now != nil && !r.ended {
		now.end()
	}
	r.ended = true
}
