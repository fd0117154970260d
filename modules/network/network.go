// Package network provides gate+tcp and gate+udp, networks for listen addresses: gate+tcp/127.0.0.1:8080 is
// what tcp/127.0.0.1:8080 is, made safe to reload and to attack.
//
//   - All configs share one socket per address, so no reload throws an accept queue, or what waits in a receive
//     buffer, away.
//   - Each config has a generation of the listener. The oldest one that lives accepts, so a config that is
//     rejected after it has opened its listeners has accepted nothing.
//   - No error ends the accepting before the listener is closed: when descriptors or memory run out, the
//     address answers again as soon as there are some.
//
// A listener of gate+udp accepts sessions of clients. Its receive loop never blocks, and what it remembers of
// clients is bounded.
//
// The socket has no SO_REUSEPORT: a second process gets "address already in use" instead of a share of the
// connections.
package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/global"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/session"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

const (
	gateTCP = "gate+tcp"
	gateUDP = "gate+udp"
)

func init() {
	caddy.RegisterNetwork(gateTCP, listenTCP)
	caddy.RegisterNetwork(gateUDP, listenUDP)
}

// sockets are the listening sockets of all configs.
var sockets = state.NewPool[socketKey, shared]()

// socketKey is the same for all spellings of an address.
type socketKey struct {
	network string
	addr    netip.AddrPort
	own     *generation // set for port 0, where every call gets a socket and a port of its own
}

// listenTCP is a [caddy.ListenerFunc]. It returns a net.Listener whose connections are of type [*Conn].
// Options in cfg take effect when the socket is opened, which is when the address is new.
func listenTCP(ctx context.Context, network, host, portRange string, portOffset uint, cfg net.ListenConfig) (any, error) {
	return listenAt(network, host, portRange, portOffset, func(address string) (*generation, error) {
		return listen(ctx, address, cfg)
	})
}

// listenUDP is a [caddy.ListenerFunc]. It returns a net.Listener too, whose connections are sessions of
// clients, of type [*PacketConn].
func listenUDP(ctx context.Context, network, host, portRange string, portOffset uint, cfg net.ListenConfig) (any, error) {
	return listenAt(network, host, portRange, portOffset, func(address string) (*generation, error) {
		return listenForPackets(ctx, address, cfg)
	})
}

func listenAt(network, host, portRange string, portOffset uint, listen func(address string) (*generation, error)) (any, error) {
	addresses, err := caddy.ParseNetworkAddress(caddy.JoinNetworkAddress(network, host, portRange))
	if err != nil {
		return nil, fmt.Errorf("listening on %q: %w", host, err)
	}
	address := addresses.JoinHostPort(portOffset)
	ln, err := listen(address)
	if err != nil {
		return nil, fmt.Errorf("listening on %q: %w", address, err)
	}
	return ln, nil
}

func listen(ctx context.Context, address string, cfg net.ListenConfig) (*generation, error) {
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	g := newGeneration(ctx, gateTCP, address)
	return share(ctx, g, addr.AddrPort(), func() (shared, error) { return openSocket(ctx, addr, cfg) })
}

func listenForPackets(ctx context.Context, address string, cfg net.ListenConfig) (*generation, error) {
	addr, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	terms, err := termsOf(ctx, address)
	if err != nil {
		return nil, err
	}
	g := newGeneration(ctx, gateUDP, address)
	g.terms = terms
	return share(ctx, g, addr.AddrPort(), func() (shared, error) { return openPacketSocket(ctx, addr, cfg, terms) })
}

// termsOf returns what a config wants of its UDP sockets.
func termsOf(ctx context.Context, address string) (*terms, error) {
	if config, ok := ctx.(caddy.Context); ok {
		if err := session.Register(config); err != nil {
			return nil, err
		}
	}
	options, err := global.Of(ctx)
	if err != nil {
		return nil, err
	}
	limits := sessionLimits{total: options.UDPMaxSessions, perClient: options.UDPMaxSessionsPerClient}
	return &terms{limits: limits, counts: listeners.DatagramsOf(address)}, nil
}

// share makes g a generation of the socket at addr, which it opens where there is none.
func share(ctx context.Context, g *generation, addr netip.AddrPort, open func() (shared, error)) (*generation, error) {
	key := socketKey{network: g.network, addr: canonical(addr)}
	if addr.Port() == 0 {
		key.own = g
	}
	ref, err := sockets.Acquire(key, open)
	if err != nil {
		return nil, err
	}
	if err := g.join(ctx, ref); err != nil {
		_ = ref.Release() // another generation keeps the socket
		return nil, err
	}
	return g, nil
}

// canonical folds what Go binds alike: ":80", "0.0.0.0:80" and "[::]:80" all accept both IPv4 and IPv6.
func canonical(addr netip.AddrPort) netip.AddrPort {
	ip := addr.Addr().Unmap()
	if ip.IsUnspecified() {
		ip = netip.Addr{}
	}
	return netip.AddrPortFrom(ip, addr.Port())
}
