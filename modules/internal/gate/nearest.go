package gate

import (
	"slices"
	"strings"
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
		if d := distance(network, name); d < best {
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

// distance is how many letters have to be added, taken away, replaced or swapped with the next one to make b of a (optimal string
// alignment).
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replaced := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				replaced++
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, replaced)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
