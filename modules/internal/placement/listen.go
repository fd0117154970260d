package placement

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"

	"github.com/portgate/caddy-portgate/modules/internal/gate"
)

// listening is one listen address of a server.
type listening struct {
	server, address string
	gate.Binding
}

func (l *listening) String() string {
	return fmt.Sprintf("listen address %q of server %q", l.address, l.server)
}

// checkListen refuses listen addresses that can't be listened on, or that mean something else than what was written.
func checkListen(app *layer4.App) error {
	var all []listening
	repl := caddy.NewReplacer()
	for _, name := range slices.Sorted(maps.Keys(app.Servers)) {
		if app.Servers[name] == nil {
			continue
		}
		for _, configured := range app.Servers[name].Listen {
			l := listening{server: name, address: repl.ReplaceAll(configured, "")}
			addr, err := caddy.ParseNetworkAddress(l.address)
			if err != nil {
				continue // layer4's to refuse
			}
			if err := checkAddress(addr, l.address); err != nil {
				return fmt.Errorf("%s: %w", &l, err)
			}
			l.Binding = gate.BindingOf(addr)
			all = append(all, l)
		}
	}
	return checkConflicts(all)
}

// checkAddress looks at one address alone.
func checkAddress(addr caddy.NetworkAddress, address string) error {
	if expected, unknown := gate.Unknown(addr.Network); unknown {
		return fmt.Errorf("unknown network %q: expected %s", addr.Network, expected)
	}
	n, isGate := gate.Parse(addr.Network)
	switch {
	case addr.IsUnixNetwork():
		return checkPath(addr)
	case n.Inherited:
		_, err := gate.Descriptor(addr.Host)
		return err
	case addr.IsFdNetwork():
		if _, err := strconv.ParseUint(addr.Host, 0, strconv.IntSize); err != nil { // as Caddy reads it
			return fmt.Errorf("%q: expected the number of a descriptor, as in %s/3", addr.Host, addr.Network)
		}
		return nil
	case !isGate && !isStock(addr.Network):
		return nil // another plugin's, which may need no port
	}
	if _, _, port, err := caddy.SplitNetworkAddress(address); err == nil && port == "" {
		return fmt.Errorf("expected a port, as in %s", caddy.JoinNetworkAddress(addr.Network, addr.Host, "8080"))
	}
	return checkFamily(addr)
}

// checkFamily refuses an IP address that is not of the network's family.
func checkFamily(addr caddy.NetworkAddress) error {
	ip, err := netip.ParseAddr(addr.Host)
	if err != nil {
		return nil // a name, or all addresses
	}
	is4 := ip.Unmap().Is4()
	switch {
	case strings.HasSuffix(addr.Network, "4") && !is4 && !ip.IsUnspecified(): // package net takes tcp4/[::] for tcp4/0.0.0.0
		return fmt.Errorf("expected an IPv4 address, because the network is %s", addr.Network)
	case strings.HasSuffix(addr.Network, "6") && is4:
		return fmt.Errorf("expected an IPv6 address, because the network is %s", addr.Network)
	}
	return nil
}

func isStock(network string) bool {
	switch strings.TrimRight(network, "46") {
	case "tcp", "udp":
		return true
	}
	return false
}

// checkPath refuses a path that begins where the process happens to be: unix/run/gate.sock was meant to be /run/gate.sock.
func checkPath(addr caddy.NetworkAddress) error {
	path, _, _ := strings.Cut(addr.Host, "|")
	switch {
	case path == "":
		return fmt.Errorf("expected a path, as in %s//run/gate.sock", addr.Network)
	case filepath.IsAbs(path), strings.HasPrefix(path, "@"), strings.HasPrefix(path, "."):
		return nil
	}
	return fmt.Errorf("expected a path from the root, with two slashes: %s//%s", addr.Network, addr.Host)
}

// checkConflicts refuses addresses that one config can't listen on both. It goes through them by their ports, so that many of them
// take no longer than sorting them.
func checkConflicts(all []listening) error {
	slices.SortStableFunc(all, func(a, b listening) int {
		return cmp.Or(cmp.Compare(a.Transport, b.Transport), cmp.Compare(a.First, b.First))
	})
	var open []*listening // those that reach the ports at which we are
	for i := range all {
		l := &all[i]
		open = slices.DeleteFunc(open, func(o *listening) bool { return o.Transport != l.Transport || o.Last < l.First })
		for _, o := range open {
			if !o.Conflicts(l.Binding) {
				continue
			}
			return fmt.Errorf("%s: expected each address once, but %s is the same or overlaps", l, o)
		}
		open = append(open, l)
	}
	return nil
}
