package placement

import (
	"cmp"
	"fmt"
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
	addr            caddy.NetworkAddress
	gate.Binding
}

func (l *listening) String() string {
	return fmt.Sprintf("listen address %q of server %q", l.address, l.server)
}

// listeningOf returns the listen addresses of a server. It leaves out what can't be read, which is layer4's to refuse.
func listeningOf(repl *caddy.Replacer, name string, server *layer4.Server) (all []listening) {
	for _, configured := range server.Listen {
		l := listening{server: name, address: repl.ReplaceAll(configured, "")}
		addr, err := caddy.ParseNetworkAddress(l.address)
		if err == nil {
			l.addr, l.Binding = addr, gate.BindingOf(addr)
			all = append(all, l)
		}
	}
	return all
}

// checkListen refuses listen addresses that can't be listened on, or that mean something else than what was written.
func checkListen(all []listening) error {
	for i := range all {
		if err := checkAddress(all[i].addr, all[i].address); err != nil {
			return fmt.Errorf("%s: %w", &all[i], err)
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

// checkConflicts refuses addresses that one config can't listen on both. It goes through them by their ports, and compares each with
// no more than a few: thousands take no longer than sorting them, also where all have the same port of different hosts.
func checkConflicts(listens []listening) error {
	order := make([]*listening, len(listens))
	for i := range listens {
		order[i] = &listens[i]
	}
	slices.SortStableFunc(order, func(a, b *listening) int {
		return cmp.Or(cmp.Compare(a.Transport, b.Transport), cmp.Compare(a.First, b.First))
	})
	open := make(map[group]*listening, len(listens))
	var some []group
	for _, l := range order {
		some = l.groupsToCompare(some[:0])
		for _, g := range some {
			if o := open[g]; o != nil && o.Conflicts(l.Binding) {
				return fmt.Errorf("%s: expected each address once, but %s is the same or overlaps", l, o)
			}
		}
		some = l.groups(some[:0])
		for _, g := range some {
			if o := open[g]; o == nil || o.Last < l.Last {
				open[g] = l
			}
		}
	}
	return nil
}

// group is addresses that conflict with the same others, as far as they have the same ports. The one with the highest port stands for
// all: if any of them reaches the ports of an address that comes later, it does.
type group struct {
	transport string
	name      string     // of a host, a path or a descriptor
	ip        netip.Addr // of a host
	coverage
	gate bool // only those of gate networks
}

// coverage is which IP addresses there are at an address to listen on.
type coverage int

const (
	sameHost coverage = iota // that of the group
	all
	all4
	all6
	one4
	one6
)

// overlapping are the kinds of addresses that overlap one of a kind, beside the same address.
var overlapping = map[coverage][]coverage{
	all: {all4, all6, one4, one6}, all4: {all, one4}, all6: {all, one6}, one4: {all, all4}, one6: {all, all6},
}

func (l *listening) coverage() coverage {
	switch {
	case l.Name != "":
		return sameHost
	case !l.IP.IsValid():
		return all
	case l.IP == netip.IPv4Unspecified():
		return all4
	case l.IP == netip.IPv6Unspecified():
		return all6
	case l.IP.Is4():
		return one4
	}
	return one6
}

// groups appends those that the address is in.
func (l *listening) groups(in []group) []group {
	in = append(in, group{transport: l.Transport, name: l.Name, ip: l.IP})
	if c := l.coverage(); c != sameHost {
		in = append(in, group{transport: l.Transport, coverage: c})
		if l.IsGate() {
			in = append(in, group{transport: l.Transport, coverage: c, gate: true})
		}
	}
	return in
}

// groupsToCompare appends those in which an address may conflict with this one: of the stock networks only with those of gate networks,
// unless it is the same.
func (l *listening) groupsToCompare(with []group) []group {
	with = append(with, group{transport: l.Transport, name: l.Name, ip: l.IP})
	for _, c := range overlapping[l.coverage()] {
		with = append(with, group{transport: l.Transport, coverage: c, gate: !l.IsGate()})
	}
	return with
}
