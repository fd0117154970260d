// Package gate knows the networks by their names: those that modules/network provides, and how they differ from those of Caddy
// and of other plugins.
package gate

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// Network is one of the gate networks.
type Network struct {
	Name      string // as in listen addresses
	Transport string // "tcp" or "udp", which is what sessions have as their network
	Family    string // "4" or "6"; empty for both
	Inherited bool   // the socket is a descriptor that the process was started with
}

// Networks are all gate networks.
var Networks = []Network{
	{Name: "gate+tcp", Transport: "tcp"},
	{Name: "gate+tcp4", Transport: "tcp", Family: "4"},
	{Name: "gate+tcp6", Transport: "tcp", Family: "6"},
	{Name: "gate+udp", Transport: "udp"},
	{Name: "gate+udp4", Transport: "udp", Family: "4"},
	{Name: "gate+udp6", Transport: "udp", Family: "6"},
	{Name: "gate+fd", Transport: "tcp", Inherited: true},
	{Name: "gate+fdgram", Transport: "udp", Inherited: true},
}

// Parse returns the gate network of that name, if it is one.
func Parse(name string) (network Network, ok bool) {
	for _, n := range Networks {
		if n.Name == name {
			return n, true
		}
	}
	return Network{}, false
}

// Datagrams reports whether connections of the network carry datagrams. It knows the gate networks, those of Caddy and of package net,
// and takes those of other plugins for streams unless their name says "udp" or "gram".
func Datagrams(network string) bool {
	if n, ok := Parse(network); ok {
		return n.Transport == "udp"
	}
	return strings.Contains(network, "udp") || strings.Contains(network, "gram") ||
		strings.HasPrefix(network, "ip:") || strings.HasPrefix(network, "ip4:") || strings.HasPrefix(network, "ip6:")
}

// Listener returns the address of one port of a gate network's listen address as log entries, metrics and configs have it: as it is
// configured, such as ":8080". Without a host gate+tcp4/:8080 is "0.0.0.0:8080" and gate+tcp6/:8080 is "[::]:8080", because a
// config may have both. Descriptor 3 is "fd/3".
func Listener(n Network, addr caddy.NetworkAddress, offset uint) string {
	host := addr.Host
	switch {
	case n.Inherited:
		return strings.TrimPrefix(n.Name, "gate+") + "/" + host
	case host == "" && n.Family == "4":
		host = "0.0.0.0"
	case host == "" && n.Family == "6":
		host = "::"
	}
	return net.JoinHostPort(host, strconv.FormatUint(uint64(addr.StartPort+offset), 10))
}

// firstDescriptor is the first one that a process can inherit beside its standard streams, sd_listen_fds(3).
const firstDescriptor = 3

// Descriptor returns the number in an address such as gate+fd/3.
func Descriptor(host string) (int, error) {
	fd, err := strconv.Atoi(host)
	if err != nil || fd < firstDescriptor {
		return 0, fmt.Errorf("%q: expected the number of a descriptor, from %d, as in gate+fd/%[2]d", host, firstDescriptor)
	}
	return fd, nil
}

// Names returns the names of all gate networks, for errors.
func Names() string {
	names := make([]string, len(Networks))
	for i, n := range Networks {
		names[i] = n.Name
	}
	return strings.Join(names, ", ")
}
