package gate

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

func TestDatagrams(t *testing.T) {
	t.Parallel()
	for network, want := range map[string]bool{
		"tcp": false, "tcp4": false, "tcp6": false, "unix": false, "unixpacket": false, "unix+h2c": false, "fd": false,
		"gate+tcp": false, "gate+tcp4": false, "gate+tcp6": false, "gate+fd": false, "tailscale": false, "tailscale+tls": false,
		"udp": true, "udp4": true, "udp6": true, "unixgram": true, "fdgram": true, "ip:icmp": true, "ip4:1": true, "ip6:58": true,
		"gate+udp": true, "gate+udp4": true, "gate+udp6": true, "gate+fdgram": true, "tailscale+udp": true,
	} {
		if got := Datagrams(network); got != want {
			t.Errorf("%s: %t, want %t", network, got, want)
		}
	}
}

// Every listener has a name of its own in logs and metrics, also where a config has both families of a port.
func TestListener(t *testing.T) {
	t.Parallel()
	for configured, want := range map[string]string{
		"gate+tcp/:80":                "[:80]",
		"gate+tcp/127.0.0.1:80":       "[127.0.0.1:80]",
		"gate+tcp/[::1]:80-81":        "[[::1]:80 [::1]:81]",
		"gate+udp/localhost:53":       "[localhost:53]",
		"gate+tcp4/:80":               "[0.0.0.0:80]",
		"gate+tcp6/:80":               "[[::]:80]",
		"gate+udp4/:53-54":            "[0.0.0.0:53 0.0.0.0:54]",
		"gate+udp6/[fe80::1%eth0]:53": "[[fe80::1%eth0]:53]",
		"gate+fd/3":                   "[fd/3]",
		"gate+fdgram/4":               "[fdgram/4]",
	} {
		addr, err := caddy.ParseNetworkAddress(configured)
		if err != nil {
			t.Fatal(err)
		}
		if got := listeners(t, addr); got != want {
			t.Errorf("%s: %s, want %s", configured, got, want)
		}
	}
}

func listeners(t *testing.T, addr caddy.NetworkAddress) string {
	t.Helper()
	n, ok := Parse(addr.Network)
	if !ok {
		t.Fatalf("%q is not a gate network", addr.Network)
	}
	var all []string
	for offset := range addr.PortRangeSize() {
		all = append(all, Listener(n, addr, offset))
	}
	return fmt.Sprint(all)
}

// What a config's address is taken for is what the connections that are accepted there say.
func TestSessionOf(t *testing.T) {
	t.Parallel()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tcp.Close() }()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = udp.Close() }()
	path := filepath.Join(t.TempDir(), "s")
	unix, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close() }()
	fd := func(network string, socket interface{ File() (*os.File, error) }) string {
		file, err := socket.File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = file.Close() })
		return fmt.Sprintf("%s/%d", network, file.Fd())
	}
	port := func(addr net.Addr) string { return addr.String()[strings.LastIndexByte(addr.String(), ':'):] }

	for configured, want := range map[string]string{
		":80":                              "tcp :80",
		"tcp/127.0.0.1:80":                 "tcp :80",
		"tcp4/:80":                         "tcp :80",
		"tcp6/[::1]:80":                    "tcp :80",
		"udp/:53":                          "udp :53",
		"udp6/:53":                         "udp :53",
		"unix//run/s":                      "unix /run/s",
		"unix//run/s|0222":                 "unix /run/s",
		"unixgram//run/s":                  "unixgram /run/s",
		"unix+h2c//run/s":                  "unix+h2c /run/s",
		"unix/@abstract":                   "unix @abstract",
		"fd/99999":                         "fd fd/99999",
		"fdgram/x":                         "fdgram fdgram/x",
		"fd/":                              "fd fd/",
		"ip4/127.0.0.1":                    "ip 127.0.0.1",
		"made-up/nowhere:7":                "made-up :7",
		"made-up/nowhere":                  "made-up :0",
		"gate+tcp/127.0.0.1:80":            "tcp 127.0.0.1:80",
		"gate+udp6/:53":                    "udp [::]:53",
		"gate+fd/3":                        "tcp fd/3",
		"gate+fdgram/3":                    "udp fdgram/3",
		fd("fd", tcp.(*net.TCPListener)):   "tcp " + port(tcp.Addr()),
		fd("fdgram", udp.(*net.UDPConn)):   "udp " + port(udp.LocalAddr()),
		fd("fd", unix.(*net.UnixListener)): "unix " + path,
	} {
		addr, err := caddy.ParseNetworkAddress(configured)
		if err != nil {
			t.Fatal(err)
		}
		network, listener := SessionOf(addr, 0)
		if got := network + " " + listener; got != want {
			t.Errorf("%s: %s, want %s", configured, got, want)
		}
	}
}

// Which addresses can't be bound at the same time, with the same port.
func TestOverlap(t *testing.T) {
	t.Parallel()
	addrs := []netip.Addr{
		{},
		netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2"),
		netip.MustParseAddr("::1"),
	}
	want := [][]int{ // as bind(2) has it
		{1, 1, 1, 1, 1, 1},
		{1, 1, 0, 1, 1, 0},
		{1, 0, 1, 0, 0, 1},
		{1, 1, 0, 1, 0, 0},
		{1, 1, 0, 0, 1, 0},
		{1, 0, 1, 0, 0, 1},
	}
	for i, a := range addrs {
		for j, b := range addrs {
			if got := Overlap(a, b); got != (want[i][j] == 1) {
				t.Errorf("%v and %v: %t", a, b, got)
			}
		}
	}
}
