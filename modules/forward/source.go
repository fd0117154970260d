package forward

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// parseSources reads the source addresses.
func parseSources(values []string) (sources []netip.Addr, err error) {
	if len(values) == 0 {
		return nil, nil
	}
	repl := caddy.NewReplacer()
	for _, value := range values {
		ip, err := parseSource(repl.ReplaceKnown(value, ""))
		if err != nil {
			return nil, err
		}
		sources = append(sources, ip)
	}
	return sources, nil
}

func parseSource(value string) (netip.Addr, error) {
	ip, err := netip.ParseAddr(value)
	if err != nil || ip.IsUnspecified() || ip.IsMulticast() {
		return ip, fmt.Errorf("%q: expected an IP address of this machine, such as 192.0.2.7", value)
	}
	return ip, nil
}

// checkSources refuses upstreams that no source address can reach, because it is of the other family.
func checkSources(sources []netip.Addr, upstreams []upstream.Upstream) error {
	if len(sources) == 0 {
		return nil
	}
	var four, six bool
	for _, ip := range sources {
		four, six = four || ip.Unmap().Is4(), six || !ip.Unmap().Is4()
	}
	for _, u := range upstreams {
		switch family := familyOf(u); {
		case family == 4 && !four:
			return fmt.Errorf("%q: expected an IPv4 address, too, for the upstream %q", sources[0], u.Name)
		case family == 6 && !six:
			return fmt.Errorf("%q: expected an IPv6 address, too, for the upstream %q", sources[0], u.Name)
		}
	}
	return nil
}

// familyOf returns 4 or 6 where all addresses of an upstream are of that family, 0 where that is not known.
func familyOf(u upstream.Upstream) int {
	ip, err := netip.ParseAddr(u.Addr.Host)
	switch {
	case u.Dynamic:
		return 0
	case err == nil && ip.Unmap().Is4(), strings.HasSuffix(u.Addr.Network, "4"):
		return 4
	case err == nil, strings.HasSuffix(u.Addr.Network, "6"):
		return 6
	}
	return 0
}

// checkSourceArgs refuses what is no address, whatever its placeholders stand for.
func checkSourceArgs(args []string) error {
	for _, arg := range args {
		if strings.Contains(arg, "{") {
			continue
		}
		if _, err := parseSource(arg); err != nil {
			return err
		}
	}
	return nil
}
