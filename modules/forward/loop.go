package forward

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/forward/relay"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/hops"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// reasonLoop is the reason of a session whose client is the process itself, for the fifth time in a row.
const reasonLoop relay.Reason = session.ReasonLoop

// checkLoops refuses an upstream that is one of the listen addresses itself.
func checkLoops(upstreams []upstream.Upstream, listen []caddy.NetworkAddress) error {
	for _, up := range upstreams {
		if up.Dynamic {
			continue
		}
		for _, addr := range listen {
			if leadsTo(up.Addr, addr) {
				return fmt.Errorf("%q: expected another address than the listen address %q, to which it leads back", up.Name, addr.String())
			}
		}
	}
	return nil
}

// leadsTo reports whether what is sent to an upstream comes in at a listen address. Names are not looked up, except localhost.
func leadsTo(to upstream.Addr, listen caddy.NetworkAddress) bool {
	if to.Network == "unix" || listen.IsUnixNetwork() {
		path, _, _ := strings.Cut(listen.Host, "|") // behind it are the permissions
		return to.Network == "unix" && listen.IsUnixNetwork() && to.Host == path
	}
	last := listen.EndPort // whichever port a client has connected to, a single upstream leads to one of these
	if to.Ports() > 1 {
		last = listen.StartPort // to the same port as the client's, if to any that leads back
	}
	if port := uint(to.Port); port < listen.StartPort || port > last || to.Carries(gate.Datagrams(listen.Network)) != nil {
		return false
	}
	for _, ip := range addressesOf(to.Host) {
		if accepts(listen, ip) {
			return true
		}
	}
	return false
}

// addressesOf returns the addresses that a host stands for, as far as that is known without a look-up.
func addressesOf(host string) []netip.Addr {
	if host == "" || strings.EqualFold(host, "localhost") {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return nil
	case ip == netip.IPv4Unspecified():
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	case ip == netip.IPv6Unspecified():
		return []netip.Addr{netip.IPv6Loopback()}
	}
	return []netip.Addr{ip.Unmap().WithZone("")}
}

// accepts reports whether a listen address takes connections to an address.
func accepts(listen caddy.NetworkAddress, ip netip.Addr) bool {
	family := ip.Is4() && strings.HasSuffix(listen.Network, "6") || ip.Is6() && strings.HasSuffix(listen.Network, "4")
	if family {
		return false
	}
	host, err := netip.ParseAddr(listen.Host)
	switch {
	case listen.Host == "":
		return hops.IsLocal(ip)
	case err != nil:
		return strings.EqualFold(listen.Host, "localhost") && ip.IsLoopback()
	case host.IsUnspecified():
		return hops.IsLocal(ip) && (host.Is6() || ip.Is4())
	}
	return host.Unmap().WithZone("") == ip
}

// trip begins the session's trip, nil where it can't come back. accepted is its connection as the listener gave it. It
// reports false where the session has come through this process too often.
func (r *roster) trip(sess *session.Session, accepted net.Conn) (t *hops.Trip, ok bool) {
	if !r.mayLoop() {
		return nil, true
	}
	return hops.Begin(accepted, gate.Datagrams(sess.Network), func() { sess.Close(session.ReasonLoop) })
}

// listensUnix has hops know whether a handler serves a unix socket.
type listensUnix bool

func (l *listensUnix) begin(unix bool) {
	if *l = listensUnix(unix); unix {
		hops.ListenUnix()
	}
}

func (l *listensUnix) end() {
	if *l {
		hops.LeaveUnix()
		*l = false
	}
}

// tracker tells a trip of the sockets that a relay opens.
type tracker struct{ *hops.Trip }

func (t tracker) Connecting(remote netip.AddrPort) relay.TrackedSocket {
	if s := t.Trip.Connecting(remote); s != nil {
		return s
	}
	return nil
}

func (t tracker) ConnectingUnix() (string, relay.TrackedSocket) {
	if name, s := t.Trip.ConnectingUnix(); s != nil {
		return name, s
	}
	return "", nil
}

// trackerOf returns nil where there is no trip.
func trackerOf(t *hops.Trip) relay.Tracker {
	if t == nil {
		return nil
	}
	return tracker{t}
}

// refuse ends a session before an upstream is tried. The client is reset: where it is a hop of a loop, all hops before it
// end as well.
func refuse(sess *session.Session, conn net.Conn, status int, reason string) {
	if tcp, ok := conn.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
	sess.End(session.End{Connect: time.Since(sess.Begun()), Status: status, Reason: reason})
}
