// Package fastpath finds the listeners whose connections need no layer4 connection.
//
// A server may have a single route without matchers, with handlers that are all [Step]s. Then the listener serves a
// connection where it accepts it, without the goroutine, the buffer, the variables and the placeholders that layer4 gives
// each connection. The handlers do the same as in layer4's chain, by the same code.
package fastpath

import (
	"context"
	"encoding/json"
	"net"
	"strconv"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/caddyfile"
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

// plan is what is known of the handlers of one layer4 app, while its config lives.
type plan struct {
	mu     sync.Mutex
	routes map[*layer4.Server][]string // the keys of the handlers of its first route
	steps  map[string]Step             // by key
}

// plans are found by their *layer4.App. Each goes with its config.
var plans sync.Map

// Offer is called in Provision by a handler that is a Step in this config, with the JSON it was made of, as
// [caddyfile.CanonicalJSON] has it. Handlers with the same JSON do the same.
func Offer(ctx caddy.Context, canonical string, step Step) {
	if p := planOf(ctx); p != nil {
		defer p.mu.Unlock()
		p.steps[key(step.CaddyModule().ID.Name(), canonical)] = step
	}
}

// planOf returns the plan of the config, locked, with what there is to know now. It returns nil in front of an HTTP site.
func planOf(ctx caddy.Context) *plan {
	app := placement.AppOf(ctx)
	if app == nil {
		return nil
	}
	known, loaded := plans.LoadOrStore(app, &plan{
		routes: make(map[*layer4.Server][]string),
		steps:  make(map[string]Step),
	})
	if !loaded {
		context.AfterFunc(ctx, func() { plans.Delete(app) })
	}
	p := known.(*plan)
	p.mu.Lock()
	for _, server := range app.Servers {
		p.note(server)
	}
	return p
}

// note remembers the handlers of a server's first route, whose JSON is there until the last of them has been
// provisioned.
func (p *plan) note(server *layer4.Server) {
	if len(server.Routes) == 0 || len(server.Routes[0].HandlersRaw) == 0 || p.routes[server] != nil {
		return
	}
	for _, raw := range server.Routes[0].HandlersRaw {
		p.routes[server] = append(p.routes[server], keyOf(raw))
	}
}

// keyOf returns what a plan knows a handler by: its name and its JSON.
func keyOf(raw json.RawMessage) string {
	var module struct {
		Name string `json:"handler"`
	}
	canonical, err := caddyfile.CanonicalJSON(raw, "handler")
	if err != nil || json.Unmarshal(raw, &module) != nil {
		return "" // no step's
	}
	return key(module.Name, canonical)
}

func key(name, canonical string) string { return name + " " + canonical }

// Steps returns the steps that serve the connections of a listener, nil where layer4 has to. It is called when the
// config starts, with the context that the listener is opened with, its network, and its address as [gate.Listener] has it.
//
// Where layer4 logs each connection, at the level DEBUG, it has to serve them.
func Steps(ctx context.Context, network, address string) []Step {
	app, server := serverOf(ctx, network, address)
	if server == nil || ctx.(caddy.Context).Logger(app).Core().Enabled(zap.DebugLevel) {
		return nil
	}
	return stepsOf(app, server)
}

// Routed tells whether a server of layer4 listens there. It is called as Steps is.
func Routed(ctx context.Context, network, address string) bool {
	_, server := serverOf(ctx, network, address)
	return server != nil
}

// serverOf returns the layer4 app and its server that listens there, nil where there is none.
func serverOf(ctx context.Context, network, address string) (*layer4.App, *layer4.Server) {
	config, ok := ctx.(caddy.Context)
	if !ok {
		return nil, nil
	}
	configured, err := config.AppIfConfigured("layer4")
	if err != nil {
		return nil, nil
	}
	app, ok := configured.(*layer4.App)
	if !ok {
		return nil, nil
	}
	for _, server := range app.Servers {
		if listens(server, network, address) {
			return app, server
		}
	}
	return nil, nil
}

func listens(server *layer4.Server, network, address string) bool {
	n, _ := gate.Parse(network)
	repl := caddy.NewReplacer()
	for _, listen := range server.Listen {
		addr, err := caddy.ParseNetworkAddress(repl.ReplaceAll(listen, ""))
		if err != nil || addr.Network != network {
			continue
		}
		if offset, ok := offsetOf(n, addr, address); ok && gate.Listener(n, addr, offset) == address {
			return true
		}
	}
	return false
}

// offsetOf returns which port of a range an address has. It does not go through them: it is called for each port of the range.
func offsetOf(n gate.Network, addr caddy.NetworkAddress, address string) (offset uint, ok bool) {
	if n.Inherited {
		return 0, true
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, false
	}
	number, err := strconv.ParseUint(port, 10, 16)
	return uint(number) - addr.StartPort, err == nil && uint(number) >= addr.StartPort && uint(number) <= addr.EndPort
}

func stepsOf(app *layer4.App, server *layer4.Server) []Step {
	known, ok := plans.Load(app)
	if !ok {
		return nil
	}
	p := known.(*plan)
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
