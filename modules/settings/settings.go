// Package settings is the app `portgate`: options of the product as a whole.
package settings

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/global"
)

func init() {
	caddy.RegisterModule(new(App))
	httpcaddyfile.RegisterGlobalOption("portgate", parseGlobalOption)
}

// mostSessions is the largest number of sessions that can be asked for: a session has a descriptor, and Linux allows a
// process about so many.
const mostSessions = 1_000_000

// App is the app `portgate`. It has the options that concern the product or a listener as a whole, for which a handler
// or a listen address has no place.
type App struct {
	// MaxSessions is how many sessions a listen address of gate+tcp may have at a time. At the cap a new connection is reset at
	// once, with the reason `session_limit`. From 1 to 1000000. Default: what seven eighths of the descriptors that are not
	// reserved are enough for, two for each session.
	MaxSessions *int `json:"max_sessions,omitempty"`

	// ReserveDescriptors is how many descriptors of the process (RLIMIT_NOFILE) the sessions of the gate networks leave to
	// everything else, such as the admin API. When only these are left, a new connection is treated as one beyond MaxSessions or
	// UDPMaxSessions. 0: none are reserved. From 0 to 1000000, less than there are. Default: 5 %, at least 32.
	ReserveDescriptors *int `json:"reserve_descriptors,omitempty"`

	// UDPMaxSessions is how many sessions a listen address of gate+udp may have at a time. At the cap a new
	// one takes the place of the oldest that had no reply yet, or else of the oldest whose client has not
	// sent anything since; where there is none such it is refused. From 1 to 1000000. Default: 10000.
	UDPMaxSessions *int `json:"udp_max_sessions,omitempty"`

	// UDPMaxSessionsPerClient is how many of them one client may have, where the same rule applies to
	// its own. An IPv6 client is a /64. From 1 to 1000000. Default: 1000.
	UDPMaxSessionsPerClient *int `json:"udp_max_sessions_per_client,omitempty"`

	// Zone is where the gateway is. Upstreams of the same zone come first within a tier. Default: none.
	Zone string `json:"zone,omitempty"`

	// AccessLog bounds what gets into the access log.
	AccessLog *AccessLog `json:"access_log,omitempty"`

	options global.Options
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "portgate", New: func() caddy.Module { return new(App) }}
}

// Provision sets up the app.
func (a *App) Provision(caddy.Context) error {
	a.options = global.Defaults()
	a.options.Zone = a.Zone
	if err := a.AccessLog.set(&a.options.AccessLog); err != nil {
		return err
	}
	if err := a.reserve(); err != nil {
		return err
	}
	if err := override(&a.options.MaxSessions, "max_sessions", a.MaxSessions); err != nil {
		return err
	}
	if err := override(&a.options.UDPMaxSessions, "udp_max_sessions", a.UDPMaxSessions); err != nil {
		return err
	}
	return override(&a.options.UDPMaxSessionsPerClient, "udp_max_sessions_per_client", a.UDPMaxSessionsPerClient)
}

// reserve sets how many descriptors are reserved, and what follows from it.
func (a *App) reserve() error {
	if a.ReserveDescriptors == nil {
		return nil
	}
	n, limit := *a.ReserveDescriptors, descriptors.Limit()
	if n < 0 || n >= limit {
		return fmt.Errorf(`reserve_descriptors: "%d": expected a whole number from 0 to %d, less than the process may have (RLIMIT_NOFILE)`, n, limit-1)
	}
	a.options.ReserveDescriptors, a.options.MaxSessions = n, global.DefaultMaxSessions(n)
	return nil
}

func override(limit *int, name string, option *int) error {
	if option == nil {
		return nil
	}
	if *option < 1 || *option > mostSessions {
		return fmt.Errorf(`%s: "%d": expected a whole number from 1 to %d`, name, *option, mostSessions)
	}
	*limit = *option
	return nil
}

// Start does nothing: others ask for the options.
func (*App) Start() error { return nil }

// Stop does nothing.
func (*App) Stop() error { return nil }

// Options implements [global.App].
func (a *App) Options() global.Options { return a.options }

// parseGlobalOption reads the global option. Syntax:
//
//	portgate {
//		max_sessions                <count>
//		reserve_descriptors         <count>
//		udp_max_sessions            <count>
//		udp_max_sessions_per_client <count>
//		zone                        <name>
//		access_log {
//			queue  <count>
//			sample <status> <rate>
//		}
//	}
func parseGlobalOption(d *caddycaddyfile.Dispenser, existing any) (any, error) {
	if existing != nil {
		d.Next()
		return nil, d.Err("portgate: given twice")
	}
	a := new(App)
	err := caddyfile.Unmarshal(d, nil,
		count("max_sessions", 1, &a.MaxSessions),
		count("reserve_descriptors", 0, &a.ReserveDescriptors),
		count("udp_max_sessions", 1, &a.UDPMaxSessions),
		count("udp_max_sessions_per_client", 1, &a.UDPMaxSessionsPerClient),
		caddyfile.Option{Name: "zone", Min: 1, Max: 1, Set: func(args []string) error {
			a.Zone = args[0]
			if a.Zone == "" {
				return errors.New(`"": expected the name of a zone`)
			}
			return nil
		}},
		accessLogOption(&a.AccessLog),
	)
	if err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "portgate", Value: caddyconfig.JSON(a, nil)}, nil
}

func count(name string, least int, to **int) caddyfile.Option {
	return caddyfile.Option{Name: name, Min: 1, Max: 1, Set: func(args []string) error {
		n, err := caddyfile.ParseCount(args[0], least, mostSessions)
		*to = &n
		return err
	}}
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (a *App) UnmarshalJSON(data []byte) error {
	type options App
	return caddyfile.UnmarshalJSON(data, (*options)(a))
}

// Interface guards
var (
	_ caddy.App         = (*App)(nil)
	_ global.App        = (*App)(nil)
	_ caddy.Provisioner = (*App)(nil)
	_ json.Unmarshaler  = (*App)(nil)
)
