package forward

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/forward/upstream/discovery"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// dynamic gives a handler the upstreams that its sources know, behind those of the config. The zero value has no sources.
type dynamic struct {
	h        *Handler
	fixed    []upstream.Upstream // of the config
	zone     string              // of the gateway
	placed   placed
	sources  []useOfSource
	unusable *degraded.Part

	ready chan struct{} // closed when there is an upstream, or none is given any more

	mu      sync.Mutex // held while upstreams are given
	ended   bool
	given   map[string]upstream.Upstream // those that were discovered, by their names
	leaving leaving
}

// begin is called in Provision. After an error end releases what there is.
func (d *dynamic) begin(ctx caddy.Context, h *Handler, fixed []upstream.Upstream, zone string, placed placed) error {
	if len(h.Dynamic) == 0 {
		return nil
	}
	for _, addr := range placed.listen {
		if size := addr.PortRangeSize(); size > 1 {
			return fmt.Errorf("dynamic: expected listen addresses of one port, but %q has %d", addr.String(), size)
		}
	}
	modules, err := ctx.LoadModule(h, "Dynamic")
	if err != nil {
		return fmt.Errorf("dynamic: %w", err)
	}
	d.h, d.fixed, d.zone, d.placed = h, fixed, zone, placed
	d.ready, d.unusable = make(chan struct{}), degraded.New("upstream_unusable")
	d.leaving.begin(h)
	for _, module := range modules.([]any) {
		if _, ok := module.(discovery.Maker); !ok {
			return fmt.Errorf("dynamic: %s: expected a module that has a source of upstreams", module.(caddy.Module).CaddyModule().ID.Name())
		}
		use, err := useSource(ctx, module.(caddy.Module), d.update)
		if err != nil {
			return fmt.Errorf("dynamic: %s: %w", module.(caddy.Module).CaddyModule().ID.Name(), err)
		}
		d.mu.Lock() // a source may call update already
		d.sources = append(d.sources, use)
		d.mu.Unlock()
	}
	return nil
}

// end releases what begin has acquired.
func (d *dynamic) end() {
	d.mu.Lock()
	d.ended = true
	d.wake()
	sources := d.sources
	d.sources = nil
	d.mu.Unlock()
	for i := range sources {
		sources[i].end()
	}
	d.unusable.Close()
}

// start gives the upstreams that a handler begins with.
func (d *dynamic) start(h *Handler, fixed []upstream.Upstream) error {
	if d.h == nil {
		return h.give(fixed)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := h.give(d.merge()); err != nil {
		return err
	}
	d.settle(nil)
	return nil
}

// update has new sessions go to what the sources know now.
func (d *dynamic) update() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended || d.h.rosters.now.Load() == nil { // start is yet to come
		return
	}
	before := d.given
	upstreams := d.merge()
	if err := d.h.give(upstreams); err != nil {
		d.given = before
		logqueue.Default("forward").Warn("upstreams that were discovered can't be used, sessions go on to those before", zap.Error(err))
		return
	}
	d.settle(before)
}

// settle is called when new sessions go to what was given.
func (d *dynamic) settle(before map[string]upstream.Upstream) {
	if len(d.given)+len(d.fixed) > 0 {
		d.wake()
	}
	d.leaving.change(before, d.given)
}

// wake has sessions go on that wait for an upstream.
func (d *dynamic) wake() {
	if d.ready == nil {
		return
	}
	select {
	case <-d.ready:
	default:
		close(d.ready)
	}
}

// merge returns the upstreams of the config and of all sources. What an earlier one has is not taken a second time. A source whose grace period
// is over counts only if no others may get sessions.
func (d *dynamic) merge() []upstream.Upstream {
	states := make([]discovery.State, len(d.sources))
	size := len(d.fixed)
	for i := range d.sources {
		states[i] = d.sources[i].state()
		size += len(states[i].Entries)
	}
	m := merging{of: d, all: append(make([]upstream.Upstream, 0, size), d.fixed...), given: make(map[string]upstream.Upstream, size)}
	if len(d.fixed)+len(states) > 1 { // a source has none twice
		m.taken = make(distinct)
		for i := range d.fixed {
			_ = m.taken.add(&d.fixed[i])
		}
	}
	m.take(states, false)
	if !slices.ContainsFunc(m.all, func(u upstream.Upstream) bool { return !u.Drained }) {
		m.take(states, true)
	}
	d.given = m.given
	d.noteUnusable(m.bad)
	return closeGaps(m.all)
}

// merging is upstreams that are being merged.
type merging struct {
	of    *dynamic
	all   []upstream.Upstream
	given map[string]upstream.Upstream // those that were discovered, by their names
	taken distinct                     // nil where none can be there twice
	bad   discovery.Answer
}

// take adds those of the sources that are expired, or of those that are not.
func (m *merging) take(states []discovery.State, expired bool) {
	for i := range states {
		if states[i].Expired != expired {
			continue
		}
		for _, e := range states[i].Entries {
			u, err := m.of.upstreamOf(e)
			if err != nil {
				m.bad.Bad++
				m.bad.First = append(m.bad.First[:min(len(m.bad.First), 4)], err)
				continue
			}
			if m.taken != nil && m.taken.add(&u) != nil {
				continue
			}
			m.given[u.Name] = u
			m.all = append(m.all, u)
		}
	}
}

// upstreamOf returns an entry as an upstream, the one that there is already if nothing has changed about it.
func (d *dynamic) upstreamOf(e discovery.Entry) (u upstream.Upstream, err error) {
	u, known := d.given[e.Address]
	if !known {
		u = upstream.Upstream{Name: e.Address}
		if u.Addr, err = upstream.Parse(e.Address); err == nil {
			err = d.check(&u)
		}
		if err != nil {
			return u, err
		}
		u.Prepare()
	}
	u.MaxSessions = int64(e.MaxConnections)
	u.Weight, u.Drained, u.Priority = e.Weight, e.Drained, e.Priority
	u.Zone, u.Near = e.Zone, d.zone != "" && e.Zone == d.zone
	return u, nil
}

// check refuses what a config could not have either.
func (d *dynamic) check(u *upstream.Upstream) error {
	one := []upstream.Upstream{*u}
	if _, err := matchAddrs(one, d.placed.listen); err != nil {
		return err
	}
	if err := checkLoops(one, d.placed.all); err != nil {
		return err
	}
	if t := d.h.special.of(u.Name).tls; t != nil {
		if _, err := t.serverName(u); err != nil {
			return fmt.Errorf("tls: %w", err)
		}
	}
	return d.h.checkOptions(one)
}

// noteUnusable says which upstreams the handler can't use.
func (d *dynamic) noteUnusable(bad discovery.Answer) {
	log := logqueue.Default("forward")
	if bad.Bad == 0 {
		d.unusable.End(log, "all upstreams that were discovered can be used again")
		return
	}
	first := make([]string, len(bad.First))
	for i, err := range bad.First {
		first[i] = err.Error()
	}
	d.unusable.Begin(log, "upstreams were discovered that a listener can't use, which are left out", zap.Int("bad", bad.Bad), zap.Strings("first", first))
}

// closeGaps numbers the tiers that have upstreams from 0: who is discovered decides which there are.
func closeGaps(upstreams []upstream.Upstream) []upstream.Upstream {
	var tiers [upstream.MaxPriority + 1]int
	for i := range upstreams {
		tiers[upstreams[i].Priority] = 1
	}
	next := 0
	for i, has := range tiers {
		tiers[i] = next
		next += has
	}
	for i := range upstreams {
		upstreams[i].Priority = tiers[upstreams[i].Priority]
	}
	return upstreams
}

// errNoAnswer is the error of a session for which no upstream was discovered in time.
var errNoAnswer = fmt.Errorf("none was discovered: %w", upstream.ErrNone)

// awaits returns what is closed when there is an upstream for a session that has found none at all, nil if there is nothing to wait for.
func (h *Handler) awaits(r *roster) <-chan struct{} {
	if h.dynamic.h == nil || r.pool.Len() > 0 {
		return nil
	}
	return h.dynamic.ready
}

// await waits until there is an upstream, for up to connect_timeout, and begins the way anew. Over a reload it goes on to wait for what the next
// config knows.
func (w *way) await(ctx context.Context) error {
	timeout := time.NewTimer(w.h.limits.Connect)
	defer timeout.Stop()
	for h := w.h; w.awaits != nil; {
		select {
		case <-w.awaits:
		case <-timeout.C:
			return errNoAnswer
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		before := h
		h = w.h.latest()
		w.follow(h.rosters.now.Load())
		w.awaits = nil
		if h != before {
			w.awaits = h.awaits(w.roster)
		}
	}
	return nil
}

// leaving are the upstreams that have gone from a handler and may still have sessions of it.
type leaving struct {
	h     *Handler
	mu    sync.Mutex
	since map[string]time.Time
	timer *time.Timer // nil while none has gone
}

// maxLeaving bounds them: the sessions of the others end at once.
const maxLeaving = 4 * discovery.MaxEntries

func (l *leaving) begin(h *Handler) { l.h, l.since = h, make(map[string]time.Time) }

// change is called when other upstreams are given than before.
func (l *leaving) change(before, now map[string]upstream.Upstream) {
	if l.h.drainTimeout == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	at := time.Now()
	for name := range l.since {
		if _, back := now[name]; back {
			delete(l.since, name)
		}
	}
	for name := range before {
		if _, there := now[name]; !there {
			l.since[name] = at
		}
	}
	if len(l.since) > maxLeaving {
		l.closeLocked(at)
	}
	if len(l.since) > 0 && l.timer == nil {
		l.timer = time.AfterFunc(l.h.drainTimeout, l.close)
	}
}

// close ends the sessions of those that have gone for drain_timeout.
func (l *leaving) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = nil
	l.closeLocked(time.Now().Add(-l.h.drainTimeout))
	next := time.Time{}
	for _, since := range l.since {
		if next.IsZero() || since.Before(next) {
			next = since
		}
	}
	if !next.IsZero() {
		l.timer = time.AfterFunc(max(time.Until(next.Add(l.h.drainTimeout)), time.Millisecond), l.close)
	}
}

// closeLocked ends the sessions of those that have gone until then. The sessions of UDP that earlier configs have left are among them.
func (l *leaving) closeLocked(until time.Time) {
	over := make(map[string]struct{})
	for name, since := range l.since {
		if !since.After(until) {
			over[name] = struct{}{}
			delete(l.since, name)
		}
	}
	if len(over) == 0 {
		return
	}
	session.EachLiving(func(s *session.Session) {
		if _, gone := over[s.UpstreamLabel()]; gone && (s.Of(l.h.scope) || gate.Datagrams(s.Network) && l.h.succession.has(s)) {
			s.Close(session.ReasonDrain)
		}
	})
}

var errNoSource = errors.New("expected a source: a, file, srv, url, or one that a plugin has")
