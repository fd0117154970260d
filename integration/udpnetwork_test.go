package integration

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// ip runs the program ip.
func ip(t testing.TB, args ...string) {
	t.Helper()
	run(t, program(t, "ip"), args...)
}

// beyondNarrowHop makes a second namespace behind the first one, which forwards to it over a link that takes no more than mtu bytes. It returns
// upstreams there, each at an address of its own.
func (n namespace) beyondNarrowHop(t testing.TB, mtu, upstreams int) (addrs []string) {
	t.Helper()
	far := namespace{name: n.name + "far"}
	network := fmt.Sprintf("198.19.%d", n.id>>6) // as in newNamespace; each address has 4 of its own there
	at := func(i int) string { return fmt.Sprintf("%s.%d", network, n.id&15<<4+i) }
	ip(t, "netns", "add", far.name)
	t.Cleanup(func() { ip(t, "netns", "delete", far.name) })
	size := fmt.Sprint(mtu)
	ip(t, "-n", n.name, "link", "add", "hop", "mtu", size, "type", "veth", "peer", "name", "end", "mtu", size, "netns", far.name)
	ip(t, "-n", n.name, "address", "add", at(1)+"/28", "dev", "hop")
	ip(t, "-n", n.name, "link", "set", "hop", "up")
	ip(t, "-n", far.name, "link", "set", "end", "up")
	for i := range upstreams {
		addr := at(2 + i)
		ip(t, "-n", far.name, "address", "add", addr+"/28", "dev", "end")
		addrs = append(addrs, net.JoinHostPort(addr, "7"))
	}
	ip(t, "-n", far.name, "route", "add", "default", "via", at(1))
	ip(t, "route", "add", at(0)+"/28", "via", n.inside)
	n.do(t, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
	far.do(t, func() error {
		for _, addr := range addrs {
			conn, err := net.ListenPacket("udp4", addr)
			if err != nil {
				return err
			}
			t.Cleanup(func() { conn.Close() })
			answerUDP(t, conn.(*net.UDPConn), tellUDP(addr))
		}
		return nil
	})
	return addrs
}

// bothUDP are networks whose sessions are served by event loops and by goroutines.
var bothUDP = []string{"gate+udp", "udp"}

// A hop that is too narrow for a datagram says so (ICMP fragmentation needed). That is no refusal: the session stays with its upstream. The
// datagram is sent again if the upstream has not answered yet, and else it is the only one that is lost.
func TestNarrowHopIsNoRefusal(t *testing.T) {
	t.Parallel()
	upstreams := newNamespace(t).beyondNarrowHop(t, 1280, 8)
	large := strings.Repeat("x", 1400)
	for k, before := range []string{"before an answer", "after an answer", "before an answer", "after an answer"} {
		network, i := bothUDP[k/2], k%2
		addr := gate.ReserveAddr(t)
		pair := upstreams[2*k : 2*k+2] // the hop is known for a first one from then on
		p := gate.Start(t, gate.Layer4(gate.Listen(network+"/"+addr, gate.Forward(pair...))))
		client := dialUDP(t, addr)
		lost, source := 0, ""
		if i == 1 {
			source = mustAsk(t, client, pair[0])
		}
		for range 10 {
			client.SetReadDeadline(time.Now().Add(2 * time.Second))
			name, from, err := ask(client, large)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				lost++
				continue
			}
			must(t, err)
			if name != pair[0] || source != "" && from != source {
				t.Fatalf("%s, %s: %q has answered %q, want %q %q", network, before, name, from, pair[0], source)
			}
			source = from
		}
		if lost > i {
			t.Errorf("%s, %s: %d datagrams were lost", network, before, lost)
		}
		m := p.Metrics()
		if network == "gate+udp" { // others do not count datagrams
			must(t, equal(m, "caddy_portgate_datagrams_dropped_total", lost))
		}
		must(t, errors.Join(
			equal(m, "caddy_portgate_upstream_fails_total", 0),
			equal(m, "caddy_portgate_datagrams_dropped_total", 0, label("reason", "upstream_refused")),
			equal(m, "caddy_portgate_sessions_total", 0),
			equal(m, "caddy_portgate_sessions_active", 1)))
	}
}

// A router on the way has a filter in front of an upstream, and says so (ICMP administratively prohibited): the next upstream gets the
// datagram at once, as where nobody listens.
func TestFilterOnTheWayIsARefusal(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	filtered := fmt.Sprintf("198.19.%d.%d", n.id>>6, 192+n.id&63)
	ip(t, "route", "add", filtered, "via", n.inside)
	n.do(t, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
	ip(t, "-n", n.name, "route", "add", "prohibit", filtered)
	other := serveUDP(t, tellUDP("other"))
	for _, network := range bothUDP {
		addr := gate.ReserveAddr(t)
		p := gate.Start(t, gate.Layer4(gate.Listen(network+"/"+addr, gate.Forward(net.JoinHostPort(filtered, "7"), other))))
		client := dialUDP(t, addr)
		for range 3 {
			mustAsk(t, client, "other")
		}
		must(t, equal(p.Metrics(), "caddy_portgate_upstream_fails_total", 1, label("upstream", net.JoinHostPort(filtered, "7"))))
	}
}

// The gateway gets another address while a client goes on sending: the session goes on from the new one.
func TestReplacedAddressOfTheGateway(t *testing.T) {
	for _, network := range bothUDP {
		t.Run(network, func(t *testing.T) { replaceAddress(t, network) })
	}
}

func replaceAddress(t *testing.T, network string) {
	n := newNamespace(t)
	far := n.name + "b"
	v6 := func(host int) string { return fmt.Sprintf("2001:2:0:%x::%d", n.id+1, host) } // for tests, too (RFC 5180)
	ip(t, "-6", "address", "add", v6(1)+"/64", "dev", n.near, "nodad")
	ip(t, "-n", n.name, "-6", "address", "add", v6(2)+"/64", "dev", far, "nodad")
	for _, c := range []struct {
		upstream, former, next string
		replace                func()
	}{
		{n.inside, n.outside, "198.19.255.255", func() {
			ip(t, "address", "delete", n.outside+"/30", "dev", n.near)
			ip(t, "address", "add", "198.19.255.255/32", "dev", n.near)
			ip(t, "route", "add", n.inside, "dev", n.near)
			ip(t, "-n", n.name, "route", "add", "198.19.255.255", "dev", far)
		}},
		{v6(2), v6(1), v6(3), func() {
			ip(t, "-6", "address", "add", v6(3)+"/64", "dev", n.near, "nodad")
			ip(t, "-6", "address", "delete", v6(1)+"/64", "dev", n.near)
		}},
	} {
		upstream := net.JoinHostPort(c.upstream, "7")
		n.do(t, func() error {
			conn, err := net.ListenPacket("udp", upstream)
			if err == nil {
				t.Cleanup(func() { conn.Close() })
				answerUDP(t, conn.(*net.UDPConn), tellUDP("upstream"))
			}
			return err
		})
		addr := gate.ReserveAddr(t)
		p := gate.Start(t, gate.Layer4(gate.Listen(network+"/"+addr, gate.Forward(upstream))))
		client := dialUDP(t, addr)
		from := func() (host string) {
			client.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if _, source, err := ask(client, "message"); err == nil {
				host, _, _ = net.SplitHostPort(source)
			}
			return host
		}
		gate.Eventually(t, peerTimeout, func() error { return mustBe(from(), c.former) })
		c.replace()
		gate.Eventually(t, peerTimeout, func() error { return mustBe(from(), c.next) })
		m := p.Metrics()
		must(t, errors.Join(
			equal(m, "caddy_portgate_upstream_fails_total", 0),
			equal(m, "caddy_portgate_sessions_total", 0),
			equal(m, "caddy_portgate_sessions_active", 1)))
	}
}

func mustBe(got, want string) error {
	if got != want {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

// The upstream's name leads to another address (dynamic DNS), and the former one is silent. The client, which goes on sending, finds the new
// one in less than a minute.
func TestUpstreamMovesWhileItsSessionIsBusy(t *testing.T) {
	t.Parallel()
	for _, network := range bothUDP {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			moveUpstream(t, network)
		})
	}
}

func moveUpstream(t *testing.T, network string) {
	file := newHosts(t)
	file.set(t, "127.0.0.1")
	former := listenUDP(t, "127.0.0.1:0")
	_, number, _ := net.SplitHostPort(former.LocalAddr().String())
	next := listenUDP(t, "127.0.0.2:"+number)
	answerUDP(t, next, tellUDP("next"))
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(network+"/"+addr, gate.Forward(net.JoinHostPort(hostName, number)))), gate.WithHosts(string(file)))
	client := dialUDP(t, addr)
	passWhole(t, 100, client, former)
	file.set(t, "127.0.0.2")
	gate.Eventually(t, 2*time.Minute, func() error {
		client.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, _, err := ask(client, "message")
		return err
	})
	m := p.Metrics()
	must(t, errors.Join(
		equal(m, "caddy_portgate_upstream_fails_total", 0),
		equal(m, "caddy_portgate_sessions_total", 0),
		equal(m, "caddy_portgate_sessions_active", 1)))
	client.Close()
	p.Load(gate.Layer4())
	if s := p.WaitSession(port(client)); s.Upstream != next.LocalAddr().String() {
		t.Errorf("access log: %s", s.Line)
	}
}

// portsIn gives a namespace so many ports to connect from, and another address. What a test opens in it then takes none of them.
func (n namespace) portsIn(t testing.TB, ports int) (other string) {
	t.Helper()
	n.do(t, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", fmt.Appendf(nil, "20000 %d", 20000+ports-1), 0)
	})
	other = fmt.Sprintf("198.19.%d.%d", n.id>>6, 128+n.id&63)
	ip(t, "-n", n.name, "address", "add", other+"/32", "dev", n.name+"b")
	ip(t, "-n", n.name, "link", "set", "lo", "up")
	ip(t, "route", "add", other, "via", n.inside)
	return other
}

// An upstream that is in the tests' own namespace, of a gateway that is in another one.
func (n namespace) serveUDPOutside(t testing.TB, handle func(from netip.AddrPort, b []byte) []byte) (addr string) {
	t.Helper()
	conn := listenUDP(t, net.JoinHostPort(n.outside, "0"))
	answerUDP(t, conn, handle)
	return conn.LocalAddr().String()
}

// Where all ports of the system are in use, sessions that nobody answers make room for new ones, also those of another listener. The
// process does not try again and again, and says once what is missing.
func TestSessionsMakeRoomWhereNoPortIsLeft(t *testing.T) {
	t.Parallel()
	const ports, unanswered, clients = 64, 150, 10
	n := newNamespace(t)
	n.portsIn(t, ports)
	upstream := n.serveUDPOutside(t, func(from netip.AddrPort, b []byte) []byte {
		if string(b) == "unanswered" {
			return nil
		}
		return tellUDP("upstream")(from, b)
	})
	addr, other := net.JoinHostPort(n.inside, "53"), net.JoinHostPort(n.inside, "54")
	p := gate.Start(t, gate.Layer4(gate.ListenUDP(addr, gate.Forward(upstream)), gate.ListenUDP(other, gate.Forward(upstream))),
		gate.WithNamespace(n.name), gate.WithoutRace())
	friend := dialUDP(t, other)
	source := mustAsk(t, friend, "upstream")
	mustAsk(t, friend, "upstream") // from now on nobody takes its place
	for range unanswered {
		mustWrite(t, dialUDP(t, addr), "unanswered")
	}
	for range 2 {
		for _, to := range []string{addr, other} {
			for range clients {
				mustAsk(t, dialUDP(t, to), "upstream")
			}
		}
	}
	if got := mustAsk(t, friend, "upstream"); got != source {
		t.Errorf("an established session goes on from %s, and had %s", got, source)
	}
	m := p.Metrics()
	if n := m.Sum("caddy_portgate_udp_sessions_evicted_total"); n < unanswered+4*clients-ports {
		t.Errorf("%v sessions were evicted", n)
	}
	if m.Sum("caddy_portgate_local_connect_errors_total", label("reason", "no_port")) == 0 {
		t.Error("no failure is counted")
	}
	must(t, equal(m, "caddy_portgate_upstream_fails_total", 0))
	if n := strings.Count(p.Output(), "no port is left"); n != 1 || !strings.Contains(p.Output(), "net.ipv4.ip_local_port_range") {
		t.Errorf("the log says %d times that no port is left", n)
	}
	before := p.CPUTime()
	<-time.After(time.Second)
	if used := p.CPUTime() - before; used > 200*time.Millisecond {
		t.Errorf("%v of CPU in a second in which nothing was sent", used)
	}
}

// Sessions of other networks wait until one ends: nobody can be made to leave for them.
func TestSessionsOfOtherNetworksWaitForAPort(t *testing.T) {
	t.Parallel()
	const ports = 16
	n := newNamespace(t)
	n.portsIn(t, ports)
	upstream := n.serveUDPOutside(t, func(from netip.AddrPort, b []byte) []byte {
		if string(b) == "unanswered" {
			return nil
		}
		return tellUDP("upstream")(from, b)
	})
	addr := net.JoinHostPort(n.inside, "53")
	forward := gate.Forward(upstream).With("idle_timeout", "2s").With("connect_timeout", "1m")
	p := gate.Start(t, gate.Layer4(gate.Listen("udp/"+addr, forward)), gate.WithNamespace(n.name))
	for range ports {
		mustWrite(t, dialUDP(t, addr), "unanswered")
	}
	gate.Eventually(t, peerTimeout, func() error { return equal(p.Metrics(), "caddy_portgate_sessions_active", ports) })
	mustAsk(t, dialUDP(t, addr), "upstream")
	if p.Metrics().Sum("caddy_portgate_local_connect_errors_total", label("reason", "no_port")) == 0 {
		t.Error("there was a port at once")
	}
}

// Each source address has ports of its own: for UDP they give that many more sessions, and TCP connections to one upstream.
func TestSourceAddresses(t *testing.T) {
	t.Parallel()
	const ports = 16
	n := newNamespace(t)
	other := n.portsIn(t, ports)
	sources := map[string]int{}
	count := func(t *testing.T, source string) {
		host, _, err := net.SplitHostPort(source)
		must(t, err)
		sources[host]++
	}
	check := func(t *testing.T) {
		if len(sources) != 2 || sources[n.inside] != ports || sources[other] != ports {
			t.Errorf("the upstream has seen %v, want %d from each of %s and %s", sources, ports, n.inside, other)
		}
		clear(sources)
	}
	config := func(listen, upstream string) gate.JSON {
		return gate.Layer4(gate.Listen(listen, gate.Forward(upstream).With("source", []string{n.inside, other})))
	}
	t.Run("UDP", func(t *testing.T) {
		addr := net.JoinHostPort(n.inside, "53")
		gate.Start(t, config("gate+udp/"+addr, n.serveUDPOutside(t, tellUDP("upstream"))), gate.WithNamespace(n.name))
		for range 2 * ports {
			conn := dialUDP(t, addr)
			count(t, mustAsk(t, conn, "upstream"))
			mustAsk(t, conn, "upstream")
		}
		check(t)
	})
	for _, network := range []string{"gate+tcp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			addr := net.JoinHostPort(n.inside, "80")
			tell := func(conn *net.TCPConn) {
				fmt.Fprintln(conn, conn.RemoteAddr())
				echo(conn)
			}
			first, second := serveAt(t, net.JoinHostPort(n.outside, "0"), tell), serveAt(t, net.JoinHostPort(n.outside, "0"), tell)
			servers := gate.Layer4(
				gate.Listen(network+"/"+addr, gate.Forward(first).With("source", []string{n.inside, other})),
				gate.Listen(network+"/"+net.JoinHostPort(n.inside, "81"), gate.Forward(second).With("source", []string{n.inside, other})))
			p := gate.Start(t, servers, gate.WithNamespace(n.name))
			for _, to := range []string{addr, net.JoinHostPort(n.inside, "81")} { // the same ports to another upstream
				for range 2 * ports {
					conn, err := net.DialTimeout("tcp", to, peerTimeout)
					must(t, err)
					t.Cleanup(func() { conn.Close() })
					conn.SetDeadline(time.Now().Add(peerTimeout))
					line, err := bufio.NewReader(conn).ReadString('\n')
					must(t, err)
					count(t, strings.TrimSpace(line))
				}
				check(t)
			}
			if s := mustBeReset(t, p, addr, ""); s.Status != 502 || !strings.Contains(s.Error, "net.ipv4.ip_local_port_range is used up") {
				t.Errorf("one more: %s", s.Line)
			}
			m := p.Metrics()
			must(t, equal(m, "caddy_portgate_upstream_fails_total", 0))
			if m.Sum("caddy_portgate_local_connect_errors_total", label("reason", "no_port")) == 0 || !strings.Contains(p.Output(), "no port is left") {
				t.Error("nobody says that no port is left")
			}
		})
	}
}

// A source address that this machine does not have: the log names it once, the other one is used, and it is no failure of the upstream.
func TestSourceThatIsNotOnThisMachine(t *testing.T) {
	t.Parallel()
	const missing = "192.0.2.77"
	addr, none := gate.ReserveAddr(t), gate.ReserveAddr(t)
	upstream := serve(t, echo)
	p := gate.Start(t, gate.Layer4(
		gate.Listen(addr, gate.Forward(upstream).With("source", []string{missing, "127.0.0.1"})),
		gate.Listen(none, gate.Forward(upstream).With("source", []string{missing}))))
	for range 4 {
		must(t, oneRequest(addr))
	}
	p.WaitSessions(4, nil)
	s := mustBeReset(t, p, none, "")
	if s.Status != 502 || !strings.Contains(s.Error, missing) {
		t.Errorf("access log: %s", s.Line)
	}
	must(t, equal(p.Metrics(), "caddy_portgate_upstream_fails_total", 0))
	if n := strings.Count(p.Output(), "because of a source address"); n != 1 {
		t.Errorf("the log names the address %d times", n)
	}
}
