package forward

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
)

// portRange is the ports of a listen address.
type portRange struct {
	ip          netip.Addr // zero if the listen address is for all addresses, or has a name
	first, last uint
	datagrams   bool // TCP and UDP have ports of their own
}

// matchAddrs refuses upstreams of the wrong transport, such as udp/ behind a listen address of TCP, and ranges of ports that
// do not fit. It returns the port ranges of the listen addresses if an upstream has a range.
func matchAddrs(upstreams []upstream.Upstream, listen []caddy.NetworkAddress) ([]portRange, error) {
	for _, up := range upstreams {
		for _, addr := range listen {
			if up.Dynamic {
				continue
			}
			if err := up.Addr.Carries(gate.Datagrams(addr.Network)); err != nil {
				return nil, fmt.Errorf("%q: %w, as the listen address %q needs", up.Name, err, addr.String())
			}
		}
	}
	return matchPorts(upstreams, listen)
}

// matchPorts refuses a range of ports on one side only: nobody could tell which port belongs to which. It returns the port
// ranges of the listen addresses if an upstream has a range.
func matchPorts(upstreams []upstream.Upstream, listen []caddy.NetworkAddress) ([]portRange, error) {
	var ranges []portRange
	for _, addr := range listen {
		ip, err := netip.ParseAddr(addr.Host)
		if err != nil || ip.IsUnspecified() {
			ip = netip.Addr{}
		}
		ranges = append(ranges, portRange{ip.Unmap(), addr.StartPort, addr.EndPort, gate.Datagrams(addr.Network)})
	}
	wanted := false
	for _, up := range upstreams {
		ports := up.Addr.Ports()
		if up.Dynamic || ports == 0 {
			continue
		}
		wanted = wanted || ports > 1
		if err := matchRange(up.Name, ports, listen); err != nil {
			return nil, err
		}
	}
	if !wanted {
		return nil, nil
	}
	return ranges, nil
}

func matchRange(upstream string, ports int, listen []caddy.NetworkAddress) error {
	if ports > 1 && len(listen) == 0 {
		return fmt.Errorf("%q: expected one port, because there is no listen address with a range of %d", upstream, ports)
	}
	for _, addr := range listen {
		switch size := int(addr.PortRangeSize()); {
		case size == ports:
		case size > 1:
			return fmt.Errorf("%q: expected a range of %d ports, as the listen address %q has, or a placeholder",
				upstream, size, addr.String())
		default:
			return fmt.Errorf("%q: expected one port, as the listen address %q has", upstream, addr.String())
		}
	}
	return nil
}

// offset returns the number of the port, within its range, that the connection came in on. Ranges of several listen addresses
// may overlap. Then a listen address with an IP wins over one for all addresses, as it does in the kernel.
func offset(conn net.Conn, ranges []portRange) (offset int) {
	local, ok := conn.LocalAddr().(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return 0
	}
	ip, port := local.AddrPort().Addr().Unmap(), uint(local.AddrPort().Port())
	datagrams := gate.Datagrams(conn.LocalAddr().Network())
	for _, r := range ranges {
		switch {
		case port < r.first || port > r.last || datagrams != r.datagrams:
		case r.ip == ip:
			return int(port - r.first)
		case !r.ip.IsValid():
			offset = int(port - r.first)
		}
	}
	return offset
}
