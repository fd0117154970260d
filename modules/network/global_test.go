package network

import (
	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/global"
)

// app is an app `portgate` with the option that the tests need: the real one is another module.
type app struct {
	UDPMaxSessions int `json:"udp_max_sessions"`
}

func init() { caddy.RegisterModule(new(app)) }

func (*app) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "portgate", New: func() caddy.Module { return new(app) }}
}

func (*app) Start() error { return nil }
func (*app) Stop() error  { return nil }

// Options implements [global.App].
func (a *app) Options() global.Options {
	options := global.Defaults()
	options.UDPMaxSessions = a.UDPMaxSessions
	return options
}
