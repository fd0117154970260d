package fastpath

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
)

// Header is what a load balancer says in front of the payload of a datagram.
type Header struct {
	Client, Local netip.AddrPort // not valid where it speaks for itself
	Size          int            // the payload is behind so many bytes
	Fields        []byte         // what the header has beside addresses, nil for nothing: a part of the datagram
}

// Opener is a handler that tells the datagrams of a load balancer apart, which may send those of many clients from one socket. The
// listener asks it for each datagram, before anybody knows whose session that belongs to. It must not block.
type Opener interface {
	// Sends reports whether a peer is a load balancer, and not a client.
	Sends(peer netip.AddrPort) bool
	// Open reads the header that a datagram of a load balancer begins with. It keeps nothing of the datagram.
	Open(datagram []byte) (Header, error)
	// FirstOnly reports whether only the first datagram from an address and port has a header: what comes from there belongs to one client.
	FirstOnly() bool
}

// OfferOpener is called in Provision by a handler that is an Opener. It holds for all that arrives at the gate networks' listen addresses of UDP
// at which the handler stands, wherever in the routes: a listener can ask only one. name is for the error that says so.
func OfferOpener(ctx caddy.Context, at *placement.Finding, name string, opener Opener) error {
	app := placement.AppOf(ctx)
	if app == nil {
		return nil // in front of an HTTP site
	}
	p := planOf(ctx, app)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opens[at] {
		return nil // one that is alike
	}
	for _, addr := range at.Listens() {
		n, ok := gate.Parse(addr.Network)
		if !ok || n.Transport != "udp" {
			continue
		}
		listener := gate.Listener(n, addr, 0)
		key := addr.Network + "/" + listener
		if p.openedAt[key] {
			return fmt.Errorf("listen address %q: expected one %s, because over UDP it holds for all that arrives there", addr.String(), name)
		}
		p.openedAt[key] = true
		p.openers.Add(addr.Network, listener, addr.PortRangeSize(), opener)
	}
	p.opens[at] = true
	return nil
}

// OpenerOf returns who tells the datagrams of load balancers apart at a listener, nil where nobody does. It is called as [Steps] is.
func OpenerOf(ctx context.Context, network, address string) Opener {
	app := appOf(ctx)
	if app == nil {
		return nil
	}
	opener, _ := planOf(ctx, app).openers.First(network, address)
	return opener
}
