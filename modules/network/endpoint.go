package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/gate"
)

// endpoint is where a listener listens.
type endpoint struct {
	gate.Network
	listener   string         // as log entries and metrics have it
	addr       netip.AddrPort // unless it is inherited
	descriptor int            // if it is inherited
}

// endpointOf returns one port of a listen address. Names of hosts are resolved.
func endpointOf(network, host, portRange string, portOffset uint) (endpoint, error) {
	n, ok := gate.Parse(network)
	if !ok {
		return endpoint{}, fmt.Errorf("network %q: expected one of %s", network, gate.Names())
	}
	addr, err := caddy.ParseNetworkAddress(caddy.JoinNetworkAddress(network, host, portRange))
	if err != nil {
		return endpoint{}, fmt.Errorf("listening on %q: %w", host, err)
	}
	ep := endpoint{Network: n, listener: gate.Listener(n, addr, portOffset)}
	if n.Inherited {
		ep.descriptor, err = gate.Descriptor(host)
	} else {
		ep.addr, err = resolve(n, addr.JoinHostPort(portOffset))
	}
	if err != nil {
		return endpoint{}, fmt.Errorf("listening on %q: %w", ep.listener, err)
	}
	return ep, nil
}

func resolve(n gate.Network, address string) (netip.AddrPort, error) {
	var addr netip.AddrPort
	if n.Transport == "udp" {
		resolved, err := net.ResolveUDPAddr("udp"+n.Family, address)
		if err != nil {
			return addr, err
		}
		addr = resolved.AddrPort()
	} else {
		resolved, err := net.ResolveTCPAddr("tcp"+n.Family, address)
		if err != nil {
			return addr, err
		}
		addr = resolved.AddrPort()
	}
	return netip.AddrPortFrom(gate.Canonical(n.Family, addr.Addr()), addr.Port()), nil
}

// overlap reports whether a system refuses to bind two sockets of one transport to these addresses.
func overlap(a, b netip.AddrPort) bool {
	return a.Port() == b.Port() && a.Port() != 0 && gate.Overlap(a.Addr(), b.Addr())
}

// forNet returns the network and the address as package net takes them to bind to nothing but this.
func (ep *endpoint) forNet() (network, address string) {
	family := ep.Family
	switch ip := ep.addr.Addr(); {
	case !ip.IsValid():
		return ep.Transport, net.JoinHostPort("", strconv.Itoa(int(ep.addr.Port())))
	case ip.IsUnspecified() && ip.Is4():
		family = "4"
	}
	return ep.Transport + family, ep.addr.String()
}

// listen opens the endpoint for TCP: with package net, or as a copy of the descriptor.
func (ep *endpoint) listen(ctx context.Context, cfg net.ListenConfig) (*net.TCPListener, error) {
	if ep.Inherited {
		return inheritListener(ep.descriptor, cfg.Control)
	}
	network, address := ep.forNet()
	ln, err := cfg.Listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// listenPacket is listen for UDP.
func (ep *endpoint) listenPacket(ctx context.Context, cfg net.ListenConfig) (*net.UDPConn, error) {
	if ep.Inherited {
		return inheritPacketConn(ep.descriptor, cfg.Control)
	}
	network, address := ep.forNet()
	conn, err := cfg.ListenPacket(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}
