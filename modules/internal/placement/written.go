package placement

import (
	"encoding/json"
	"reflect"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
)

// What a module is made of goes when it is provisioned, so a handler that looks around finds nothing of those before it.
// The config as it was written is still there, and tells.

// writtenApp returns the JSON of an app that is being provisioned. Caddy keeps it to itself; where it has another name for
// it than this, there is none.
func writtenApp(ctx caddy.Context, name string) json.RawMessage {
	config := reflect.Indirect(reflect.ValueOf(ctx).FieldByName("cfg"))
	if !config.IsValid() || config.Kind() != reflect.Struct {
		return nil
	}
	apps := config.FieldByName("AppsRaw")
	if !apps.IsValid() || apps.Kind() != reflect.Map {
		return nil
	}
	raw := apps.MapIndex(reflect.ValueOf(name))
	if !raw.IsValid() || raw.Kind() != reflect.Slice {
		return nil
	}
	return raw.Bytes()
}

// writtenServers returns the routes of the servers of the layer4 app as they were written.
func writtenServers(ctx caddy.Context) map[string]layer4.RouteList {
	var app struct {
		Servers map[string]struct {
			Routes layer4.RouteList `json:"routes"`
		} `json:"servers"`
	}
	if json.Unmarshal(writtenApp(ctx, "layer4"), &app) != nil {
		return nil
	}
	routes := make(map[string]layer4.RouteList, len(app.Servers))
	for name, server := range app.Servers {
		routes[name] = server.Routes
	}
	return routes
}

// writtenWrappers returns the routes of the layer4 wrappers of an HTTP server as they were written. Where there are several it can't
// be told which of them is being provisioned.
func (s *site) writtenWrappers(ctx caddy.Context) []layer4.RouteList {
	known := ofConfig(ctx, s.app, func() *sites { return new(sites) })
	known.once.Do(func() { known.read(ctx) })
	return known.wrappers[s.server.Name()]
}

// sites are the HTTP servers of a config as they were written.
type sites struct {
	once     sync.Once
	wrappers map[string][]layer4.RouteList // by server
}

func (s *sites) read(ctx caddy.Context) {
	var app struct {
		Servers map[string]struct {
			Wrappers []json.RawMessage `json:"listener_wrappers"`
		} `json:"servers"`
	}
	_ = json.Unmarshal(writtenApp(ctx, "http"), &app)
	s.wrappers = make(map[string][]layer4.RouteList)
	for name, server := range app.Servers {
		for _, raw := range server.Wrappers {
			var written struct {
				Name   string           `json:"wrapper"`
				Routes layer4.RouteList `json:"routes"`
			}
			if json.Unmarshal(raw, &written) == nil && written.Name == "layer4" {
				s.wrappers[name] = append(s.wrappers[name], written.Routes)
			}
		}
	}
}
