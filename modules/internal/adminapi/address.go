package adminapi

import (
	"fmt"
	"net"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// Address returns the address of an admin API that somebody gives on the command line in the form that Caddy's commands
// take: host:port or unix/path. A URL such as http://host:port/ is understood, too.
func Address(given string) (string, error) {
	wrong := func(expected string) error { return fmt.Errorf("%q: expected %s", given, expected) }
	const forms = "the address of the admin API, such as localhost:2019, http://localhost:2019 or unix//run/caddy.sock"
	addr := given
	if scheme, rest, isURL := strings.Cut(given, "://"); isURL {
		switch strings.ToLower(scheme) {
		case "http":
			addr = rest
		case "https":
			return "", wrong("http://, because this command does not speak TLS to the admin API")
		default:
			return "", wrong(forms)
		}
	}
	if path, isUnix := strings.CutPrefix(addr, "unix/"); isUnix && addr == given {
		if path == "" || strings.HasSuffix(path, "/") {
			return "", wrong("the path of a socket behind unix/, such as unix//run/caddy.sock")
		}
		return addr, nil
	}
	addr = strings.TrimSuffix(addr, "/")
	network, hostPort, hasNetwork := strings.Cut(addr, "/")
	switch {
	case !hasNetwork:
		hostPort = addr
	case addr != given || network != "tcp" && network != "tcp4" && network != "tcp6":
		return "", wrong(forms + ", and nothing behind it")
	}
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil || strings.ContainsAny(host, "@?#") {
		return "", wrong(forms)
	}
	if host == "" {
		host = "localhost"
	}
	addr = net.JoinHostPort(host, port)
	if hasNetwork {
		addr = network + "/" + addr
	}
	parsed, err := caddy.ParseNetworkAddress(addr)
	if err != nil || parsed.PortRangeSize() != 1 || parsed.StartPort == 0 {
		return "", wrong(forms)
	}
	return addr, nil
}
