// Package placement tells a handler that is being provisioned where it stands in its config: on which listeners, at which
// place of their routes, and whether connections get there at all.
package placement

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
)

// Place is where a handler stands in a layer4 app.
type Place struct {
	Network, Listener string // as a session has them
	// Path leads to the handler from its server.
	Path string
	// Always tells that every connection of the listener comes by.
	Always bool
}

// Places returns where a handler stands that is being provisioned, and all others of the config with the same JSON, as
// [caddyfile.CanonicalJSON] has it. Outside a layer4 app, as in front of an HTTP site, there are none.
func Places(ctx caddy.Context, name, canonical string) []Place {
	return findingOf(ctx, name, canonical).places
}

// Listens returns the addresses that the servers listen on in which such a handler stands: those of the one that is being
// provisioned are among them.
func Listens(ctx caddy.Context, name, canonical string) []caddy.NetworkAddress {
	return findingOf(ctx, name, canonical).listen
}

// Check returns an error for a handler that is being provisioned where no connection gets to it, or past it to the handler
// behind it, because of a handler that ends the route. It holds in front of HTTP sites, too.
//
// It returns an error for any listen address of the app that can't be right, too: layer4 itself does not look at them before the app
// starts, which is too late for `caddy validate`.
func Check(ctx caddy.Context, name, canonical string) error {
	if l := layoutOf(ctx); l != nil && l.invalid != "" {
		return errors.New(l.invalid)
	}
	if l := layoutOf(ctx); l != nil && l.listen != nil {
		return l.listen
	}
	if wrong := findingOf(ctx, name, canonical).wrong; wrong != "" {
		return errors.New(wrong)
	}
	return nil
}

// CheckGuard is [Check] for a handler that judges clients by their address. It returns an error where caddy-l4's handler
// proxy_protocol may have named the client, unless the config trusts that; and in front of an HTTP site where Caddy
// serves the site over HTTP/3 as well, because no listener wrapper sees those connections.
func CheckGuard(ctx caddy.Context, name, canonical string, trust bool) error {
	if err := Check(ctx, name, canonical); err != nil {
		return err
	}
	if proxied := findingOf(ctx, name, canonical).proxied; proxied != "" && !trust {
		return errProxied(proxied)
	}
	if l := layoutOf(ctx); l != nil && l.several != "" && !trust {
		return errProxied(l.several)
	}
	if site := siteOf(ctx); site != nil && findingOf(ctx, name, canonical).leadsOn {
		return site.checkHTTP3(name)
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

// finding is where all handlers with one name and JSON stand.
type finding struct {
	places  []Place
	listen  []caddy.NetworkAddress
	last    *layer4.Server // of listen
	wrong   string         // what is wrong with their order, see standing
	leadsOn bool           // connections that one of them passes on may leave the routes
	proxied string         // see standing
}

// layout is what is known of the handlers of one layer4 app or listener wrapper, while its config lives.
type layout struct {
	once    sync.Once
	found   map[string]*finding // by findKey
	proxied map[string]string   // of matchers, see order
	several string              // see noteSeveral
	invalid string              // says where null is in place of a route, about which layer4 panics, or where an option is written twice
	listen  error               // what is wrong with a listen address
}

// layouts are found by their *layer4.App or *layer4.ListenerWrapper. Each goes with its config.
var layouts sync.Map

// layoutOf returns the layout of what is being provisioned, nil outside of layer4.
func layoutOf(ctx caddy.Context) *layout {
	root := rootOf(ctx)
	if root == nil {
		return nil
	}
	known, loaded := layouts.LoadOrStore(root, &layout{found: make(map[string]*finding), proxied: make(map[string]string)})
	if !loaded {
		context.AfterFunc(ctx, func() { layouts.Delete(root) })
	}
	l := known.(*layout)
	l.once.Do(func() { l.note(ctx, root) })
	return l
}

func findingOf(ctx caddy.Context, name, canonical string) finding {
	l := layoutOf(ctx)
	if l == nil {
		return finding{}
	}
	if f := l.found[findKey(name, canonical)]; f != nil {
		return finding{slices.Clone(f.places), slices.Clone(f.listen), nil, f.wrong, f.leadsOn, f.proxied}
	}
	return finding{}
}

// rootOf returns what has the routes that are being provisioned: the layer4 app, or a listener wrapper.
func rootOf(ctx caddy.Context) caddy.Module {
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
	app, _ := rootOf(ctx).(*layer4.App)
	return app
}

// note remembers where all handlers stand.
func (l *layout) note(ctx caddy.Context, root caddy.Module) {
	switch root := root.(type) {
	case *layer4.App:
		l.listen = checkListen(root)
		for _, name := range slices.Sorted(maps.Keys(root.Servers)) {
			if server := root.Servers[name]; server != nil {
				l.noteRoutes(server, fmt.Sprintf("layer4 server %q", name), writtenRoutes(ctx, name, server))
			}
		}
	case *layer4.ListenerWrapper:
		where, routes := "layer4 listener wrapper", root.Routes
		if site := siteOf(ctx); site != nil {
			where = fmt.Sprintf("listener wrapper of http server %q", site.server.Name())
			all := writtenWrappers(ctx, site.server.Name())
			if len(all) == 1 && len(all[0]) == len(routes) {
				routes = all[0]
			}
			l.noteSeveral(where, all)
		}
		l.noteRoutes(nil, where, routes)
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

// noteRoutes remembers where the handlers of a server stand, which is nil for a listener wrapper.
func (l *layout) noteRoutes(server *layer4.Server, where string, routes layer4.RouteList) {
	order := orderOf(where, routes)
	maps.Copy(l.proxied, order.proxied)
	for i, route := range routes {
		if route == nil {
			l.invalid = fmt.Sprintf(`%s route %d: "null": expected a route`, where, i)
			continue
		}
		always := i == 0 && len(route.MatcherSetsRaw) == 0 && Unconditional(route, 0)
		for j, raw := range route.HandlersRaw {
			var document any
			if json.Unmarshal(raw, &document) != nil {
				continue // not to be loaded either
			}
			walk(document, fmt.Sprintf("%d/%d", i, j), func(path string, handler map[string]any) {
				if one, other, found := sameOption(handler); found {
					l.invalid = fmt.Sprintf("%s route %d: both %q and %q in one object: expected one of them", where, i, one, other)
				}
				if f := l.of(handler); f != nil {
					f.note(server, path, always && strings.Count(path, "/") == 1)
					f.stands(order.of[path])
				}
			})
		}
	}
}

// of returns the finding of a handler, nil where the object is none.
func (l *layout) of(handler map[string]any) *finding {
	name, _ := handler["handler"].(string)
	canonical, ok := canonicalOf(handler)
	if name == "" || !ok {
		return nil
	}
	key := findKey(name, canonical)
	f := l.found[key]
	if f == nil {
		f = new(finding)
		l.found[key] = f
	}
	return f
}

func (f *finding) stands(s standing) {
	if f.wrong == "" {
		f.wrong = s.wrong
	}
	if f.proxied == "" {
		f.proxied = s.proxied
	}
	f.leadsOn = f.leadsOn || !s.ended
}

// note adds the listen addresses of the server.
func (f *finding) note(server *layer4.Server, path string, always bool) {
	if server == nil {
		return
	}
	repl := caddy.NewReplacer()
	for _, listen := range server.Listen {
		addr, err := caddy.ParseNetworkAddress(repl.ReplaceAll(listen, ""))
		if err != nil {
			continue // the server's to refuse
		}
		f.places = append(f.places, placesOf(addr, path, always)...)
		if server != f.last {
			f.listen = append(f.listen, addr)
		}
	}
	f.last = server
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

// findKey is short, because a handler's JSON may have long lists.
func findKey(name, canonical string) string {
	sum := sha256.Sum256([]byte(name + " " + canonical))
	return string(sum[:])
}

// walk visits every object below the document. In paths the options that lead to handlers are written as [options] are.
func walk(document any, path string, visit func(path string, object map[string]any)) {
	switch node := document.(type) {
	case []any:
		for i, child := range node {
			walk(child, fmt.Sprintf("%s/%d", path, i), visit)
		}
	case map[string]any:
		visit(path, node)
		for name, child := range node {
			walk(child, path+"/"+optionOf(name), visit)
		}
	}
}

func canonicalOf(handler map[string]any) (canonical string, ok bool) {
	raw, err := json.Marshal(handler)
	if err != nil {
		return "", false
	}
	canonical, err = caddyfile.CanonicalJSON(raw, "handler")
	return canonical, err == nil
}

// placesOf returns one place for each port of an address that a server listens on.
func placesOf(addr caddy.NetworkAddress, path string, always bool) (places []Place) {
	for offset := range addr.PortRangeSize() {
		network, listener := gate.SessionOf(addr, offset)
		places = append(places, Place{network, listener, path, always})
	}
	return places
}
