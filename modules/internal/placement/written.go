package placement

import (
	"encoding/json"
	"reflect"

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

// writtenRoutes returns the routes of a server of the layer4 app as they were written, and those that it has where they are
// not to be found.
func writtenRoutes(ctx caddy.Context, name string, server *layer4.Server) layer4.RouteList {
	var app struct {
		Servers map[string]struct {
			Routes layer4.RouteList `json:"routes"`
		} `json:"servers"`
	}
	if json.Unmarshal(writtenApp(ctx, "layer4"), &app) != nil || len(app.Servers[name].Routes) != len(server.Routes) {
		return server.Routes
	}
	return app.Servers[name].Routes
}

// writtenWrappers returns the routes of the layer4 wrappers of an HTTP server as they were written. Where there are several it can't
// be told which of them is being provisioned.
func writtenWrappers(ctx caddy.Context, server string) (found []layer4.RouteList) {
	var app struct {
		Servers map[string]struct {
			Wrappers []json.RawMessage `json:"listener_wrappers"`
		} `json:"servers"`
	}
	_ = json.Unmarshal(writtenApp(ctx, "http"), &app)
	for _, raw := range app.Servers[server].Wrappers {
		var written struct {
			Name   string           `json:"wrapper"`
			Routes layer4.RouteList `json:"routes"`
		}
		if json.Unmarshal(raw, &written) == nil && written.Name == "layer4" {
			found = append(found, written.Routes)
		}
	}
	return found
}
