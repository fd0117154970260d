// Package placement tells a handler that is being provisioned where it stands in its config: on which listeners, at which
// place of their routes, and whether connections get there at all.
package placement

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"

	"github.com/portgate/caddy-portgate/caddyfile"
)

// Find returns where a handler stands that is being provisioned, and all others of the config with its name and the same JSON. written is the
// JSON that it was made of, in any layout.
func Find(ctx caddy.Context, name, written string) *Finding {
	var found map[identity]*Finding
	if l := layoutOf(ctx); l != nil {
		found = l.found
	}
	is := identity{name, written}
	if f := found[is]; f != nil { // Caddy has encoded it as it is encoded here
		return f
	}
	if canonical, err := caddyfile.CanonicalJSON([]byte(written)); err == nil {
		is.canonical = canonical
	}
	if f := found[is]; f != nil {
		return f
	}
	return &Finding{identity: is}
}

// Check returns an error for a handler that is being provisioned where no connection gets to it, or past it to the handler
// behind it, because of a handler that ends the route. It holds in front of HTTP sites, too.
//
// It returns an error for any listen address of the app that can't be right, too: layer4 itself does not look at them before the app
// starts, which is too late for `caddy validate`.
func Check(ctx caddy.Context, f *Finding) error {
	if l := layoutOf(ctx); l != nil && l.invalid != "" {
		return errors.New(l.invalid)
	}
	if l := layoutOf(ctx); l != nil && l.listen != nil {
		return l.listen
	}
	if f.wrong != "" {
		return errors.New(f.wrong)
	}
	return nil
}

// CheckGuard is [Check] for a handler that judges clients by their address. It returns an error where caddy-l4's handler
// proxy_protocol may have named the client, unless the config trusts that; and in front of an HTTP site where Caddy
// serves the site over HTTP/3 as well, because no listener wrapper sees those connections.
func CheckGuard(ctx caddy.Context, f *Finding, trust bool) error {
	if err := Check(ctx, f); err != nil {
		return err
	}
	if f.proxied != "" && !trust {
		return errProxied(f.proxied)
	}
	if l := layoutOf(ctx); l != nil && l.several != "" && !trust {
		return errProxied(l.several)
	}
	if site := siteOf(ctx); site != nil && f.leadsOn {
		return site.checkHTTP3(f.name)
	}
	return nil
}

// CheckMatcher is the part of [CheckGuard] about proxy_protocol for matchers with this name.
func CheckMatcher(ctx caddy.Context, name string, trust bool) error {
	l := layoutOf(ctx)
	if l == nil || trust {
		return nil
	}
	if l.invalid != "" {
		return errors.New(l.invalid)
	}
	if where := cmp.Or(l.proxied[name], l.several); where != "" {
		return errProxied(where)
	}
	return nil
}

func errProxied(where string) error {
	return fmt.Errorf("%s, which believes anybody who sends a PROXY protocol header: expected accept_proxy in its place, or the "+
		"option trust_layer4_proxy_protocol", where)
}

// layout is what is known of the handlers of one layer4 app or listener wrapper, while its config lives.
type layout struct {
	once    sync.Once
	found   map[identity]*Finding
	first   map[*layer4.Server][]*Finding // of the handlers of the first route; nil for what is no handler
	proxied map[string]string             // of matchers, see order
	several string                        // see noteSeveral
	invalid string                        // says where null is in place of a route, about which layer4 panics, or where an option is written twice
	listen  error                         // what is wrong with a listen address
}

func newLayout() *layout {
	return &layout{
		found: make(map[identity]*Finding), first: make(map[*layer4.Server][]*Finding), proxied: make(map[string]string),
	}
}

// layouts has what is known of a config, by the *layer4.App, *layer4.ListenerWrapper or *caddyhttp.App that it is about. It goes with
// its config.
var layouts sync.Map

// ofConfig returns what is known about a module of a config, which create makes the first time.
func ofConfig[T any](ctx caddy.Context, about caddy.Module, create func() T) T {
	known, loaded := layouts.Load(about)
	if !loaded {
		if known, loaded = layouts.LoadOrStore(about, create()); !loaded {
			context.AfterFunc(ctx, func() { layouts.Delete(about) })
		}
	}
	return known.(T)
}

// layoutOf returns the layout of what is being provisioned, nil outside of layer4.
func layoutOf(ctx caddy.Context) *layout {
	root := RootOf(ctx)
	if root == nil {
		return nil
	}
	l := ofConfig(ctx, root, newLayout)
	l.once.Do(func() { l.note(ctx, root) })
	return l
}

// FirstRoutes returns what stands in the first route of each server of the app that is being provisioned, nil outside of it: a handler
// that is not to be found is nil.
func FirstRoutes(ctx caddy.Context) map[*layer4.Server][]*Finding {
	if l := layoutOf(ctx); l != nil {
		return l.first
	}
	return nil
}

// RootOf returns what has the routes that are being provisioned: the layer4 app, or a listener wrapper.
func RootOf(ctx caddy.Context) caddy.Module {
	for _, module := range ctx.Modules() {
		switch module.(type) {
		case *layer4.App, *layer4.ListenerWrapper:
			return module
		}
	}
	return nil
}

// AppOf returns the layer4 app that is being provisioned, nil for a handler in front of an HTTP site.
func AppOf(ctx caddy.Context) *layer4.App {
	app, _ := RootOf(ctx).(*layer4.App)
	return app
}

// note remembers where all handlers stand.
func (l *layout) note(ctx caddy.Context, root caddy.Module) {
	switch root := root.(type) {
	case *layer4.App:
		l.noteServers(root, writtenServers(ctx))
	case *layer4.ListenerWrapper:
		where, routes := "layer4 listener wrapper", root.Routes
		if site := siteOf(ctx); site != nil {
			where = fmt.Sprintf("listener wrapper of http server %q", site.server.Name())
			all := site.writtenWrappers(ctx)
			if len(all) == 1 && len(all[0]) == len(routes) {
				routes = all[0]
			}
			l.noteSeveral(where, all)
		}
		l.noteRoutes(0, nil, where, routes)
	}
}

// noteSeveral remembers that one of several wrappers of a site has proxy_protocol. It may stand before the one that is being
// provisioned.
func (l *layout) noteSeveral(where string, all []layer4.RouteList) {
	if len(all) < 2 {
		return
	}
	for _, routes := range all {
		for _, route := range routes {
			var document any
			if raw, err := json.Marshal(route); err != nil || json.Unmarshal(raw, &document) != nil {
				continue
			}
			walk(document, "", func(_ string, handler map[string]any) {
				if nameOf(handler) == proxyProtocol {
					l.several = where + ": one of its several layer4 wrappers has caddy-l4's " + proxyProtocol
				}
			})
		}
	}
}

// noteServers remembers where the handlers of all servers stand. written are their routes as they were written; where they are not to
// be found, those that a server has now are taken.
func (l *layout) noteServers(app *layer4.App, written map[string]layer4.RouteList) {
	repl := caddy.NewReplacer()
	all := make([]listening, 0, len(app.Servers))
	for number, name := range slices.Sorted(maps.Keys(app.Servers)) {
		server := app.Servers[name]
		if server == nil {
			continue
		}
		listen := listeningOf(repl, name, server)
		routes := written[name]
		if len(routes) != len(server.Routes) {
			routes = server.Routes
		}
		l.first[server] = l.noteRoutes(number, listen, fmt.Sprintf("layer4 server %q", name), routes)
		all = append(all, listen...)
	}
	l.listen = checkListen(all)
}

// noteRoutes remembers where the handlers of a server stand, and returns the findings of its first route. A listener wrapper has no listen
// addresses.
func (l *layout) noteRoutes(server int, listen []listening, where string, routes layer4.RouteList) (first []*Finding) {
	decoded := decode(routes)
	order := orderOf(where, decoded)
	maps.Copy(l.proxied, order.proxied)
	for i, route := range routes {
		if route == nil {
			l.invalid = fmt.Sprintf(`%s route %d: "null": expected a route`, where, i)
			continue
		}
		always := i == 0 && len(route.MatcherSetsRaw) == 0 && Unconditional(route, 0)
		for j, handler := range handlersOf(decoded[i]) {
			top := fmt.Sprintf("%d/%d", i, j)
			var found *Finding
			walk(handler, top, func(path string, handler map[string]any) {
				if one, other, both := sameOption(handler); both {
					l.invalid = fmt.Sprintf("%s route %d: both %q and %q in one object: expected one of them", where, i, one, other)
				}
				f := l.of(handler)
				if f == nil {
					return
				}
				f.add(server, listen, path, always && path == top)
				f.standsAs(order.of[path])
				if path == top {
					found = f
				}
			})
			if i == 0 {
				first = append(first, found)
			}
		}
	}
	return first
}

// of returns the finding of a handler, nil where the object is none.
func (l *layout) of(handler map[string]any) *Finding {
	name := nameOf(handler)
	if name == "" {
		return nil
	}
	canonical, ok := canonicalOf(handler)
	if !ok {
		return nil
	}
	is := identity{name, canonical}
	f := l.found[is]
	if f == nil {
		f = &Finding{identity: is}
		l.found[is] = f
	}
	return f
}

// Unconditional reports whether a route that is provisioned has no matchers, and this many handlers. layer4 keeps them to
// itself; where it has other names for them than these, no route is taken for unconditional.
func Unconditional(route *layer4.Route, handlers int) bool {
	middleware := reflect.ValueOf(route).Elem().FieldByName("middleware")
	return unmatched(route) && middleware.Kind() == reflect.Slice && middleware.Len() == handlers
}

// unmatched reports whether no matchers of a route have been provisioned.
func unmatched(route *layer4.Route) bool {
	matchers := reflect.ValueOf(route).Elem().FieldByName("matcherSets")
	return matchers.Kind() == reflect.Slice && matchers.Len() == 0
}

// walk visits every object below the document. In paths the options that lead to handlers are written as [options] are.
func walk(document any, path string, visit func(path string, object map[string]any)) {
	switch node := document.(type) {
	case []any:
		for i, child := range node {
			if hasObjects(child) {
				walk(child, path+"/"+strconv.Itoa(i), visit)
			}
		}
	case map[string]any:
		visit(path, node)
		for name, child := range node {
			if hasObjects(child) {
				walk(child, path+"/"+optionOf(name), visit)
			}
		}
	}
}

// hasObjects reports whether there may be an object in a value. A list of addresses has thousands that are none.
func hasObjects(value any) bool {
	switch value.(type) {
	case []any, map[string]any:
		return true
	}
	return false
}

// canonicalOf is [caddyfile.CanonicalJSON] of a handler that is decoded already, without its name.
func canonicalOf(handler map[string]any) (canonical string, ok bool) {
	name := handler["handler"]
	delete(handler, "handler")
	raw, err := json.Marshal(handler)
	handler["handler"] = name
	return string(raw), err == nil
}
