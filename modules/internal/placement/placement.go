// Package placement tells a handler that is being provisioned where it stands in its config: on which listeners, and at
// which place of their routes.
package placement

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
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

// finding is where all handlers with one name and JSON stand.
type finding struct {
	places []Place
	listen []caddy.NetworkAddress
	last   *layer4.Server // of listen
}

// layout is what is known of the handlers of one layer4 app, while its config lives.
type layout struct {
	mu    sync.Mutex
	noted map[*layer4.Route]bool // those whose handlers are in found
	found map[string]*finding    // by findKey
}

// layouts are found by their *layer4.App. Each goes with its config.
var layouts sync.Map

func findingOf(ctx caddy.Context, name, canonical string) finding {
	app := AppOf(ctx)
	if app == nil {
		return finding{}
	}
	known, loaded := layouts.LoadOrStore(app, &layout{
		noted: make(map[*layer4.Route]bool),
		found: make(map[string]*finding),
	})
	if !loaded {
		context.AfterFunc(ctx, func() { layouts.Delete(app) })
	}
	l := known.(*layout)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, server := range app.Servers {
		for i, route := range server.Routes {
			l.note(server, i, route)
		}
	}
	if f := l.found[findKey(name, canonical)]; f != nil {
		return finding{places: slices.Clone(f.places), listen: slices.Clone(f.listen)}
	}
	return finding{}
}

// AppOf returns the layer4 app that is being provisioned, nil for a handler in front of an HTTP site.
func AppOf(ctx caddy.Context) *layer4.App {
	for _, module := range ctx.Modules() {
		if app, ok := module.(*layer4.App); ok {
			return app
		}
	}
	return nil
}

// note remembers where the handlers of a route stand. Their JSON is there until the last of them has been
// provisioned, so the first one that asks finds all that are to ask.
func (l *layout) note(server *layer4.Server, i int, route *layer4.Route) {
	if len(route.HandlersRaw) == 0 || l.noted[route] {
		return
	}
	l.noted[route] = true
	always := i == 0 && len(route.MatcherSetsRaw) == 0 && Unconditional(route, 0)
	for j, raw := range route.HandlersRaw {
		var document any
		if json.Unmarshal(raw, &document) != nil {
			continue // not to be loaded either
		}
		walk(document, fmt.Sprintf("%d/%d", i, j), func(path string, handler map[string]any) {
			name, _ := handler["handler"].(string)
			canonical, ok := canonicalOf(handler)
			if name == "" || !ok {
				return
			}
			key := findKey(name, canonical)
			f := l.found[key]
			if f == nil {
				f = new(finding)
				l.found[key] = f
			}
			f.note(server, path, always && strings.Count(path, "/") == 1)
		})
	}
}

// note adds the listen addresses of the server.
func (f *finding) note(server *layer4.Server, path string, always bool) {
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
	v := reflect.ValueOf(route).Elem()
	matchers, middleware := v.FieldByName("matcherSets"), v.FieldByName("middleware")
	return matchers.Kind() == reflect.Slice && matchers.Len() == 0 &&
		middleware.Kind() == reflect.Slice && middleware.Len() == handlers
}

// findKey is short, because a handler's JSON may have long lists.
func findKey(name, canonical string) string {
	sum := sha256.Sum256([]byte(name + " " + canonical))
	return string(sum[:])
}

// walk visits every object below the document.
func walk(document any, path string, visit func(path string, object map[string]any)) {
	switch node := document.(type) {
	case []any:
		for i, child := range node {
			walk(child, fmt.Sprintf("%s/%d", path, i), visit)
		}
	case map[string]any:
		visit(path, node)
		for name, child := range node {
			walk(child, path+"/"+name, visit)
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
