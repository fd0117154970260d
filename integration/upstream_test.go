package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// blackhole makes a network namespace whose nft ruleset drops SYNs, and returns an address in it.
func blackhole(t testing.TB) string {
	t.Helper()
	n := newNamespace(t)
	run(t, program(t, "ip"), "netns", "exec", n.name, program(t, "nft"),
		"add table inet gate; add chain inet gate in { type filter hook input priority 0; }; add rule inet gate in tcp flags syn drop")
	return net.JoinHostPort(n.inside, "9")
}

// run runs a command that must succeed.
func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
}

func TestConnectTimeout(t *testing.T) {
	t.Parallel()
	const limit = time.Second
	dropped := blackhole(t)
	t.Run("no other upstream", func(t *testing.T) {
		t.Parallel()
		addr := gate.ReserveAddr(t)
		p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(dropped).With("connect_timeout", limit.String()))))
		start := time.Now()
		s := mustBeReset(t, p, addr, "")
		if took := time.Since(start); took < limit || took > limit+tolerance {
			t.Errorf("the client was reset after %v, want %v to %v", took, limit, limit+tolerance)
		}
		if s.Status != 504 || s.Reason != "connect_timeout" || s.Upstream != dropped || !strings.Contains(s.Error, "timeout") {
			t.Errorf("access log: %s", s.Line)
		}
	})
	t.Run("the next upstream answers", func(t *testing.T) {
		t.Parallel()
		addr := gate.ReserveAddr(t)
		answers := serve(t, echo)
		p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(dropped, answers).With("connect_timeout", limit.String()))))
		client := dial(t, addr) // the first connection's turn is the first upstream's
		mustExchange(t, client)
		clientPort := port(client)
		client.Close()
		if s := p.WaitSession(clientPort); s.Upstream != answers || s.Status != 200 || s.ConnectDuration < limit.Seconds() {
			t.Errorf("access log: %s", s.Line)
		}
	})
}

func TestNextUpstreamIsUsedWhereOneRefuses(t *testing.T) {
	t.Parallel()
	refuses, answers, addr := gate.ReserveAddr(t), serve(t, echo), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(refuses, answers))))
	for range 20 {
		must(t, oneRequest(addr))
	}
	for _, s := range p.WaitSessions(20, nil) {
		if s.Upstream != answers || s.Status != 200 {
			t.Errorf("access log: %s", s.Line)
		}
	}
}

func TestUpstreamsTakeTurns(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(serve(t, greet("a")), serve(t, greet("b")), serve(t, greet("c"))))))
	for i := range 9 {
		mustGreet(t, addr, []string{"a", "b", "c"}[i%3])
	}
}

func TestRetriesBoundHowManyUpstreamsAreTried(t *testing.T) {
	t.Parallel()
	refused := []string{gate.ReserveAddr(t), gate.ReserveAddr(t), gate.ReserveAddr(t)}
	answers, addr := serve(t, echo), gate.ReserveAddr(t)
	forward := gate.Forward(append(refused, answers)...).With("max_fails", 0) // else those that have refused are tried last
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, forward.With("retries", 2))))
	// The first connection tries the three that refuse.
	if s := mustBeReset(t, p, addr, ""); s.Status != 502 || s.Upstream != refused[2] {
		t.Errorf("access log: %s", s.Line)
	}
	p.Load(gate.Layer4(gate.Listen(addr, forward.With("retries", 3))))
	for range 4 { // whosever turn it is, none is tried twice, so that the last is reached
		must(t, oneRequest(addr))
	}
	p.Load(gate.Layer4(gate.Listen(addr, gate.Forward(refused[0], answers).With("retries", 0).With("max_fails", 0))))
	mustBeReset(t, p, addr, "")
	must(t, oneRequest(addr))
}

func TestClientIsResetAtOnceWhereNothingIsReachable(t *testing.T) {
	t.Parallel()
	refuses, addr := gate.ReserveAddr(t), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(refuses))))
	for name, hello := range map[string]string{"client waits": "", "client has sent": "hello"} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			s := mustBeReset(t, p, addr, hello)
			if took := time.Since(start); took > tolerance {
				t.Errorf("the client was reset after %v", took)
			}
			if s.Status != 502 || s.Reason != "connect_failed" || s.Upstream != refuses || !strings.Contains(s.Error, "connection refused") {
				t.Errorf("access log: %s", s.Line)
			}
		})
	}
}

// hosts is an /etc/hosts for one process, in which the test sets the addresses of one name.
type hosts string

func newHosts(t testing.TB) hosts {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test gives a process its own /etc/hosts in a mount namespace: run it as root")
	}
	return hosts(filepath.Join(t.TempDir(), "hosts"))
}

const hostName = "upstream.example"

func (h hosts) set(t testing.TB, addrs ...string) {
	t.Helper()
	var lines strings.Builder
	for _, addr := range addrs {
		fmt.Fprintf(&lines, "%s %s\n", addr, hostName)
	}
	must(t, os.WriteFile(string(h), []byte(lines.String()), 0o644))
}

func TestAllAddressesOfAHostNameAreTried(t *testing.T) {
	t.Parallel()
	file := newHosts(t)
	file.set(t, "::1", "127.0.0.1")
	for _, only := range []string{"127.0.0.1", "::1"} {
		t.Run("server on "+only+" only", func(t *testing.T) {
			t.Parallel()
			upstream := serveAt(t, net.JoinHostPort(only, "0"), echo)
			_, upstreamPort, _ := net.SplitHostPort(upstream)
			addr := gate.ReserveAddr(t)
			// Without a retry: these are addresses of one upstream.
			forward := gate.Forward(net.JoinHostPort(hostName, upstreamPort)).With("retries", 0)
			p := gate.Start(t, gate.Layer4(gate.Listen(addr, forward)), gate.WithHosts(string(file)))
			must(t, oneRequest(addr))
			if s := p.WaitSessions(1, nil)[0]; s.Upstream != upstream {
				t.Errorf("want the address that was connected to: %s", s.Line)
			}
		})
	}
}

func TestHostNameThatMoves(t *testing.T) {
	t.Parallel()
	file := newHosts(t)
	file.set(t, "127.0.0.1")
	first := serve(t, greet("first"))
	_, upstreamPort, _ := net.SplitHostPort(first)
	serveAt(t, net.JoinHostPort("127.0.0.2", upstreamPort), greet("second"))
	addr := gate.ReserveAddr(t)
	gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(net.JoinHostPort(hostName, upstreamPort)))), gate.WithHosts(string(file)))
	mustGreet(t, addr, "first")
	file.set(t, "127.0.0.2")
	// Go's resolver looks at the file every 5 seconds.
	gate.Eventually(t, peerTimeout, func() error { return greeting(addr, "second") })
}

func TestHostNameThatDoesNotResolve(t *testing.T) {
	t.Parallel()
	file := newHosts(t)
	file.set(t) // with no DNS server to ask either, in the reserved top-level domain .invalid (RFC 6761)
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward("nowhere.invalid:80"))), gate.WithHosts(string(file)))
	if s := mustBeReset(t, p, addr, ""); s.Status != 502 && s.Status != 504 || !strings.Contains(s.Error, "nowhere.invalid") {
		t.Errorf("access log: %s", s.Line)
	}
}

func TestUpstreamPlaceholderFromTheEnvironment(t *testing.T) {
	t.Parallel()
	upstream, addr := serve(t, echo), gate.ReserveAddr(t)
	_, upstreamPort, _ := net.SplitHostPort(upstream)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward("127.0.0.1:{env.UPSTREAM_PORT}"))), gate.WithEnv("UPSTREAM_PORT", upstreamPort))
	must(t, oneRequest(addr))
	if s := p.WaitSessions(1, nil)[0]; s.Upstream != upstream {
		t.Errorf("access log: %s", s.Line)
	}
}

func TestUpstreamPlaceholderOfTheConnection(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	byHost := gate.Listen(addr, gate.Forward("127.0.0.1:{l4.http.host}"))
	byHost.Routes[0].Match = []gate.JSON{{"http": []gate.JSON{}}}
	p := gate.Start(t, gate.Layer4(byHost))
	request := func(host string) *net.TCPConn {
		client := dial(t, addr)
		mustWrite(t, client, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
		return client
	}
	for range 2 {
		upstream := serve(t, echo)
		_, upstreamPort, _ := net.SplitHostPort(upstream)
		client := request(upstreamPort)
		mustRead(t, client, "GET / HTTP/1.1\r\nHost: "+upstreamPort+"\r\n\r\n")
		clientPort := port(client)
		client.Close()
		if s := p.WaitSession(clientPort); s.Upstream != upstream {
			t.Errorf("want upstream %s: %s", upstream, s.Line)
		}
	}
	// What a client makes of a placeholder can't do more than fail its own connection.
	for _, host := range []string{"99999", "80-81", "x", "{env.HOME}", ""} {
		client := request(host)
		mustReset(t, client)
		if s := p.WaitSession(port(client)); s.Status != 502 || s.Reason != "connect_failed" || s.Error == "" {
			t.Errorf("host %q: access log: %s", host, s.Line)
		}
	}
}

func TestPortRangesAreForwardedOneToOne(t *testing.T) {
	t.Parallel()
	const size = 3
	first, firstUpstream := gate.ReserveRange(t, size), gate.ReserveRange(t, size)
	for i := range size {
		serveAt(t, gate.Loopback(firstUpstream+i), greet(strconv.Itoa(i)))
	}
	listen := fmt.Sprintf("127.0.0.1:%d-%d", first, first+size-1)
	upstreams := fmt.Sprintf("127.0.0.1:%d-%d", firstUpstream, firstUpstream+size-1)
	gate.Start(t, gate.Layer4(gate.Listen(listen, gate.Forward(upstreams))))
	for i := range size {
		mustGreet(t, gate.Loopback(first+i), strconv.Itoa(i))
	}
}

func TestUnixSocketUpstream(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "gate-") // a short path, for a unix socket
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "upstream.sock")
	ln, err := net.Listen("unix", path)
	must(t, err)
	sent := make(chan result, 1)
	serveOn(t, ln, func(conn net.Conn) {
		got, err := receive(conn)
		sent <- result{got, err}
		conn.Write([]byte("done"))
		conn.(*net.UnixConn).CloseWrite()
	})
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward("unix/"+path))))

	const n = 8 * mib
	client := dial(t, addr)
	up := within(t, peerTimeout, "sending", sending(client, n))
	mustArrive(t, "up", up, within(t, peerTimeout, "receiving", sent), n)
	mustRead(t, client, "done")
	if s := p.WaitSession(port(client)); s.Upstream != path && s.Upstream != "unix/"+path {
		t.Errorf("access log: %s", s.Line)
	}

	ln.Close() // removes the socket
	if s := mustBeReset(t, p, addr, ""); s.Status != 502 || s.Upstream != "unix/"+path && s.Upstream != path {
		t.Errorf("without a server: access log: %s", s.Line)
	}
}
