package forward

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/mholt/caddy-l4/layer4"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// way is how a session gets to its upstream: its walk, and the roster that the walk goes through. It is one object, because each session
// needs one until it is connected.
type way struct {
	upstream.Walk
	h      *Handler
	sess   *session.Session
	roster *roster
	given  net.Addr        // by next
	awaits <-chan struct{} // closed when there is an upstream at all; nil where there is
	wait   *waiting        // nil where the session does not wait until one may have it
}

// spareWays has those of sessions of datagrams that have an upstream.
var spareWays = sync.Pool{New: func() any { return new(way) }}

// over gives back a way that nobody goes any more.
func (w *way) over() {
	if w.wait == nil { // which others know
		*w = way{}
		spareWays.Put(w)
	}
}

// way begins a session's way through the upstreams of a roster. accepted is its connection as the listener gave it.
func (h *Handler) way(sess *session.Session, accepted net.Conn, roster *roster) *way {
	w := spareWays.Get().(*way)
	w.h, w.sess, w.awaits = h, sess, h.awaits(roster)
	w.follow(roster)
	if h.queue != nil || h.tryDuration > 0 {
		w.wait = &waiting{way: w}
	}
	w.Retries = h.retries
	w.Datagrams = gate.Datagrams(sess.Network)
	if h.ports != nil {
		w.Offset = offset(accepted, h.ports)
	}
	if h.balance.Method == upstream.IPHash && sess.Client.IsValid() {
		w.Key, w.Keyed = upstream.HashIP(sess.Client.Addr()), true
	}
	return w
}

// follow has the way go through the upstreams of a roster, from the start.
func (w *way) follow(roster *roster) {
	w.roster = roster
	w.Restart(roster.pool)
	if !roster.pool.Fixed() && w.Unresolved == nil {
		w.Unresolved = func(name string, _ error) { w.h.watch.unresolved(w.sess, name) }
		w.LookupTimeout, w.Stale = w.h.limits.Connect, w.h.stale
	}
	if roster.pool.Limited() && w.Reserve == nil {
		w.Reserve = func(position int, most int64) bool { return w.sess.Reserve(w.roster.counts[position], most) }
	}
}

// expandedBy has the placeholders of a connection stand for what they are there.
func (w *way) expandedBy(cx *layer4.Connection) *way {
	w.Expand = func(name string) string { return cx.Replacer().ReplaceAll(name, "") }
	if w.h.balance.Method == upstream.Hash {
		value := w.Expand(w.h.balance.Value)
		w.Key, w.Keyed = upstream.HashString(value), value != ""
	}
	return w
}

// Ready is that of the walk, where there is an upstream at all.
func (w *way) Ready() bool { return w.awaits == nil && w.Walk.Ready() }

// next implements Next of a relay of streams.
func (w *way) next(ctx context.Context, failed error) (net.Addr, error) {
	addr, err := w.find(ctx, failed)
	w.given = addr
	if failed == nil {
		w.h.watch.chosen(w.sess, &w.Walk)
	}
	w.roster.count(w.sess, &w.Walk, addr)
	return addr, err
}

// attempted implements Attempt of a relay of streams.
func (w *way) attempted(addr net.Addr, took time.Duration, err error) {
	name, _ := w.Current()
	if err != nil {
		w.sess.DialFailed(name, took)
		w.Trials.Failed(addr, took, err)
	} else {
		w.Trials.Connected(addr, took)
		if addr != w.given {
			w.roster.count(w.sess, &w.Walk, addr) // another one was faster
		}
		w.Source().Works(addr)
		w.roster.closesFor(w.h).has(w.sess, addr)
		w.sess.Dialed(took)
	}
	w.h.watch.attempted(w.sess, name, addr, err)
}
