package gate

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// Canonical returns the same for all spellings of an IP address to listen on. Without a host it is the zero address for both
// families, 0.0.0.0 for IPv4 alone and :: for IPv6 alone. "::" without a family is both, as in package net; "0.0.0.0" is IPv4 alone,
// which it is not there.
func Canonical(family string, ip netip.Addr) netip.Addr {
	ip = ip.Unmap()
	switch {
	case ip.IsValid() && !ip.IsUnspecified():
		return ip
	case family == "4" || ip.Is4():
		return netip.IPv4Unspecified()
	case family == "6":
		return netip.IPv6Unspecified()
	}
	return netip.Addr{}
}

// Overlap reports whether a system refuses to bind two sockets of one transport and port to these addresses, both as Canonical has them.
func Overlap(a, b netip.Addr) bool { return covers(a, b) || covers(b, a) }

// covers reports whether what is sent to b would reach a socket that is bound to a.
func covers(a, b netip.Addr) bool {
	return a == b || !a.IsValid() || a.IsUnspecified() && a.Is4() == b.Is4() && b.IsValid()
}

// Binding is what a listen address binds: ports of a transport, a path, or a descriptor.
type Binding struct {
	Transport string // "tcp", "udp"; of other networks their name
	Name      string // a path, a descriptor or a host that is no IP address, in lower case
	IP        netip.Addr
	First     uint // port
	Last      uint
	gate      bool
}

// BindingOf returns what a listen address binds. Names of hosts are not resolved.
func BindingOf(addr caddy.NetworkAddress) Binding {
	n, isGate := Parse(addr.Network)
	b := Binding{Transport: n.Transport, First: addr.StartPort, Last: addr.EndPort, gate: isGate}
	family := n.Family
	switch {
	case n.Inherited, addr.IsFdNetwork():
		name := addr.Host
		if fd, err := Descriptor(name); err == nil {
			name = strconv.Itoa(fd) // 03 is 3
		}
		return Binding{Transport: "fd", Name: name, gate: isGate}
	case addr.IsUnixNetwork():
		path, _, _ := strings.Cut(addr.Host, "|")
		return Binding{Transport: "unix", Name: path}
	case !isGate:
		b.Transport = strings.TrimRight(addr.Network, "46")
		family = addr.Network[len(b.Transport):]
	}
	ip, err := netip.ParseAddr(addr.Host)
	switch {
	case err == nil && !isGate && family == "" && ip.IsUnspecified():
		ip = netip.Addr{} // for package net 0.0.0.0 is both families
	case err != nil && addr.Host != "":
		b.Name = strings.ToLower(addr.Host)
		return b
	}
	b.IP = Canonical(family, ip)
	return b
}

// IsGate reports whether the listen address is of a gate network.
func (b Binding) IsGate() bool { return b.gate }

// Conflicts reports whether one config can't have both: they bind the same, or overlap where one of them is a gate network's. Stock
// networks may overlap: their sockets have SO_REUSEPORT.
func (b Binding) Conflicts(other Binding) bool {
	if b.Transport != other.Transport || b.First > other.Last || other.First > b.Last {
		return false
	}
	if (b.Last == 0 || other.Last == 0) && b.Transport != "fd" && b.Transport != "unix" {
		return false // the system chooses a port for port 0
	}
	if b.Name != "" || other.Name != "" {
		return b.Name == other.Name
	}
	return b.IP == other.IP || (b.gate || other.gate) && Overlap(b.IP, other.IP)
}
