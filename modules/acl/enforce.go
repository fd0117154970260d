package acl

import (
	"context"
	"net/netip"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/placement"
	"github.com/portgate/caddy-portgate/modules/internal/recheck"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// enforcePause is the least time between two rounds through all living sessions.
const enforcePause = 100 * time.Millisecond

// gate closes living sessions whose client is denied when a list has changed or a config was replaced. The zero gate
// leaves them alone.
type gate struct {
	*recheck.Admission // apart, because sessions keep it, and should not keep all of a config that was replaced
	rules              *rules
	places             []placement.Place
	names              []string // of the places
	running            func() bool

	due    chan struct{}
	stop   context.CancelFunc
	closed chan struct{}
}

// open begins to watch the lists.
func (g *gate) open(ctx caddy.Context, rs *rules, places []placement.Place) {
	g.Admission, g.rules, g.places = new(recheck.Admission), rs, places
	for _, place := range places {
		g.names = append(g.names, place.Path)
	}
	// A config that is rejected is never the running one, and a handler is told neither. The metrics registry tells them
	// apart: each config has its own.
	registry := ctx.GetMetricsRegistry()
	g.running = func() bool {
		active := caddy.ActiveContext()
		return active.GetMetricsRegistry() == registry
	}
	g.due, g.closed = make(chan struct{}, 1), make(chan struct{})
	var background context.Context
	background, g.stop = context.WithCancel(context.Background())
	end := recheck.Watch(g.due)
	for _, r := range rs.all {
		r.list.watch(g.due)
	}
	go func() {
		defer close(g.closed)
		defer end()
		g.watch(background)
	}()
}

// close ends the watching. It may be called for a gate that was not opened.
func (g *gate) close() {
	if g.stop == nil {
		return
	}
	g.stop()
	<-g.closed
	for _, r := range g.rules.all {
		r.list.unwatch(g.due)
	}
	g.Changed() // what was let through and has not begun is for the next config to judge
	g.stop = nil
}

func (g *gate) watch(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-g.due:
		}
		g.enforce()
		pause.Reset(enforcePause)
	}
}

// edition is to be read before a client is judged.
func (g *gate) edition() int64 {
	if g.Admission == nil {
		return 0
	}
	return g.Edition()
}

// letThrough notes that the client was judged in this edition.
func (g *gate) letThrough(a *session.Arrival, edition int64) {
	if g.Admission != nil {
		a.Admit(recheck.Pass{Admission: g.Admission, Edition: edition, Client: a.Client.Addr(), Places: g.names})
	}
}

// enforce closes the sessions of clients that are denied now.
func (g *gate) enforce() {
	g.Changed()
	running := g.running()
	for _, s := range session.Living() {
		client, mine := g.governs(s, running)
		if !mine {
			continue
		}
		if r := g.rules.judge(client); !r.allow {
			s.SetRule(r.label)
			s.Close(session.ReasonListChanged)
		}
	}
}

// governs tells whether the session is this gate's to close, and which address decides. It is if it has passed this
// gate. One that was let through by a config which was replaced since is, where it is on a listener of this gate and
// has passed a gate that stood in the same place, or would have passed this one in any case.
func (g *gate) governs(s *session.Session, running bool) (client netip.Addr, mine bool) {
	for _, pass := range s.Passes() {
		if pass.Admission == g.Admission {
			return pass.Client, true
		}
	}
	if !running || !s.Replaced() {
		return netip.Addr{}, false
	}
	for _, place := range g.places {
		if place.Network != s.Network || place.Listener != s.Listener {
			continue
		}
		for _, pass := range s.Passes() {
			for _, path := range pass.Places {
				if path == place.Path {
					return pass.Client, true
				}
			}
		}
		if place.Always {
			return s.Client.Addr(), true
		}
	}
	return netip.Addr{}, false
}
