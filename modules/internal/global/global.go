// Package global has the options of the app `portgate` as other modules read them: what concerns the product or a listener
// as a whole, for which a handler or a listen address has no place.
package global

import (
	"context"
	"errors"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
)

// Options are the values that are in force in a config.
type Options struct {
	// MaxSessions is how many sessions a listen address of gate+tcp may have at a time.
	MaxSessions int
	// ReserveDescriptors is how many descriptors of the process sessions of the gate networks leave to others. 0: none.
	ReserveDescriptors int
	// UDPMaxSessions is how many sessions a listen address of gate+udp may have at a time.
	UDPMaxSessions int
	// UDPMaxSessionsPerClient is how many of them one client may have.
	UDPMaxSessionsPerClient int
	// Zone is where the gateway is; empty: nobody says.
	Zone string
	// AccessLog bounds what gets into the access log.
	AccessLog AccessLog
}

// AccessLog bounds what gets into the access log.
type AccessLog struct {
	// Queue is how many entries may wait for a destination.
	Queue int
	// Sample is how many entries of a status a handler may write a second, where that is not left to the defaults.
	Sample map[int]float64
}

// Defaults returns the options of a config without the app.
func Defaults() Options {
	reserve := descriptors.DefaultReserve()
	return Options{
		MaxSessions: DefaultMaxSessions(reserve), ReserveDescriptors: reserve,
		UDPMaxSessions: 10_000, UDPMaxSessionsPerClient: 1_000,
		AccessLog: AccessLog{Queue: 10_000},
	}
}

// DefaultMaxSessions returns how many sessions a listen address of gate+tcp may have where so many descriptors are reserved.
func DefaultMaxSessions(reserve int) int {
	return descriptors.DefaultShare(reserve) / descriptors.PerStream
}

// App is the app `portgate`.
type App interface{ Options() Options }

// Of returns the options of the config that ctx belongs to, the defaults where it belongs to none.
func Of(ctx context.Context) (Options, error) {
	config, ok := ctx.(caddy.Context)
	if !ok {
		return Defaults(), nil
	}
	app, err := config.AppIfConfigured("portgate")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return Defaults(), nil
	}
	if err != nil {
		return Options{}, err
	}
	return app.(App).Options(), nil
}
