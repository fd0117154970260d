package acl

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
	"github.com/portgate/caddy-portgate/modules/internal/recheck"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

const (
	// enforcePause is the least time between two looks at living sessions.
	enforcePause = 100 * time.Millisecond
	// maxChanges is how many changed prefixes are looked up one by one. Where there are more, all sessions are looked at.
	maxChanges = 4096
)

// enforced is an acl that closes living sessions whose client it denies when a list has changed or a config was
// replaced. The zero value leaves them alone.
type enforced struct {
	*recheck.Admission // apart, because sessions keep it, and should not keep all of a config that was replaced
	rules              *rules
	places             *placement.Finding
	names              []string // of the places
	running            func() bool
}

// open begins to watch the lists.
func (g *enforced) open(ctx caddy.Context, rs *rules, places *placement.Finding) {
	g.Admission, g.rules, g.places = new(recheck.Admission), rs, places
	g.names, _ = placement.Shared(places, func(places *placement.Finding) ([]string, error) { return places.Paths(), nil })
	// A handler can't ask whether its config is the running one; a rejected config never is. Each config has a metrics
	// registry of its own, so that shows it.
	registry := ctx.GetMetricsRegistry()
	g.running = func() bool {
		active := caddy.ActiveContext()
		return active.GetMetricsRegistry() == registry
	}
	enforcing.add(g)
	for _, l := range rs.lists() {
		l.watch(g.Admission)
	}
}

// close ends the watching: when it returns, the lists are not used any more. It may be called for one that was not opened.
func (g *enforced) close() {
	if g.rules == nil {
		return
	}
	for _, l := range g.rules.lists() {
		l.unwatch(g.Admission)
	}
	enforcing.remove(g)
	g.Changed() // what was admitted and has not begun is for the next config to judge
	g.rules = nil
}

// edition is to be read before a client is judged.
func (g *enforced) edition() int64 {
	if g.Admission == nil {
		return 0
	}
	return g.Edition()
}

// admit notes that the client was judged in this edition.
func (g *enforced) admit(a *session.Arrival, edition int64) {
	if g.Admission != nil {
		a.Admit(recheck.Pass{Admission: g.Admission, Edition: edition, Client: a.Client.Addr(), Places: g.names})
	}
}

// succeeds tells whether g may close a session of a config that was replaced, and which address decides: the session is on
// a listener of g, and has passed an acl that stood in the same place, or would have passed g in any case.
func (g *enforced) succeeds(s *session.Session) (client netip.Addr, ok bool) {
	for _, place := range g.places.At(s.Network, s.Listener) {
		for _, pass := range s.Passes() {
			if slices.Contains(pass.Places, place.Path) {
				return pass.Client, true
			}
		}
		if place.Always {
			return s.Client.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// deny closes the session if the client is denied now.
func (g *enforced) deny(s *session.Session, client netip.Addr) bool {
	r := g.rules.judge(client)
	if !r.allow {
		s.SetRule(r.label)
		s.Close(session.ReasonListChanged)
	}
	return !r.allow
}

// enforcer looks at living sessions for all acls: at those that a change concerns, each once, in a goroutine that is there as
// long as there is an acl.
type enforcer struct {
	round  sync.Mutex // held while sessions are judged
	acls   map[*recheck.Admission]*enforced
	end    func() // the watching for other reasons than lists
	stop   context.CancelFunc
	closed chan struct{}

	mu       sync.Mutex
	all      bool // all sessions are to be judged
	prefixes map[netip.Prefix]struct{}
	due      chan struct{}
}

var enforcing = &enforcer{
	acls:     make(map[*recheck.Admission]*enforced),
	prefixes: make(map[netip.Prefix]struct{}),
	due:      make(chan struct{}, 1),
}

func (e *enforcer) add(g *enforced) {
	e.round.Lock()
	defer e.round.Unlock()
	e.acls[g.Admission] = g
	if len(e.acls) > 1 {
		return
	}
	e.end = recheck.Watch(e)
	var ctx context.Context
	ctx, e.stop = context.WithCancel(context.Background())
	closed := make(chan struct{})
	e.closed = closed
	go func() {
		defer close(closed)
		e.enforce(ctx)
	}()
}

func (e *enforcer) remove(g *enforced) {
	e.round.Lock()
	delete(e.acls, g.Admission)
	var closed chan struct{}
	if len(e.acls) == 0 {
		e.end()
		e.stop()
		closed = e.closed
	}
	e.round.Unlock()
	if closed != nil {
		<-closed
	}
}

// RecheckAll has all sessions judged. It is part of [recheck.Watcher].
func (e *enforcer) RecheckAll() { e.request(nil) }

// RecheckClient has the sessions of a client judged. It is part of [recheck.Watcher].
func (e *enforcer) RecheckClient(client netip.Addr) {
	if client.IsValid() {
		client = client.Unmap()
		e.request([]netip.Prefix{netip.PrefixFrom(client, client.BitLen())})
	}
}

// request has the sessions of the clients in these prefixes judged; nil: all sessions. It does not wait.
func (e *enforcer) request(prefixes []netip.Prefix) {
	e.mu.Lock()
	if e.all = e.all || prefixes == nil || len(e.prefixes)+len(prefixes) > maxChanges; e.all {
		clear(e.prefixes)
	} else {
		for _, prefix := range prefixes {
			e.prefixes[prefix] = struct{}{}
		}
	}
	e.mu.Unlock()
	select {
	case e.due <- struct{}{}:
	default: // it is due already
	}
}

func (e *enforcer) enforce(ctx context.Context) {
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
		case <-e.due:
		}
		e.judgeLiving()
		pause.Reset(enforcePause)
	}
}

// judgeLiving judges the sessions that the changes since the last time concern, and returns how many these are.
func (e *enforcer) judgeLiving() int {
	e.round.Lock()
	defer e.round.Unlock()
	e.mu.Lock()
	all, prefixes := e.all, e.prefixes
	e.all, e.prefixes = false, make(map[netip.Prefix]struct{})
	e.mu.Unlock()
	j := judges{enforcer: e}
	if all {
		session.EachLiving(j.judge)
	}
	for prefix := range prefixes {
		session.EachLivingOf(prefix, j.judge)
	}
	return j.sessions
}

// judges are the acls of one round.
type judges struct {
	*enforcer
	running  *gate.Index[*enforced] // those of the running config, where they stand; made when they are needed
	sessions int                    // judged so far
}

// judge closes the session if its client is denied now by an acl that has admitted it, or by one that stands in the place
// of that since its config was replaced.
func (j *judges) judge(s *session.Session) {
	j.sessions++
	for _, pass := range s.Passes() {
		if g := j.acls[pass.Admission]; g != nil && g.deny(s, pass.Client) {
			return
		}
	}
	if !s.Replaced() {
		return
	}
	if j.running == nil {
		j.findRunning()
	}
	var last *enforced
	for _, g := range j.running.At(s.Network, s.Listener) {
		if g == last { // which stands there several times
			continue
		}
		last = g
		client, ok := g.succeeds(s)
		if !ok {
			continue
		}
		s.Index() // from now on the changes of its lists concern it
		if g.deny(s, client) {
			return
		}
	}
}

// findRunning looks at one of the acls that are alike: they stand in the same places, and judge by the same rules.
func (j *judges) findRunning() {
	j.running = new(gate.Index[*enforced])
	seen := make(map[*placement.Finding]struct{})
	for _, g := range j.acls {
		if _, alike := seen[g.places]; alike || !g.running() {
			continue
		}
		seen[g.places] = struct{}{}
		g.places.EachRange(func(network, listener string, ports uint) { j.running.Add(network, listener, ports, g) })
	}
}

// Interface guard
var _ recheck.Watcher = (*enforcer)(nil)
