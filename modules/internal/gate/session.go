package gate

import (
	"net"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// SessionOf returns the network and the listener that sessions on one port of a listen address have, of any network: it is what
// their connections will say when they are accepted. Of the networks of other plugins only the port is known.
func SessionOf(addr caddy.NetworkAddress, offset uint) (network, listener string) {
	if n, ok := Parse(addr.Network); ok {
		return n.Transport, Listener(n, addr, offset)
	}
	switch {
	case addr.IsUnixNetwork():
		path, _, _ := strings.Cut(addr.Host, "|") // behind it are the permissions
		return addr.Network, path
	case addr.IsFdNetwork():
		if fd, err := strconv.Atoi(addr.Host); err == nil {
			if network, local := socketOf(fd); network != "" {
				return network, local
			}
		}
		return addr.Network, addr.Network + "/" + addr.Host
	case strings.HasPrefix(addr.Network, "ip"):
		network, _, _ = strings.Cut(addr.Network, ":")
		return strings.TrimRight(network, "46"), addr.Host
	}
	network = addr.Network
	switch network {
	case "tcp4", "tcp6", "udp4", "udp6":
		network = network[:3]
	}
	return network, portOf(addr.StartPort + offset)
}

func portOf(port uint) string { return net.JoinHostPort("", strconv.FormatUint(uint64(port), 10)) }
