package placement

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
)

// listen checks the addresses of servers.
func listen(servers map[string][]string) error {
	app := &layer4.App{Servers: make(map[string]*layer4.Server)}
	for name, listen := range servers {
		app.Servers[name] = &layer4.Server{Listen: listen}
	}
	l := newLayout()
	l.noteServers(app, nil)
	return l.listen
}

func TestCheckListen(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ first, second, want string }{ // each the address of a server; want is empty where they are right
		{"gate+upd/:53", "", `listen address "gate+upd/:53" of server "a": unknown network "gate+upd": expected gate+udp`},
		{"gate+tpc/:53", "", `listen address "gate+tpc/:53" of server "a": unknown network "gate+tpc": expected gate+tcp`},
		{"gate-tcp/:53", "", `listen address "gate-tcp/:53" of server "a": unknown network "gate-tcp": expected gate+tcp`},
		{"gate+tcp5/:53", "", `listen address "gate+tcp5/:53" of server "a": unknown network "gate+tcp5": expected gate+tcp`},
		{"gate/:53", "", `listen address "gate/:53" of server "a": unknown network "gate": expected one of gate+tcp, gate+tcp4`},
		{"gate+quic/:53", "", `listen address "gate+quic/:53" of server "a": unknown network "gate+quic": expected one of gate+tcp, gate+tcp4`},
		{"gate+unix//x", "", `listen address "gate+unix//x" of server "a": unknown network "gate+unix": expected unix, which has no gate network`},
		{"gate+unixgram//x", "", `unknown network "gate+unixgram": expected unixgram, which has no gate network`},
		{"gate+udp5/:53", "", `unknown network "gate+udp5": expected gate+udp`},
		{"unix+h2c//x", "", `listen address "unix+h2c//x" of server "a": unknown network "unix+h2c": expected unix, unixgram or unixpacket`},
		{"unixsock//x", "", `unknown network "unixsock": expected unix, unixgram or unixpacket`},
		{"fds/3", "", `unknown network "fds": expected fd or fdgram`},
		{"ip/127.0.0.1", "", `listen address "ip/127.0.0.1" of server "a": unknown network "ip": expected tcp or udp, because Caddy can't listen on raw IP`},
		{"ip4:1/127.0.0.1", "", `unknown network "ip4:1": expected tcp or udp, because Caddy can't listen on raw IP`},
		{"ip6:nonsense/::1", "", `unknown network "ip6:nonsense": expected tcp or udp`},
		{"ipfs/x", "", ``},
		{"unixpacket//x", "", ``},
		{"tpc/:53", "", `listen address "tpc/:53" of server "a": unknown network "tpc": expected tcp`},
		{"upd/:53", "", `listen address "upd/:53" of server "a": unknown network "upd": expected udp`},
		{"unx//run/s", "", `listen address "unx//run/s" of server "a": unknown network "unx": expected unix`},
		{"made-up/nowhere", "", ``},
		{"tailscale/:80", "", ``},

		{"gate+tcp/127.0.0.1", "", `listen address "gate+tcp/127.0.0.1" of server "a": expected a port, as in gate+tcp/127.0.0.1:8080`},
		{"gate+udp6/", "", `listen address "gate+udp6/" of server "a": expected a port, as in gate+udp6/:8080`},
		{"127.0.0.1", "", `listen address "127.0.0.1" of server "a": expected a port, as in tcp/127.0.0.1:8080`},
		{"[::1]", "", `listen address "[::1]" of server "a": expected a port, as in tcp/[::1]:8080`},
		{"udp/localhost", "", `listen address "udp/localhost" of server "a": expected a port, as in udp/localhost:8080`},
		{"gate+tcp/:0", "gate+tcp/:0", ``},
		{"gate+fd/3", "gate+fdgram/4", ``},

		{"gate+fd/", "", `listen address "gate+fd/" of server "a": "": expected the number of a descriptor, from 3, as in gate+fd/3`},
		{"gate+fd/2", "", `expected the number of a descriptor, from 3`},
		{"gate+fd/3-4", "", `expected the number of a descriptor, from 3`},
		{"gate+fdgram/-1", "", `expected the number of a descriptor, from 3`},
		{"gate+fd/99999999999999999999", "", `expected the number of a descriptor, from 3`},
		{"fd/", "", `listen address "fd/" of server "a": "": expected the number of a descriptor, as in fd/3`},
		{"fdgram/x", "", `listen address "fdgram/x" of server "a": "x": expected the number of a descriptor, as in fdgram/3`},
		{"fd/0x3", "fdgram/0", ``},

		{"gate+tcp4/[::1]:80", "", `listen address "gate+tcp4/[::1]:80" of server "a": expected an IPv4 address, because the network is gate+tcp4`},
		{"udp4/[2001:db8::1]:80", "", `expected an IPv4 address, because the network is udp4`},
		{"gate+udp6/0.0.0.0:80", "", `listen address "gate+udp6/0.0.0.0:80" of server "a": expected an IPv6 address, because the network is gate+udp6`},
		{"tcp6/[::ffff:127.0.0.1]:80", "", `expected an IPv6 address, because the network is tcp6`},
		{"gate+tcp4/[::]:80", "gate+tcp6/[::]:81", ``},
		{"gate+tcp4/127.0.0.1:80", "gate+tcp6/[fe80::1%eth0]:80", ``},
		{"gate+tcp4/localhost:80", "gate+tcp4/[::ffff:127.0.0.1]:81", ``},

		{"unix/run/gate.sock", "", `listen address "unix/run/gate.sock" of server "a": expected a path from the root, with two slashes: unix//run/gate.sock`},
		{"unixgram/", "", `listen address "unixgram/" of server "a": expected a path, as in unixgram//run/gate.sock`},
		{"unix//run/gate.sock|0222", "unix/@abstract", ``},
		{"unix/./gate.sock", "", ``},

		{":80", ":80", `listen address ":80" of server "b": expected each address once, but listen address ":80" of server "a" is the same or overlaps`},
		{"gate+tcp/:80", "gate+tcp/[::]:80", `listen address "gate+tcp/[::]:80" of server "b": expected each address once, but listen address "gate+tcp/:80" of server "a" is the same or overlaps`},
		{"gate+tcp/:80", "gate+tcp/0.0.0.0:80", `same or overlaps`},
		{"gate+tcp/:80", "gate+tcp/127.0.0.1:80", `same or overlaps`},
		{"gate+tcp/:80", "tcp/127.0.0.1:80", `same or overlaps`},
		{"gate+tcp/127.0.0.1:80", "gate+tcp4/127.0.0.1:80", `same or overlaps`},
		{"gate+tcp/localhost:80", "gate+tcp/LocalHost:80", `same or overlaps`},
		{"gate+tcp/:70-90", "gate+tcp/127.0.0.1:80", `same or overlaps`},
		{"gate+tcp/:70-90", "gate+tcp/:90-99", `same or overlaps`},
		{"gate+udp/:53", "udp/:53", `same or overlaps`},
		{"0.0.0.0:80", "tcp/:80", `same or overlaps`},
		{"gate+fd/3", "fd/3", `same or overlaps`},
		{"unix//run/s", "unix//run/s|0222", `same or overlaps`},

		{":80", "127.0.0.1:80", ``}, // as Caddy's own networks may
		{"gate+tcp/:80", "gate+udp/:80", ``},
		{"gate+tcp/:80", "gate+tcp/:81", ``},
		{"gate+tcp4/:80", "gate+tcp6/:80", ``},
		{"gate+tcp/0.0.0.0:80", "gate+tcp/[::1]:80", ``},
		{"gate+tcp/127.0.0.1:80", "gate+tcp/127.0.0.2:80", ``},
		{"gate+tcp/:70-80", "gate+tcp/:81-90", ``},
		{"gate+fd/3", "gate+fd/4", ``},
	} {
		servers := map[string][]string{"a": {c.first}}
		if c.second != "" {
			servers["b"] = []string{c.second}
		}
		err := listen(servers)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s and %s:\ngot  %v\nwant %s", c.first, c.second, err, c.want)
		}
		if c.second == "" {
			continue
		}
		if err := listen(map[string][]string{"a": {c.first, c.second}}); (err != nil) != (c.want != "") {
			t.Errorf("%s and %s in one server: %v", c.first, c.second, err)
		}
	}
}

// The check refuses what a comparison of each address with each other one does, and compares none with more than a few.
func TestConflictsAsComparedOneByOne(t *testing.T) {
	t.Parallel()
	hosts := []string{"", "[::]", "0.0.0.0", "127.0.0.1", "127.0.0.2", "[::1]", "localhost", "[::ffff:127.0.0.1]"}
	networks := []string{"tcp", "tcp4", "tcp6", "udp", "gate+tcp", "gate+tcp4", "gate+tcp6", "gate+udp"}
	refused := 0
	for range 5000 {
		addresses := make([]string, 2+rand.IntN(5))
		for i := range addresses {
			first := rand.IntN(12)
			addresses[i] = fmt.Sprintf("%s/%s:%d-%d", networks[rand.IntN(len(networks))], hosts[rand.IntN(len(hosts))], first, first+rand.IntN(4))
		}
		all := listeningOf(caddy.NewReplacer(), "a", &layer4.Server{Listen: addresses})
		if len(all) != len(addresses) {
			t.Fatalf("of %q %d were read", addresses, len(all))
		}
		want := false
		for i := range all {
			for j := range all[:i] {
				want = want || all[j].Conflicts(all[i].Binding)
			}
			if n := len(all[i].groupsToCompare(nil)); n > 5 {
				t.Errorf("%q is compared with %d others", addresses[i], n)
			}
		}
		err := checkConflicts(all)
		if (err != nil) != want {
			t.Errorf("%q: %v, want an error: %t", addresses, err, want)
		}
		if want {
			refused++
		}
	}
	if refused < 500 || refused > 4500 {
		t.Errorf("%d were refused", refused)
	}
}
