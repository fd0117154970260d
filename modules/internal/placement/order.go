package placement

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/mholt/caddy-l4/layer4"
)

// terminal are the handlers that never call the next one: Portgate's, and those of caddy-l4.
var terminal = map[string]bool{"forward": true, "proxy": true, "echo": true, "close": true, "socks5": true}

// standing is what the handlers around it make of a handler.
type standing struct {
	// wrong says why the handler, or the one behind it, is never called; empty where both are.
	wrong string
	// ended tells that no connection which the handler passes on leaves the route list: a later handler ends it.
	ended bool
	// proxied says where caddy-l4's proxy_protocol stands that may have named the client by then; empty where none does.
	proxied string
}

// proxyProtocol is caddy-l4's handler. In v0.1.2 it believes the header of anybody.
const proxyProtocol = "proxy_protocol"

// order finds out how handlers stand to each other.
type order struct {
	of map[string]standing // by the path that leads to a handler from the route list

	// proxied is the same as in standing for matchers, by their names.
	proxied map[string]string
}

// decode decodes routes whose handlers have not been provisioned yet.
func decode(routes layer4.RouteList) []any {
	list := make([]any, len(routes))
	for i, route := range routes {
		if route == nil {
			continue // layer4's to refuse
		}
		handlers := make([]any, len(route.HandlersRaw))
		for j, raw := range route.HandlersRaw {
			_ = json.Unmarshal(raw, &handlers[j]) // what is no JSON is not loaded either
		}
		matchers := make([]any, 0, 1)
		for _, set := range route.MatcherSetsRaw {
			named := make(map[string]any, len(set))
			for name, raw := range set {
				var matcher any
				_ = json.Unmarshal(raw, &matcher)
				named[name] = matcher
			}
			matchers = append(matchers, named)
		}
		if len(matchers) == 0 && !unmatched(route) {
			matchers = append(matchers, nil) // they are provisioned
		}
		list[i] = map[string]any{"match": matchers, "handle": handlers}
	}
	return list
}

// orderOf looks at routes. where names the list in errors.
func orderOf(where string, routes []any) order {
	o := order{of: make(map[string]standing), proxied: make(map[string]string)}
	o.routes(routes, "%d/%d", where, standing{})
	return o
}

// routes looks at a list of routes. path is that of a handler, by the numbers of its route and its own, and around is
// the standing of the handler that has the list. It returns what proxied is behind the list.
func (o order) routes(list []any, path, where string, around standing) (proxied string) {
	proxied = around.proxied
	first := len(list) > 0 && takesAll(list[0])
	lastEnd := lastOf(list, takesAll)
	for i, entry := range list {
		inside := around
		inside.proxied = proxied
		if first && i > 0 && inside.wrong == "" {
			inside.wrong = fmt.Sprintf("%s route %d: no connection gets here, because route 0 has no matcher and ends all: expected "+
				"a matcher in route 0, or route %d before it", where, i, i)
		}
		inside.ended = inside.ended || i < lastEnd
		here := fmt.Sprintf("%s route %d", where, i)
		route, _ := entry.(map[string]any)
		o.matchers(option(route, "match"), here, proxied)
		handlers := handlersOf(entry)
		behind := o.handlers(handlers, func(j int) string { return fmt.Sprintf(path, i, j) }, here, inside)
		if !slices.ContainsFunc(handlers, endsRoute) {
			proxied = behind // the next route may be for the same connection
		}
	}
	return proxied
}

// lastOf returns the number of the last entry that is so, -1 where none is.
func lastOf(list []any, is func(any) bool) int {
	for i := len(list) - 1; i >= 0; i-- {
		if is(list[i]) {
			return i
		}
	}
	return -1
}

func handlersOf(entry any) []any {
	route, _ := entry.(map[string]any)
	handlers, _ := option(route, "handle").([]any)
	return handlers
}

// matchers notes for the names of a route's matchers what may have named the client by then.
func (o order) matchers(match any, where, proxied string) {
	if proxied == "" {
		return
	}
	walk(match, "", func(_ string, set map[string]any) {
		for name := range set {
			o.proxied[name] = fmt.Sprintf("%s: matcher %s %s", where, name, proxied)
		}
	})
}

// handlers looks at the handlers of a route, or of a branch. It returns what proxied is behind them.
func (o order) handlers(list []any, path func(int) string, where string, around standing) (proxied string) {
	proxied = around.proxied
	last := -1 // the first one that ends the route
	lastEnd := lastOf(list, endsRoute)
	for i, entry := range list {
		handler, _ := entry.(map[string]any)
		here := around
		here.proxied = proxied
		if proxied != "" {
			here.proxied = fmt.Sprintf("%s: %s %s", where, nameOf(entry), proxied)
		}
		if last >= 0 && here.wrong == "" {
			here.wrong = wrongOrder(where, list[last], entry)
		}
		here.ended = here.ended || i < lastEnd
		if last < 0 && endsRoute(entry) {
			if last = i; i+1 < len(list) && here.wrong == "" && nameOf(entry) == "forward" {
				here.wrong = wrongOrder(where, entry, list[i+1])
			}
		}
		at := path(i)
		o.of[at] = here
		if here.proxied = proxied; nameOf(entry) == proxyProtocol && proxied == "" {
			proxied = "stands behind caddy-l4's " + proxyProtocol + " in " + where
		}
		if routes, ok := option(handler, "routes").([]any); ok {
			proxied = o.routes(routes, at+"/routes/%d/handle/%d", where+" "+nameOf(entry), here)
		}
		if branch, ok := option(handler, "branch").([]any); ok {
			here.ended = true // what leaves a branch goes nowhere
			o.handlers(branch, func(j int) string { return fmt.Sprintf("%s/branch/%d", at, j) }, where+" "+nameOf(entry), here)
		}
	}
	return proxied
}

// options are those that lead to handlers and matchers.
var options = []string{"routes", "match", "handle", "branch"}

// option returns one of these, however its name is written: whoever decodes it ignores case. Where there are several, see
// [sameOption].
func option(object map[string]any, name string) any {
	if value, ok := object[name]; ok {
		return value
	}
	for key, value := range object {
		if strings.EqualFold(key, name) {
			return value
		}
	}
	return nil
}

// optionOf returns which of these a key is, and the key itself where it is none.
func optionOf(key string) string {
	for _, name := range options {
		if strings.EqualFold(key, name) {
			return name
		}
	}
	return key
}

// sameOption returns two keys of an object that are the same option, of which decoding makes a mixture.
func sameOption(object map[string]any) (one, other string, found bool) {
	for _, name := range options {
		var keys []string
		for key := range object {
			if strings.EqualFold(key, name) {
				keys = append(keys, key)
			}
		}
		if len(keys) > 1 {
			slices.Sort(keys)
			return keys[0], keys[1], true
		}
	}
	return "", "", false
}

func wrongOrder(where string, ends, behind any) string {
	one, other := nameOf(ends), nameOf(behind)
	expected := fmt.Sprintf("%s before %s", other, one)
	switch {
	case one == "forward" && other == "forward":
		expected = "one forward with all upstreams"
	case one == other:
		expected = "one of them"
	}
	return fmt.Sprintf("%s: %s stands behind %s, which ends the route: expected %s", where, other, one, expected)
}

// nameOf returns the name of a handler. Caddy looks it up by the key as it is here, in no other case.
func nameOf(handler any) string {
	object, _ := handler.(map[string]any)
	name, _ := object["handler"].(string)
	return name
}

// endsRoute reports whether a handler never calls the next one.
func endsRoute(handler any) bool {
	if terminal[nameOf(handler)] {
		return true
	}
	object, _ := handler.(map[string]any)
	routes, _ := option(object, "routes").([]any)
	return len(routes) > 0 && takesAll(routes[0])
}

// takesAll reports whether no connection comes past a route. It has no matchers, and a handler that ends it.
func takesAll(entry any) bool {
	route, _ := entry.(map[string]any)
	if matchers, _ := option(route, "match").([]any); len(matchers) > 0 {
		return false
	}
	return slices.ContainsFunc(handlersOf(entry), endsRoute)
}
