// Package upstream knows where a session may be forwarded to: addresses, their resolution, and
// the order in which they are tried.
package upstream

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Addr is the address of an upstream as configured.
type Addr struct {
	// Network is "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6" or "unix"; where it is empty, it is tcp for streams
	// and udp for datagrams.
	Network string
	// Host is an IP address, a name, or empty for this machine; of a unix socket it is the path.
	Host string
	// Port and LastPort are the first and the last port of a range; they are equal where there is
	// only one, and 0 for unix sockets.
	Port, LastPort uint16
}

const expected = "expected host:port, host:first-last or unix//path"

// Parse reads "host:port", "host:first-last" (a range of ports), both with an optional "tcp/", "tcp4/", "tcp6/",
// "udp/", "udp4/" or "udp6/" before them, or "unix//path".
func Parse(s string) (Addr, error) {
	network, rest := "", s
	if before, after, found := strings.Cut(s, "/"); found {
		network, rest = strings.ToLower(before), after
	}
	switch network {
	case "unix":
		if rest == "" {
			return Addr{}, fmt.Errorf("%q: %s", s, expected)
		}
		return Addr{Network: network, Host: rest}, nil
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
	default:
		if rest == s {
			break // none is given
		}
		return Addr{}, fmt.Errorf("%q: unknown network %q: expected tcp, tcp4, tcp6, udp, udp4, udp6 or unix", s, network)
	}
	host, ports, err := net.SplitHostPort(rest)
	if err != nil {
		return Addr{}, fmt.Errorf("%q: %s", s, expected)
	}
	first, last, isRange := strings.Cut(ports, "-")
	a := Addr{Network: network, Host: host}
	a.Port, err = parsePort(first)
	a.LastPort = a.Port
	if err == nil && isRange {
		a.LastPort, err = parsePort(last)
	}
	if err != nil {
		return Addr{}, fmt.Errorf("%q: %w", s, err)
	}
	if a.LastPort < a.Port {
		return Addr{}, fmt.Errorf("%q: port range %q ends before it starts", s, ports)
	}
	if err := a.checkHost(); err != nil {
		return Addr{}, fmt.Errorf("%q: host %q: %w", s, host, err)
	}
	return a, nil
}

// ParseExpanded reads what the placeholders of name have made of it. A host that was to be filled in and came out
// empty, as that of a variable which is not set, is not this machine.
func ParseExpanded(name, expanded string) (Addr, error) {
	a, err := Parse(expanded)
	if err == nil && a.Network != "unix" && a.Host == "" && hasHost(name) {
		return Addr{}, fmt.Errorf("%q: expected a host before the port", expanded)
	}
	return a, err
}

// hasHost tells whether something stands before the colon of the port, which is one outside of placeholders.
func hasHost(name string) bool {
	if before, after, found := strings.Cut(name, "/"); found && !strings.ContainsAny(before, "{}") {
		name = after
	}
	open := 0
	for i, c := range name {
		switch {
		case c == '{':
			open++
		case c == '}':
			open--
		case c == ':' && open == 0:
			return i > 0
		}
	}
	return false
}

// checkHost finds the address that could never be dialed: one of the other family than the network's, or
// one that is mistyped, which would otherwise be looked up as a name.
func (a Addr) checkHost() error {
	ip, err := netip.ParseAddr(a.Host)
	switch {
	case err != nil && isName(a.Host):
		return nil
	case err != nil:
		return errors.New("expected an IP address or a name")
	case strings.HasSuffix(a.Network, "4") && !ip.Unmap().Is4():
		return errors.New("expected an IPv4 address or a name")
	case strings.HasSuffix(a.Network, "6") && ip.Unmap().Is4():
		return errors.New("expected an IPv6 address or a name")
	}
	return nil
}

// maxName is how long a name may be, with a dot at its end (RFC 1035, section 3.1). A client may choose it.
const maxName = 254

// isName tells what a resolver looks up, this machine included. It takes no name of numbers alone: 10.0.0.256
// is not one.
func isName(host string) bool {
	const digits, others = "0123456789", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"
	dotted := strings.Contains(host, ".") && strings.Trim(host, digits+".") == ""
	return !dotted && len(host) <= maxName && strings.Trim(host, digits+others+".") == ""
}

func parsePort(s string) (uint16, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("port %q: expected a number from 1 to 65535", s)
	}
	return uint16(port), nil
}

// Ports returns how many ports the address has: 0 for a unix socket, more than 1 for a range.
func (a Addr) Ports() int {
	if a.Network == "unix" {
		return 0
	}
	return int(a.LastPort-a.Port) + 1
}

// Carries returns an error where what is forwarded can't be sent to the address: datagrams or a stream.
func (a Addr) Carries(datagrams bool) error {
	switch {
	case a.Network == "":
	case datagrams && !strings.HasPrefix(a.Network, "udp"):
		return fmt.Errorf("a %s address can't be sent datagrams: expected udp/host:port", a.Network)
	case !datagrams && strings.HasPrefix(a.Network, "udp"):
		return fmt.Errorf("a %s address can't be sent a stream: expected tcp/host:port or unix//path", a.Network)
	}
	return nil
}

// fixed returns the address to dial where there is nothing to look up, for the port that is offset
// from the first.
func (a Addr) fixed(offset int, datagrams bool) (addr net.Addr, ok bool) {
	if a.Network == "unix" {
		return &net.UnixAddr{Net: a.Network, Name: a.Host}, true
	}
	ip, err := netip.ParseAddr(a.Host)
	if err != nil {
		return nil, false
	}
	return a.at(ip, offset, datagrams), true
}

func (a Addr) at(ip netip.Addr, offset int, datagrams bool) net.Addr {
	addr := netip.AddrPortFrom(ip.Unmap(), a.Port+uint16(offset))
	if datagrams {
		return net.UDPAddrFromAddrPort(addr)
	}
	return net.TCPAddrFromAddrPort(addr)
}
