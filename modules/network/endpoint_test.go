package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func udpEndpoint(t testing.TB, address string) endpoint {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	ep, err := endpointOf("gate+udp", host, port, 0)
	if err != nil {
		t.Fatal(err)
	}
	return ep
}

// How an address is spelled does not matter, which families it is for does.
func TestEndpoints(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ network, host, listener, bound, network4net string }{
		{"gate+tcp", "", ":80", "invalid AddrPort", "tcp"},
		{"gate+tcp", "::", "[::]:80", "invalid AddrPort", "tcp"},
		{"gate+tcp", "0.0.0.0", "0.0.0.0:80", "0.0.0.0:80", "tcp4"},
		{"gate+tcp", "::ffff:0.0.0.0", "[::ffff:0.0.0.0]:80", "0.0.0.0:80", "tcp4"},
		{"gate+tcp4", "", "0.0.0.0:80", "0.0.0.0:80", "tcp4"},
		{"gate+tcp4", "0.0.0.0", "0.0.0.0:80", "0.0.0.0:80", "tcp4"},
		{"gate+tcp6", "", "[::]:80", "[::]:80", "tcp6"},
		{"gate+tcp6", "::", "[::]:80", "[::]:80", "tcp6"},
		{"gate+tcp4", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:80", "tcp4"},
		{"gate+tcp", "::ffff:127.0.0.1", "[::ffff:127.0.0.1]:80", "127.0.0.1:80", "tcp"},
		{"gate+tcp6", "::1", "[::1]:80", "[::1]:80", "tcp6"},
		{"gate+udp", "", ":80", "invalid AddrPort", "udp"},
		{"gate+udp4", "", "0.0.0.0:80", "0.0.0.0:80", "udp4"},
		{"gate+udp6", "", "[::]:80", "[::]:80", "udp6"},
	} {
		ep, err := endpointOf(c.network, c.host, "79-81", 1)
		if err != nil {
			t.Errorf("%s/%s: %v", c.network, c.host, err)
			continue
		}
		network, _ := ep.forNet()
		if ep.addr.Port() != 80 || ep.listener != c.listener || ep.addr.String() != c.bound || network != c.network4net {
			t.Errorf("%s/%s: %q %q port %d %s, want %q %q %s", c.network, c.host, ep.listener, ep.addr, ep.addr.Port(), network,
				c.listener, c.bound, c.network4net)
		}
	}
	for _, c := range []struct{ network, host, want string }{
		{"gate+tcp6", "127.0.0.1", `listening on "127.0.0.1:80": address 127.0.0.1: no suitable address found`},
		{"gate+udp4", "::1", `listening on "[::1]:80": address ::1: no suitable address found`},
		{"gate+fd", "2", `listening on "fd/2": "2": expected the number of a descriptor, from 3, as in gate+fd/3`},
		{"gate+fdgram", "x", `listening on "fdgram/x": "x": expected the number of a descriptor, from 3, as in gate+fd/3`},
		{"gate+upd", "", `network "gate+upd": expected one of gate+tcp, gate+tcp4, gate+tcp6, gate+udp, gate+udp4, gate+udp6, gate+fd, gate+fdgram`},
	} {
		if _, err := endpointOf(c.network, c.host, "80", 0); err == nil || err.Error() != c.want {
			t.Errorf("got  %v\nwant %s", err, c.want)
		}
	}
}

// Which addresses overlap, a test of gate says; those of ports that differ do not.
func TestOverlap(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"127.0.0.1:80", "0.0.0.0:80", true},
		{"127.0.0.1:80", "0.0.0.0:81", false},
		{"127.0.0.1:80", "127.0.0.2:80", false},
		{"127.0.0.1:80", "127.0.0.1:80", true},
		{"127.0.0.1:0", "127.0.0.1:0", false}, // each gets a port of its own
	} {
		a, b := netip.MustParseAddrPort(c.a), netip.MustParseAddrPort(c.b)
		if overlap(a, b) != c.want || overlap(b, a) != c.want {
			t.Errorf("%s and %s: %t", a, b, !c.want)
		}
	}
}

// Who dials the addresses of a family gets an answer, and of the other none; and both can be listened on by one config, as servers of
// their own.
func TestFamilies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		listen             string
		answers4, answers6 bool
	}{
		{"gate+tcp/:%d", true, true},
		{"gate+tcp/[::]:%d", true, true},
		{"gate+tcp/0.0.0.0:%d", true, false},
		{"gate+tcp4/:%d", true, false},
		{"gate+tcp6/:%d", false, true},
		{"gate+tcp6/[::]:%d", false, true},
	} {
		onFreePort(t, func(port int) error {
			g, err := tryListen(config(t), t, fmt.Sprintf(c.listen, port))
			if err != nil {
				return err
			}
			serve(t, g, "here")
			for address, answers := range map[string]bool{"127.0.0.1": c.answers4, "::1": c.answers6} {
				got, err := ask(netip.AddrPortFrom(netip.MustParseAddr(address), uint16(port)).String())
				if answers && (err != nil || got != "here") || !answers && !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s from %s: %q, %v", c.listen, address, got, err)
				}
			}
			return g.Close()
		})
	}
}

func TestFamiliesSideBySide(t *testing.T) {
	t.Parallel()
	onFreePort(t, func(port int) error {
		ctx := config(t)
		four, err := tryListen(ctx, t, fmt.Sprintf("gate+tcp4/:%d", port))
		if err != nil {
			return err
		}
		six, err := tryListen(ctx, t, fmt.Sprintf("gate+tcp6/:%d", port))
		if err != nil {
			return errors.Join(err, four.Close())
		}
		serve(t, four, "four")
		serve(t, six, "six")
		expectAnswer(t, fmt.Sprintf("127.0.0.1:%d", port), "four")
		expectAnswer(t, fmt.Sprintf("[::1]:%d", port), "six")
		return errors.Join(four.Close(), six.Close())
	})
}

func TestUDPFamilies(t *testing.T) {
	t.Parallel()
	onFreePort(t, func(port int) error {
		ctx := config(t)
		four, err := tryListenUDP(ctx, t, fmt.Sprintf("gate+udp4/:%d", port))
		if err != nil {
			return err
		}
		six, err := tryListenUDP(ctx, t, fmt.Sprintf("gate+udp6/:%d", port))
		if err != nil {
			return errors.Join(err, four.Close())
		}
		for g, host := range map[*generation]string{four: "127.0.0.1", six: "::1"} {
			client, err := net.Dial("udp", net.JoinHostPort(host, strconv.Itoa(port)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Write([]byte("question")); err != nil {
				t.Fatal(err)
			}
			conn := accept(t, g)
			b := make([]byte, 100)
			n, err := conn.Read(b)
			if string(b[:n]) != "question" || err != nil || conn.LocalAddr().Network() != "udp" {
				t.Errorf("%s: %q, %v on %s", host, b[:n], err, conn.LocalAddr().Network())
			}
			if _, err := io.WriteString(conn, "answer"); err != nil {
				t.Error(err)
			}
			if n, err = client.Read(b); string(b[:n]) != "answer" || err != nil {
				t.Errorf("%s: %q, %v", host, b[:n], err)
			}
			_ = client.Close()
			if want := fmt.Sprintf(":%d", port); !strings.HasSuffix(conn.ListenerAddr(), want) || conn.ListenerAddr() == want {
				t.Errorf("%s: the listener is %q", host, conn.ListenerAddr())
			}
		}
		return errors.Join(four.Close(), six.Close())
	})
}
