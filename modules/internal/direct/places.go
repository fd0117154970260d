package direct

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/caddyfile"
)

// Place is where a handler stands in a layer4 app.
type Place struct {
	Network, Listener string // as a session has them
	// Path leads to the handler from its server.
	Path string
	// Always tells that every connection of the listener comes by.
	Always bool
}

// Places returns where a handler stands that is being provisioned, and all others with the same JSON, as
// [caddyfile.CanonicalJSON] has it. Outside a layer4 app, as in front of an HTTP site, there are none.
func Places(ctx caddy.Context, name, canonical string) []Place {
	app := appOf(ctx)
	if app == nil {
		return nil
	}
	var places []Place
	for _, server := range app.Servers {
		for i, route := range server.Routes {
			for j, raw := range route.HandlersRaw {
				var document any
				if json.Unmarshal(raw, &document) != nil {
					continue
				}
				always := i == 0 && len(route.MatcherSetsRaw) == 0 && unconditional(route, 0)
				walk(document, fmt.Sprintf("%d/%d", i, j), func(path string, handler map[string]any) {
					if handler["handler"] == name && sameHandler(handler, canonical) {
						nested := strings.Count(path, "/") > 1
						places = append(places, placesOf(server.Listen, path, always && !nested)...)
					}
				})
			}
		}
	}
	return places
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

func sameHandler(handler map[string]any, canonical string) bool {
	raw, err := json.Marshal(handler)
	if err != nil {
		return false
	}
	found, err := caddyfile.CanonicalJSON(raw, "handler")
	return err == nil && found == canonical
}

// placesOf returns one place for each address that a server listens on.
func placesOf(addresses []string, path string, always bool) []Place {
	var places []Place
	repl := caddy.NewReplacer()
	for _, listen := range addresses {
		addr, err := caddy.ParseNetworkAddress(repl.ReplaceAll(listen, ""))
		if err != nil {
			continue // the server's to refuse
		}
		for offset := range addr.PortRangeSize() {
			network, gate := strings.CutPrefix(addr.Network, "gate+")
			listener := addr.JoinHostPort(offset)
			if !gate && !addr.IsUnixNetwork() {
				listener = listener[strings.LastIndexByte(listener, ':'):]
			}
			places = append(places, Place{network, listener, path, always})
		}
	}
	return places
}
