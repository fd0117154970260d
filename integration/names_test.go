package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

const dnsPort = 53 // resolv.conf has no place for another one

// nameServerSocket takes port 53 of an address of its own.
func nameServerSocket(t testing.TB) *net.UDPConn {
	t.Helper()
	for {
		last := lastNameServer.Add(1) // no test gets the address that dnsmasq of another one is about to take
		conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 53, 54, byte(last)), Port: dnsPort})
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		if last == 254 {
			t.Fatalf("no 127.53.54.1 to 254 to listen on port 53: this test runs a name server there, run it as root: %v", err)
		}
	}
}

var lastNameServer atomic.Uint32

func hostOf(addr net.Addr) string { return netip.MustParseAddrPort(addr.String()).Addr().String() }

// resolvConf has a process ask these name servers.
func resolvConf(t testing.TB, options string, servers ...string) gate.Option {
	t.Helper()
	text := "options " + options + "\n"
	for _, server := range servers {
		text += "nameserver " + server + "\n"
	}
	return gate.WithResolver(writeFile(t, "resolv.conf", text))
}

// dnsMasq is a dnsmasq that knows one name.
type dnsMasq struct {
	t     testing.TB
	ip    string
	hosts string
	cmd   *exec.Cmd
}

func startNameServer(t testing.TB, addrs ...string) *dnsMasq {
	t.Helper()
	place := nameServerSocket(t)
	d := &dnsMasq{t: t, ip: hostOf(place.LocalAddr()), hosts: writeFile(t, "names", "")}
	d.write(addrs...)
	place.Close()
	d.cmd = exec.Command(program(t, "dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root",
		"--log-facility=-", "--listen-address="+d.ip, "--bind-interfaces", "--no-resolv", "--no-hosts", "--addn-hosts="+d.hosts,
		"--local=/"+hostName+"/")
	server(t, net.JoinHostPort(d.ip, strconv.Itoa(dnsPort)), d.cmd)
	t.Cleanup(d.goOn)
	return d
}

func (d *dnsMasq) write(addrs ...string) {
	d.t.Helper()
	var lines strings.Builder
	for _, addr := range addrs {
		fmt.Fprintf(&lines, "%s %s\n", addr, hostName)
	}
	must(d.t, os.WriteFile(d.hosts, []byte(lines.String()), 0o644))
}

// set gives the name other addresses.
func (d *dnsMasq) set(addrs ...string) {
	d.t.Helper()
	d.write(addrs...)
	must(d.t, d.cmd.Process.Signal(syscall.SIGHUP))
}

func (d *dnsMasq) stop() { must(d.t, d.cmd.Process.Signal(syscall.SIGSTOP)) }
func (d *dnsMasq) goOn() { d.cmd.Process.Signal(syscall.SIGCONT) }

// toName forwards to the port of a server on 127.0.0.1 by the name.
func toName(t testing.TB, server string) gate.JSON {
	t.Helper()
	_, port, err := net.SplitHostPort(server)
	must(t, err)
	return gate.Forward(net.JoinHostPort(hostName, port))
}

// whileSessions begins sessions from several clients, each after the other, until f returns. It returns how many there were. None may fail.
func whileSessions(t testing.TB, addr string, f func()) (n int64) {
	t.Helper()
	var count atomic.Int64
	var clients sync.WaitGroup
	over := make(chan struct{})
	for range 8 {
		clients.Go(func() {
			pace := time.NewTicker(8 * time.Millisecond) // 1,000 a second together
			defer pace.Stop()
			for {
				select {
				case <-over:
					return
				case <-pace.C:
				}
				if err := greeting(addr, "first"); err != nil {
					t.Errorf("session %d: %v", count.Load(), err)
					return
				}
				count.Add(1)
			}
		})
	}
	f()
	close(over)
	clients.Wait()
	return count.Load()
}

// The name server stops. No session is refused, nor after reloads; the log and a metric say so. When it goes on, the name has another address.
func TestNameServerThatStops(t *testing.T) {
	t.Parallel()
	dns := startNameServer(t, "127.0.0.1")
	first := serve(t, greet("first"))
	_, upstreamPort, _ := net.SplitHostPort(first)
	serveAt(t, net.JoinHostPort("127.0.0.2", upstreamPort), greet("second"))
	addr := gate.ReserveAddr(t)
	config := func(retries int) gate.JSON {
		return gate.Layer4(gate.Listen(addr, toName(t, first).With("retries", retries)))
	}
	p := gate.Start(t, config(1), resolvConf(t, "timeout:1 attempts:1", dns.ip))
	mustGreet(t, addr, "first")

	dns.stop()
	n := whileSessions(t, addr, func() {
		gate.Eventually(t, peerTimeout, func() error {
			if !strings.Contains(p.Output(), "a name can't be looked up, its last answer is used") {
				return errors.New("no entry in the log")
			}
			return equal(p.Metrics(), "caddy_portgate_degraded", 1, label("what", "name"))
		})
		for i := range 3 {
			p.Load(config(2 + i))
			mustGreet(t, addr, "first")
		}
	})
	t.Logf("%d sessions while the name server was silent", n)
	m := p.Metrics()
	if m.Sum("caddy_portgate_name_lookups_total", label("result", "failed")) == 0 {
		t.Error("no lookup has failed")
	}
	must(t, equal(m, "caddy_portgate_upstream_fails_total", 0))

	dns.set("127.0.0.2")
	dns.goOn()
	gate.Eventually(t, peerTimeout, func() error { return greeting(addr, "second") })
	gate.Eventually(t, peerTimeout, func() error {
		if !strings.Contains(p.Output(), "a name can be looked up again") {
			return errors.New("no entry in the log")
		}
		return equal(p.Metrics(), "caddy_portgate_degraded", 0, label("what", "name"))
	})
	if n := strings.Count(p.Output(), "a name can't be looked up"); n != 1 {
		t.Errorf("%d entries in the log", n)
	}
}

// The name server takes 5 s for each answer. One lookup is under way at a time, however many sessions begin.
func TestSlowNameServer(t *testing.T) {
	t.Parallel()
	const slow = 5 * time.Second
	conn := nameServerSocket(t)
	var answer atomic.Value // the address
	answer.Store("127.0.0.1")
	var delayed atomic.Bool
	var now, most, late atomic.Int64 // questions under way
	answerUDP(t, conn, func(from netip.AddrPort, query []byte) []byte {
		if !delayed.Load() {
			return dnsAnswer(query, answer.Load().(string))
		}
		n := now.Add(1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		query = append([]byte(nil), query...)
		time.AfterFunc(slow, func() {
			now.Add(-1)
			late.Add(1)
			_, _ = conn.WriteToUDPAddrPort(dnsAnswer(query, answer.Load().(string)), from)
		})
		return nil
	})
	first := serve(t, greet("first"))
	_, upstreamPort, _ := net.SplitHostPort(first)
	serveAt(t, net.JoinHostPort("127.0.0.2", upstreamPort), greet("second"))
	addr := gate.ReserveAddr(t)
	gate.Start(t, gate.Layer4(gate.Listen(addr, toName(t, first))), resolvConf(t, "timeout:20 attempts:1", hostOf(conn.LocalAddr())))
	mustGreet(t, addr, "first")
	delayed.Store(true)
	n := whileSessions(t, addr, func() {
		gate.Eventually(t, peerTimeout, func() error {
			if late.Load() < 4 { // two lookups, each of A and AAAA
				return errors.New("no second lookup yet")
			}
			return nil
		})
	})
	if most.Load() > 2 {
		t.Errorf("%d questions were under way at once, want those for A and AAAA", most.Load())
	}
	t.Logf("%d sessions", n)
	answer.Store("127.0.0.2")
	delayed.Store(false)
	gate.Eventually(t, peerTimeout, func() error { return greeting(addr, "second") })
}

// dnsAnswer answers a question for an address of IPv4 with that one, and one of another kind with none (RFC 1035, section 4.1).
func dnsAnswer(query []byte, ip string) []byte {
	const header, response, recursion, a = 12, 0x80, 0x80, 1
	end := header
	for end < len(query) && query[end] != 0 {
		end += int(query[end]) + 1
	}
	end += 5 // the root, the type, and the class
	if end > len(query) {
		return nil
	}
	b := append([]byte(nil), query[:end]...)
	b[2] |= response
	b[3] = recursion
	binary.BigEndian.PutUint16(b[6:], 0)
	binary.BigEndian.PutUint32(b[8:], 0)
	if binary.BigEndian.Uint16(query[end-4:]) != a {
		return b
	}
	b[7] = 1
	b = append(b, 0xc0, header, 0, a, 0, 1, 0, 0, 0, 0, 0, 4)
	return append(b, netip.MustParseAddr(ip).AsSlice()...)
}

// The first of two name servers is silent. The system asks the second one after 5 s, which is longer than a session waits. So the first
// sessions may fail, and from then on none does.
func TestFirstNameServerIsSilent(t *testing.T) {
	t.Parallel()
	silent, dns := nameServerSocket(t), startNameServer(t, "127.0.0.1")
	first := serve(t, greet("first"))
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, toName(t, first))), resolvConf(t, "timeout:5", hostOf(silent.LocalAddr()), dns.ip))
	gate.Eventually(t, peerTimeout, func() error { return greeting(addr, "first") })
	whileSessions(t, addr, func() {
		gate.Eventually(t, peerTimeout, func() error {
			if n := p.Metrics().Sum("caddy_portgate_name_lookups_total", label("result", "answered")); n < 2 {
				return fmt.Errorf("%v lookups, each answered by the second name server", n)
			}
			return nil
		})
	})
}

func notServed(s gate.Session) bool { return s.Status != 200 }

// The answer may not be used any more: the session is refused, and its entry says so.
func TestStaleIsOver(t *testing.T) {
	t.Parallel()
	dns, first, addr := startNameServer(t, "127.0.0.1"), serve(t, greet("first")), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, toName(t, first).With("stale", "2s"))), resolvConf(t, "timeout:1 attempts:1", dns.ip))
	mustGreet(t, addr, "first")
	dns.stop()
	gate.Eventually(t, peerTimeout, func() error {
		if greeting(addr, "first") == nil {
			return errors.New("sessions go on")
		}
		return nil
	})
	s := p.WaitSessions(1, notServed)[0]
	if s.Status != 502 && s.Status != 504 || !strings.Contains(s.Error, hostName) || !strings.Contains(s.Error, "old, and stale is 2s") {
		t.Errorf("access log: %s", s.Line)
	}
	dns.goOn()
	gate.Eventually(t, peerTimeout, func() error { return greeting(addr, "first") })
}

// The name is removed: that is an answer, which counts after a while.
func TestNameThatIsRemoved(t *testing.T) {
	t.Parallel()
	dns, first, addr := startNameServer(t, "127.0.0.1"), serve(t, greet("first")), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, toName(t, first).With("stale", "2s"))), resolvConf(t, "timeout:5", dns.ip))
	mustGreet(t, addr, "first")
	dns.set()
	gate.Eventually(t, peerTimeout, func() error {
		if greeting(addr, "first") == nil {
			return errors.New("sessions go on")
		}
		return nil
	})
	if s := p.WaitSessions(1, notServed)[0]; s.Status != 502 || !strings.Contains(s.Error, "no such host") {
		t.Errorf("access log: %s", s.Line)
	}
}

// A name has an IPv6 address in whose network packets are dropped. However long an attempt may take, sessions begin at once over IPv4, and
// later ones do not try IPv6 first.
func TestIPv6ThatDrops(t *testing.T) {
	t.Parallel()
	n := newNamespace(t)
	ip := program(t, "ip")
	six := fmt.Sprintf("2001:db8:%x::", n.id+1)
	run(t, ip, "address", "add", six+"1/64", "dev", n.near, "nodad")
	run(t, ip, "-n", n.name, "address", "add", six+"2/64", "dev", n.name+"b", "nodad")
	nft := func(args ...string) string {
		t.Helper()
		return output(t, exec.Command(ip, append([]string{"netns", "exec", n.name, program(t, "nft")}, args...)...))
	}
	nft("add table inet gate; add chain inet gate in { type filter hook input priority 0; }; add rule inet gate in tcp flags syn counter drop")
	file := newHosts(t)
	file.set(t, six+"2", "127.0.0.1")
	first, addr := serve(t, echo), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, toName(t, first).With("connect_timeout", "1h"))), gate.WithHosts(string(file)))
	must(t, oneRequest(addr))
	dropped := nft("list", "chain", "inet", "gate", "in")
	if strings.Contains(dropped, "packets 0 ") {
		t.Errorf("IPv6 was not tried: %s", dropped)
	}
	for range 10 {
		must(t, oneRequest(addr))
	}
	if now := nft("list", "chain", "inet", "gate", "in"); now != dropped {
		t.Errorf("IPv6 was tried again: %s, before: %s", now, dropped)
	}
	for _, s := range p.WaitSessions(11, nil) {
		if s.Upstream != first || s.Status != 200 || strings.Contains(s.Line, "failed_upstreams") {
			t.Errorf("access log: %s", s.Line)
		}
	}
	must(t, equal(p.Metrics(), "caddy_portgate_upstream_fails_total", 0))
}

// localhost has two addresses, and the server is at one of them. Each session's first datagram is answered, and only the first session
// has to find out where the server is.
func TestLocalhostOverUDP(t *testing.T) {
	t.Parallel()
	file := newHosts(t)
	must(t, os.WriteFile(string(file), []byte("::1 localhost\n127.0.0.1 localhost\n"), 0o644))
	_, upstreamPort, _ := net.SplitHostPort(serveUDP(t, echoUDP))
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.ListenUDP(addr, gate.Forward("udp/localhost:"+upstreamPort).With("max_replies", 1))),
		gate.WithHosts(string(file)))
	for i := range 10 {
		client := dialUDP(t, addr)
		question := fmt.Sprintf("question %d", i)
		mustWrite(t, client, question)
		mustRead(t, client, question)
		p.WaitSession(port(client))
		client.Close()
	}
	for i, s := range p.WaitSessions(10, nil) {
		if s.DatagramsDown != 1 || strings.Contains(s.Line, "failed_upstreams") != (i == 0) {
			t.Errorf("session %d: access log: %s", i+1, s.Line)
		}
	}
	must(t, equal(p.Metrics(), "caddy_portgate_datagrams_dropped_total", 0))
}
