package forward

import (
	"fmt"
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

	orders      *orders       // that were made at run time, and that the upstreams are judged by
	configured  map[int]given // what the config says of those that orders have changed
	means       []means       // nil where nothing is special about any upstream
	encryptions map[alikeTLS]*encryption
	held        []interface{ Release() error }

	checks  *checked // nil where nothing is checked
	watched []interface{ Release() error }
}

// newRoster returns a roster that holds what it needs, until end, and that follows before, which is nil for the first one. The upstreams are as the config has them, or whoever discovers them: what
// was set at run time comes on top here, for all of them. Whatever else has to know which upstreams a handler has now, such as who checks
// them, holds them here and releases them in end; it leaves those alone that are [upstream.Upstream.Maint].
func (h *Handler) newRoster(before *roster, upstreams []upstream.Upstream) (r *roster, err error) {
	r = &roster{counts: make([]*session.Count, len(upstreams)), named: make([]datagramUpstream, len(upstreams)), orders: atRunTime.now.Load()}
	r.configured = r.orders.judge(upstreams)
	for i := range upstreams {
		u := &upstreams[i]
		r.counts[i] = counts.Hold(u.Name)
		h.watch.series(u.Name) // begin at 0
		r.named[i].name, r.named[i].count, u.Living = u.Name, r.counts[i], r.counts[i].Living()
	}
	r.pool = upstream.NewPool(upstreams)
	r.pool.Balance, r.pool.Failures, r.pool.Shut = h.balance, h.watch.failures(), atRunTime.shut
	h.guard.set(r.pool)
	if r.known, err = holdNames(r.pool); err != nil {
		r.end()
		return nil, err
	}
	if err := r.holdMeans(h, before, upstreams); err != nil {
		r.end()
		return nil, err
	}
	if err := r.holdChecks(&h.checking, h.stale, upstreams); err != nil {
		r.end()
		return nil, fmt.Errorf("health_check: %w", err)
	}
	return r, nil
}

// given returns the upstreams without what was set at run time.
func (r *roster) given() []upstream.Upstream {
	upstreams := r.pool.Upstreams()
	for i, given := range r.configured {
		given.restore(&upstreams[i])
	}
	return upstreams
}

// end releases what a roster holds. Sessions that have it may go on, and others may begin.
func (r *roster) end() {
	for _, count := range r.counts {
		count.Release()
	}
	for _, watched := range r.watched { // before the names, which they follow
		_ = watched.Release()
	}
	if r.known != nil {
		r.pool.Release()
		_ = r.known.Release()
	}
	for _, held := range r.held {
		_ = held.Release()
	}
}

// mayLoop reports whether an upstream may be on this machine. Where none is, sessions need not be tracked.
func (r *roster) mayLoop() bool {
	return !r.pool.Fixed() || r.pool.Len() == 0 || r.local.AnyLocal(r.pool.EachIP) || r.pool.AnyUnix() && hops.ListensUnix()
}

// count says which upstream a session has now, and counts it there. One that has found no address is about to end, and counts nowhere.
func (r *roster) count(sess *session.Session, walk *upstream.Walk, addr net.Addr) {
	name, _ := walk.Current()
	var count *session.Count
	if position := walk.Position(); position >= 0 && addr != nil {
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
	u := &datagramUpstream{name: name, source: walk.Source()}
	if position := walk.Position(); position >= 0 {
		u.count = r.counts[position]
		u.preface = r.named[position].preface
	}
	return u
}

// rosters has the roster that new sessions of a handler begin with.
type rosters struct {
	now   atomic.Pointer[roster]
	mu    sync.Mutex
	ended bool
}

// latest returns the handler that knows which upstreams there are now, for a session of h that goes on to look for one: that of the running config,
// if it has the same. Else it is h itself. After its Cleanup h knows what it knew last, but for what was shut since.
func (h *Handler) latest() *Handler {
	if running := h.succession.latest(); running != nil {
		return running
	}
	return h
}

// give has new sessions go to these upstreams, which the config has or which were discovered. After Cleanup it does nothing.
func (h *Handler) give(upstreams []upstream.Upstream) error {
	defer h.look()
	err := h.rosters.change(func(now *roster) (*roster, error) { return h.newRoster(now, upstreams) })
	if err == nil && h.queue != nil {
		h.queue.watch(upstreams)
	}
	return err
}

// judge has new sessions go by what was set of an upstream at run time. It does nothing where they do already, or where the handler has no such
// upstream. It looks when no change is under way, which may bring the upstream and not know what was set.
func (h *Handler) judge(name string) error {
	defer h.look()
	return h.rosters.change(func(now *roster) (*roster, error) {
		if now == nil || now.orders == atRunTime.now.Load() || !now.pool.Has(name) {
			return now, nil
		}
		return h.newRoster(now, now.given())
	})
}

// change has new sessions begin with the roster that follow returns. Turns go on where they are. Changes come one after another, so none is made
// of what another one has replaced. Sessions that wait until an upstream may get them have to look again after it.
func (r *rosters) change(follow func(now *roster) (next *roster, err error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return nil
	}
	before := r.now.Load()
	next, err := follow(before)
	if err != nil || next == before {
		return err
	}
	if before != nil {
		next.pool.Succeed(before.pool)
	}
	r.now.Store(next)
	if before != nil {
		before.end() // now, so that what both have was held all the time
	}
	return nil
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
