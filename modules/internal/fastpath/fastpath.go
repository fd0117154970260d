// Package fastpath finds the listeners whose connections need no layer4 connection.
//
// A server may have a single route without matchers, with handlers that are all [Step]s. Then the listener serves a
// connection where it accepts it, without the goroutine, the buffer, the variables and the placeholders that layer4 gives
// each connection. The handlers do the same as in layer4's chain, by the same code.
package fastpath

import (
	"context"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// Step is a handler that can serve a connection that is only known by its addresses.
type Step interface {
	caddy.Module
	// Serve does what the handler's Handle does. It returns true where Handle would call the next handler;
	// where it returns false, the connection is its to close. It never blocks, and does not keep the arrival.
	Serve(*session.Arrival) (next bool)
}

// Waiter is a Step that may have to hear from the client before it can decide.
type Waiter interface {
	Step
	// Await is called before Serve. It returns false where there is nothing to wait for: Serve then decides. It
	// returns true where the connection is its to close; where it lets the connection through, it calls resume, before
	// it returns or later, with an arrival that is its own by then ([session.Arrival.Clone]). It never blocks.
	Await(a *session.Arrival, resume func(*session.Arrival)) (awaited bool)
}

// Serve passes the arrival through the steps. The last one takes the connection over; where none does, it is closed, and an
// entry says so in the access log of the scope, which may be nil.
func Serve(steps []Step, a *session.Arrival, scope *session.Scope) {
	for i, step := range steps {
		if waiter, ok := step.(Waiter); ok && waiter.Await(a, func(a *session.Arrival) { Serve(steps[i+1:], a, scope) }) {
			return
		}
		if !step.Serve(a) {
			return
		}
	}
	a.NoRoute(scope, 0)
	a.Close()
}

// plan is what is known of one layer4 app, while its config lives.
type plan struct {
	mu     sync.Mutex
	routes map[*layer4.Server][]*placement.Finding // the handlers of its first route; nil before the first offer
	steps  map[*placement.Finding]Step

	opens    map[*placement.Finding]bool // whether an Opener was offered
	openedAt map[string]bool             // the listen addresses that have one
	openers  gate.Index[Opener]          // by the name of a network, and the listener

	started sync.Once
	servers gate.Index[*layer4.Server] // by the name of a network, and the listener
	debug   bool                       // layer4 logs each connection
}

// plans are found by their *layer4.App. Each goes with its config.
var plans sync.Map

// Offer is called in Provision by a handler that is a Step in this config, with what placement has found of it. Handlers that share a
// finding do the same.
func Offer(ctx caddy.Context, at *placement.Finding, step Step) {
	app := placement.AppOf(ctx)
	if app == nil {
		return // in front of an HTTP site
	}
	p := planOf(ctx, app)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.routes == nil {
		p.routes = placement.FirstRoutes(ctx)
	}
	p.steps[at] = step
}

func newPlan() *plan {
	return &plan{
		steps: make(map[*placement.Finding]Step), opens: make(map[*placement.Finding]bool), openedAt: make(map[string]bool),
	}
}

func planOf(ctx context.Context, app *layer4.App) *plan {
	known, loaded := plans.Load(app)
	if !loaded {
		if known, loaded = plans.LoadOrStore(app, newPlan()); !loaded {
			context.AfterFunc(ctx, func() { plans.Delete(app) })
		}
	}
	return known.(*plan)
}

// Steps returns the steps that serve the connections of a listener, nil where layer4 has to. It is called when the
// config starts, with the context that the listener is opened with, its network, and its address as [gate.Listener] has it.
// routed tells whether a server of layer4 listens there.
//
// Where layer4 logs each connection, at the level DEBUG, it has to serve them.
func Steps(ctx context.Context, network, address string) (steps []Step, routed bool) {
	app := appOf(ctx)
	if app == nil {
		return nil, false
	}
	p := planOf(ctx, app)
	p.started.Do(func() {
		p.debug = ctx.(caddy.Context).Logger(app).Core().Enabled(zap.DebugLevel)
		p.index(app)
	})
	server, routed := p.servers.First(network, address)
	if !routed || p.debug {
		return nil, routed
	}
	return p.stepsOf(server), true
}

// appOf returns the layer4 app of a config, nil where it has none.
func appOf(ctx context.Context) *layer4.App {
	config, ok := ctx.(caddy.Context)
	if !ok {
		return nil
	}
	configured, err := config.AppIfConfigured("layer4")
	if err != nil {
		return nil
	}
	app, _ := configured.(*layer4.App)
	return app
}

// index finds out which server listens where, once for all listeners that are opened.
func (p *plan) index(app *layer4.App) {
	repl := caddy.NewReplacer()
	for _, server := range app.Servers {
		for _, listen := range server.Listen {
			addr, err := caddy.ParseNetworkAddress(repl.ReplaceAll(listen, ""))
			if err != nil {
				continue
			}
			n, _ := gate.Parse(addr.Network)
			p.servers.Add(addr.Network, gate.Listener(n, addr, 0), addr.PortRangeSize(), server)
		}
	}
}

func (p *plan) stepsOf(server *layer4.Server) []Step {
	p.mu.Lock()
	defer p.mu.Unlock()
	handlers := p.routes[server]
	if len(server.Routes) != 1 { // layer4 goes on to the next route where the last handler calls the next one
		return nil
	}
	if len(handlers) == 0 || !placement.Unconditional(server.Routes[0], len(handlers)) {
		return nil
	}
	steps := make([]Step, len(handlers))
	for i, handler := range handlers {
		if steps[i] = p.steps[handler]; steps[i] == nil {
			return nil
		}
	}
	return steps
}
