package gate

import (
	"slices"
	"strings"

	"github.com/portgate/caddy-portgate/caddyfile"
)

// networks of Caddy, beside those of this package, that can be listened on.
var stock = []string{"tcp", "tcp4", "tcp6", "udp", "udp4", "udp6", "unix", "unixpacket", "unixgram", "fd", "fdgram"}

// Unknown reports whether nobody can listen on a network of that name, and what may have been meant. A network that nothing is known of
// may be another plugin's. Those can't be that Caddy takes for its own by their beginning, those that begin with "gate", and those that
// differ from a known one by a single letter, or by two that are swapped.
func Unknown(network string) (expected string, unknown bool) {
	if _, known := Parse(network); known || slices.Contains(stock, network) {
		return "", false
	}
	protocol, _, _ := strings.Cut(network, ":")
	plain, isGate := strings.CutPrefix(network, "gate+")
	switch {
	case slices.Contains([]string{"ip", "ip4", "ip6"}, protocol): // which Caddy gives a port, so that no address is ever found
		return "tcp or udp, because Caddy can't listen on raw IP", true
	case strings.HasPrefix(network, "unix"):
		return "unix, unixgram or unixpacket", true
	case strings.HasPrefix(network, "fd"):
		return "fd or fdgram", true
	case isGate && slices.Contains(stock, plain):
		return plain + ", which has no gate network", true
	}
	known := slices.Clone(stock)
	for _, n := range Networks {
		known = append(known, n.Name)
	}
	best := len(network)
	for _, name := range known {
		if d := caddyfile.Distance(network, name); d < best {
			expected, best = name, d
		}
	}
	switch {
	case best <= 1 && len(network) > 2, isGate && best <= 2:
		return expected, true
	case strings.HasPrefix(network, "gate"):
		return "one of " + Names(), true
	}
	return "", false
}
