package upstream

import (
	"net"
	"net/netip"
)

// maxFamilies bounds the services of which is remembered which family has worked.
const maxFamilies = 4096

// service is a port of a name. Of one name, services may listen on different families: on localhost they often do.
type service struct {
	host      string
	port      uint16
	datagrams bool
}

// Source is the name that addresses of an upstream come from. The zero Source is no name.
type Source struct {
	names *Names
	service
	six bool // the family that was tried first
}

// Works notes that an address has answered. Its family is tried first by later sessions. It may be called at any time.
func (s Source) Works(addr net.Addr) {
	ap, ok := addr.(interface{ AddrPort() netip.AddrPort })
	if s.names == nil || !ok {
		return
	}
	if six := ap.AddrPort().Addr().Unmap().Is6(); six != s.six {
		s.names.prefer(s.service, six)
	}
}

func (n *Names) prefer(s service, six bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, known := n.families[s]; !known && len(n.families) == maxFamilies {
		for other := range n.families {
			delete(n.families, other)
			break
		}
	}
	n.families[s] = six
}

// inOrder returns addresses in the order in which they are tried: one of each family in turn (RFC 8305, section 4), beginning with
// the family that has worked last, else with that of the system's choice. Those of one family stay in the system's order.
func (n *Names) inOrder(ips []netip.Addr, s service) []netip.Addr {
	mixed := false
	for _, ip := range ips {
		mixed = mixed || ip.Is6() != ips[0].Is6()
	}
	if !mixed {
		return ips
	}
	n.mu.Lock()
	six, known := n.families[s]
	n.mu.Unlock()
	return interleave(ips, ips[0].Is6() && !known || six)
}

// interleave returns addresses of two families, one of each in turn.
func interleave(ips []netip.Addr, six bool) []netip.Addr {
	var first, second []netip.Addr
	for _, ip := range ips {
		if ip.Is6() == six {
			first = append(first, ip)
		} else {
			second = append(second, ip)
		}
	}
	all := make([]netip.Addr, 0, len(ips))
	for i := range max(len(first), len(second)) {
		if i < len(first) {
			all = append(all, first[i])
		}
		if i < len(second) {
			all = append(all, second[i])
		}
	}
	return all
}
