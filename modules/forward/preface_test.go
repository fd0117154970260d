package forward

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// connectedTo is a connection of which only the local address is known.
type connectedTo struct {
	net.Conn
	local net.Addr
}

func (c connectedTo) LocalAddr() net.Addr { return c.local }

func TestHeaderOfEachClient(t *testing.T) {
	t.Parallel()
	const v2 = "0d0a0d0a000d0a515549540a"
	tcp := func(addr string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)) }
	udp := func(addr string) net.Addr { return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)) }
	for _, c := range []struct {
		option, network, client string
		local                   net.Addr
		told, want              string // want is in hexadecimal digits for v2
	}{
		{"", "tcp", "192.0.2.7:7777", tcp("198.51.100.1:8888"), "", ""},
		{"v1", "tcp", "192.0.2.7:7777", tcp("198.51.100.1:8888"), "", "PROXY TCP4 192.0.2.7 198.51.100.1 7777 8888\r\n"},
		{"v1", "tcp", "192.0.2.7:7777", tcp("[::ffff:198.51.100.1]:8888"), "", "PROXY TCP4 192.0.2.7 198.51.100.1 7777 8888\r\n"},
		{"v1", "tcp", "[2001:db8::7]:7777", tcp("[2001:db8::1]:8888"), "", "PROXY TCP6 2001:db8::7 2001:db8::1 7777 8888\r\n"},
		{"v1", "tcp", "[fe80::7%eth0]:7777", tcp("[fe80::1%eth0]:8888"), "", "PROXY TCP6 fe80::7 fe80::1 7777 8888\r\n"},
		{"v1", "tcp", "192.0.2.7:7777", tcp("[2001:db8::1]:8888"), "", "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 7777 8888\r\n"},
		{"v1", "tcp", "[2001:db8::7]:7777", tcp("10.0.0.1:1"), "198.51.100.1:8888", "PROXY TCP6 2001:db8::7 ::ffff:198.51.100.1 7777 8888\r\n"},
		{"v1", "tcp", "192.0.2.7:7777", tcp("10.0.0.1:1"), "198.51.100.1:8888", "PROXY TCP4 192.0.2.7 198.51.100.1 7777 8888\r\n"},
		{"v1", "unix", "", &net.UnixAddr{Name: "/run/s"}, "", "PROXY UNKNOWN\r\n"},
		{"v1", "unix", "192.0.2.7:7777", &net.UnixAddr{Name: "/run/s"}, "198.51.100.1:8888", "PROXY TCP4 192.0.2.7 198.51.100.1 7777 8888\r\n"},
		{"v2", "tcp", "192.0.2.7:7777", tcp("198.51.100.1:8888"), "", v2 + "2111000cc0000207c63364011e6122b8"},
		{
			"v2", "tcp", "192.0.2.7:7777", tcp("[2001:db8::1]:8888"), "",
			v2 + "21210024" + "00000000000000000000ffffc0000207" + "20010db8000000000000000000000001" + "1e6122b8",
		},
		{"v2", "unix", "", &net.UnixAddr{Name: "/run/s"}, "", v2 + "20000000"},
		{"v2", "udp", "192.0.2.7:7777", udp("198.51.100.1:53"), "", v2 + "2112000cc0000207c63364011e610035"},
		{
			"v2 first", "udp", "[2001:db8::7]:7777", udp("[2001:db8::1]:53"), "",
			v2 + "21220024" + "20010db8000000000000000000000007" + "20010db8000000000000000000000001" + "1e610035",
		},
	} {
		var client, told netip.AddrPort
		if c.client != "" {
			client = netip.MustParseAddrPort(c.client)
		}
		if c.told != "" {
			told = netip.MustParseAddrPort(c.told)
		}
		h := Handler{ProxyProtocol: c.option}
		if err := h.applyProxyProtocol(); err != nil {
			t.Fatal(err)
		}
		header := h.preface.header(&session.Session{Network: c.network, Client: client}, connectedTo{local: c.local}, told)
		got := string(header)
		if strings.HasPrefix(c.option, "v2") {
			got = hex.EncodeToString(header)
		}
		if got != c.want {
			t.Errorf("%s, %s %q to %s (%q): got %q, want %q", c.option, c.network, c.client, c.local, c.told, got, c.want)
		}
		if header == nil {
			continue
		}
		if _, rest, err := proxyproto.ParseUDPDatagram(append(header, "payload"...)); err != nil || string(rest) != "payload" {
			t.Errorf("%q is read as a header before %q, %v", got, rest, err)
		}
	}
}

// A listener may take all addresses of the machine: the header has the one that the client has connected to.
func TestHeaderBehindAWildcard(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(ln.Addr().(*net.TCPAddr).Port))
	client, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	from := client.LocalAddr().(*net.TCPAddr).AddrPort()
	want := fmt.Sprintf("PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\n", from.Port(), to.Port())
	got := preface{version: 1}.header(&session.Session{Network: "tcp", Client: from}, accepted, netip.AddrPort{})
	if string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Where the option is not set, a session pays nothing for it.
func TestNoHeaderCostsNothing(t *testing.T) {
	var p preface
	sess := &session.Session{Network: "tcp"}
	if allocs := testing.AllocsPerRun(100, func() { p.header(sess, nil, netip.AddrPort{}) }); allocs > 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestProxyProtocolFlag(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ from, to, option, want string }{
		{":8080", "a:1", "v1", ""},
		{":8080", "a:1", "v2", ""},
		{"udp/:53", "udp/a:53", "v2", ""},
		{"udp/:53", "udp/a:53", "v2 first", ""},
		{":8080", "a:1", "3", `--proxy-protocol: "3": expected v1 or v2`},
		{":8080", "a:1", "v2 first", `--proxy-protocol: "v2 first": expected a listen address of UDP, but there is only "gate+tcp/:8080"`},
		{"udp/:53", "udp/a:53", "v1", `--proxy-protocol: "v1": expected v2, as the listen address "gate+udp/:53" needs: version 1 is for TCP alone`},
	} {
		_, h, err := parseFlags(flagValues{from: c.from, to: []string{c.to}, proxyProtocol: c.option})
		switch {
		case err != nil && err.Error() != c.want || err == nil && c.want != "":
			t.Errorf("%s to %s, %q: %v, want %q", c.from, c.to, c.option, err, c.want)
		case err == nil && h.ProxyProtocol != c.option:
			t.Errorf("%s to %s: %q, want %q", c.from, c.to, h.ProxyProtocol, c.option)
		}
	}
}
