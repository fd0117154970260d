package gate

import (
	"slices"
	"strings"
)

// networks of Caddy, beside those of this package.
var stock = []string{"tcp", "tcp4", "tcp6", "udp", "udp4", "udp6", "unix", "unixpacket", "unixgram", "ip", "ip4", "ip6", "fd", "fdgram"}

// Misspelled returns the known network that somebody meant who wrote this one. A network that nothing is known of may be
// another plugin's: only those that begin with "gate" can't be, and those that differ from a known one by a single letter, or
// by two that are swapped, are taken for that.
func Misspelled(network string) (meant string, ok bool) {
	known := slices.Clone(stock)
	for _, n := range Networks {
		known = append(known, n.Name)
	}
	name, _, _ := strings.Cut(network, ":") // of a protocol: ip4:icmp
	if slices.Contains(known, name) {
		return "", false
	}
	best := len(network)
	for _, name := range known {
		if d := distance(network, name); d < best {
			meant, best = name, d
		}
	}
	return meant, best <= 1 && len(network) > 2 || strings.HasPrefix(network, "gate")
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
