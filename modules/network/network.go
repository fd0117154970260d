// Package network provides the gate networks for listen addresses: gate+tcp/127.0.0.1:8080 is what tcp/127.0.0.1:8080
// is, made safe to reload and to attack. So is gate+udp, both for one family of addresses (gate+tcp4, gate+udp6),
// and gate+fd and gate+fdgram for sockets that the process was started with.
//
//   - All configs share one socket per address, so no reload throws an accept queue, or what waits in a receive
//     buffer, away.
//   - Each config has a generation of the listener. The oldest one that lives accepts, so a config that is
//     rejected after it has opened its listeners has accepted nothing.
//   - No error ends the accepting before the listener is closed: when descriptors or memory run out, the
//     address answers again as soon as there are some.
//
// A listener of datagrams accepts sessions of clients. Its receive loop never blocks, and what it remembers of
// clients is bounded.
//
// The socket has no SO_REUSEPORT: a second process gets "address already in use" instead of a share of the
// connections.
package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

func init() {
	for _, n := range gate.Networks {
		caddy.RegisterNetwork(n.Name, listen)
	}
}

// sockets are the listening sockets of all configs.
var sockets = state.NewPool[socketKey, shared]()

// socketKey is the same for all spellings of an address.
type socketKey struct {
	transport  string
	addr       netip.AddrPort // as gate.Canonical has it
	descriptor int            // of an inherited socket, which has no addr here
	own        *generation    // set for port 0, where every call gets a socket and a port of its own
}

// listen is a [caddy.ListenerFunc]. It returns a net.Listener, for UDP too, whose connections are of type [*Conn] or
// [*PacketConn]. Options in cfg take effect when the socket is opened, which is when the address is new.
func listen(ctx context.Context, network, host, portRange string, portOffset uint, cfg net.ListenConfig) (any, error) {
	ep, err := endpointOf(network, host, portRange, portOffset)
	if err != nil {
		return nil, err
	}
	g, err := listenAt(ctx, ep, cfg)
	if err != nil {
		return nil, fmt.Errorf("listening on %q: %w", ep.listener, err)
	}
	return g, nil
}

func listenAt(ctx context.Context, ep endpoint, cfg net.ListenConfig) (*generation, error) {
	observe(ctx.Done())
	g, err := newGeneration(ctx, ep)
	if err != nil {
		return nil, err
	}
	open := func(ctx context.Context, cfg net.ListenConfig) (shared, error) { return openSocket(ctx, ep, cfg) }
	if ep.Transport == "udp" {
		open = func(ctx context.Context, cfg net.ListenConfig) (shared, error) {
			return openPacketSocket(ctx, ep, cfg, &g.settings)
		}
	}
	return share(ctx, g, cfg, open)
}

// openFunc opens the socket of an endpoint.
type openFunc func(ctx context.Context, cfg net.ListenConfig) (shared, error)

// observed is the config for which the open descriptors were counted.
var observed atomic.Pointer[<-chan struct{}]

// observe has the open descriptors counted before the first listener of a config is opened.
func observe(config <-chan struct{}) {
	if last := observed.Swap(&config); last == nil || *last != config {
		descriptors.Observe()
	}
}

// share makes g a generation of the socket at its endpoint, which it opens where there is none.
func share(ctx context.Context, g *generation, cfg net.ListenConfig, open openFunc) (*generation, error) {
	key := socketKey{transport: g.Transport, addr: g.addr, descriptor: g.descriptor}
	if !g.Inherited && g.addr.Port() == 0 {
		key.own = g
	}
	open = noted(key, open)
	for {
		ref, err := sockets.Acquire(key, func() (shared, error) { return open(ctx, cfg) })
		if errors.Is(err, syscall.EADDRINUSE) {
			ref, err = acquireBeside(ctx, key, g, cfg, open, err)
		}
		if err != nil {
			return nil, err
		}
		err = g.join(ctx, ref)
		if err == nil {
			return g, nil
		}
		_ = ref.Release() // another generation keeps the socket
		if !errors.Is(err, errHidden) {
			return nil, err
		}
		select { // of a config that was rejected a moment ago
		case <-time.After(hiddenPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// hiddenPause is how often a config looks whether a socket is closed that it waits for, see retire.
const hiddenPause = 20 * time.Millisecond
