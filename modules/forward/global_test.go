package forward

import (
	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/global"
)

// app is an app `portgate` with which sessions that reached no upstream are not logged: the real one is another module.
type app struct{}

func init() { caddy.RegisterModule(app{}) }

func (app) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "portgate", New: func() caddy.Module { return new(app) }}
}

func (app) Start() error { return nil }
func (app) Stop() error  { return nil }

// Options implements [global.App].
func (app) Options() global.Options {
	options := global.Defaults()
	options.AccessLog.Sample = map[int]float64{502: 0}
	return options
}
