package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/portgate/caddy-portgate/caddyfile"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

func init() {
	caddy.RegisterModule(new(Settings))
	httpcaddyfile.RegisterGlobalOption("portgate", parseSettings)
}

// Defaults of the options.
const (
	defaultMaxSessions          = 10_000
	defaultMaxSessionsPerClient = 1_000

	mostSessions = 1_000_000 // a session has a descriptor, and Linux allows a process about so many
)

// Settings is the app `portgate`. It has what concerns a listener as a whole, for which a listen address has
// no place.
type Settings struct {
	// UDPMaxSessions is how many sessions a listen address of gate+udp may have at a time. At the cap a new
	// one takes the place of the oldest that had no reply yet, or else of the oldest whose client has not
	// sent anything since; where there is none such it is refused. From 1 to 1000000. Default: 10000.
	UDPMaxSessions *int `json:"udp_max_sessions,omitempty"`

	// UDPMaxSessionsPerClient is how many of them one client may have, where the same rule applies to
	// its own. An IPv6 client is a /64. From 1 to 1000000. Default: 1000.
	UDPMaxSessionsPerClient *int `json:"udp_max_sessions_per_client,omitempty"`

	limits sessionLimits
}

// CaddyModule returns the Caddy module information.
func (*Settings) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "portgate", New: func() caddy.Module { return new(Settings) }}
}

// Provision sets up the app.
func (s *Settings) Provision(caddy.Context) error {
	s.limits = defaultLimits
	if err := override(&s.limits.total, "udp_max_sessions", s.UDPMaxSessions); err != nil {
		return err
	}
	return override(&s.limits.perClient, "udp_max_sessions_per_client", s.UDPMaxSessionsPerClient)
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

// Start does nothing: listeners ask for the settings.
func (*Settings) Start() error { return nil }

// Stop does nothing.
func (*Settings) Stop() error { return nil }

var defaultLimits = sessionLimits{total: defaultMaxSessions, perClient: defaultMaxSessionsPerClient}

// termsOf returns what a config wants of its UDP sockets.
func termsOf(ctx context.Context, address string) (*terms, error) {
	t := &terms{limits: defaultLimits, counts: session.DatagramsOf(address)}
	config, ok := ctx.(caddy.Context)
	if !ok {
		return t, nil
	}
	if err := session.Register(config); err != nil {
		return nil, err
	}
	app, err := config.AppIfConfigured("portgate")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return t, nil
	}
	if err != nil {
		return nil, err
	}
	t.limits = app.(*Settings).limits
	return t, nil
}

// parseSettings reads the global option. Syntax:
//
//	portgate {
//		udp_max_sessions            <count>
//		udp_max_sessions_per_client <count>
//	}
func parseSettings(d *caddycaddyfile.Dispenser, existing any) (any, error) {
	if existing != nil {
		d.Next()
		return nil, d.Err("portgate: given twice")
	}
	s := new(Settings)
	err := caddyfile.Unmarshal(d, nil,
		count("udp_max_sessions", &s.UDPMaxSessions),
		count("udp_max_sessions_per_client", &s.UDPMaxSessionsPerClient),
	)
	if err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "portgate", Value: caddyconfig.JSON(s, nil)}, nil
}

func count(name string, to **int) caddyfile.Option {
	return caddyfile.Option{Name: name, Min: 1, Max: 1, Set: func(args []string) error {
		n, err := caddyfile.ParseCount(args[0], 1, mostSessions)
		*to = &n
		return err
	}}
}

// UnmarshalJSON decodes the options and refuses unknown ones.
func (s *Settings) UnmarshalJSON(data []byte) error {
	type options Settings
	return caddyfile.UnmarshalJSON(data, (*options)(s))
}

// Interface guards
var (
	_ caddy.App         = (*Settings)(nil)
	_ caddy.Provisioner = (*Settings)(nil)
	_ json.Unmarshaler  = (*Settings)(nil)
)
