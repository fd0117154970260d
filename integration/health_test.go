package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// quickly finds out in a few seconds. The time limit is long enough for a busy machine.
func quickly(check gate.JSON) gate.JSON {
	return check.With("interval", "2s").With("timeout", "2s").With("fails", 2).With("passes", 1)
}

// mustBeUp waits until checks find an upstream up, or down.
func mustBeUp(t *testing.T, p *gate.Process, upstream string, up bool) {
	t.Helper()
	want := 0
	if up {
		want = 1
	}
	gate.Eventually(t, peerTimeout, func() error {
		return errors.Join(equal(p.Metrics(), "caddy_portgate_upstream_up", want, label("upstream", upstream)), shows(p, upstream, up))
	})
}

// shows compares what the admin API says of an upstream.
func shows(p *gate.Process, upstream string, up bool) error {
	answer, err := p.Get("/portgate/upstreams?name=" + upstream)
	if err != nil {
		return err
	}
	if down := strings.Contains(answer, `"state":"down"`); down == up || !strings.Contains(answer, `"checked_at"`) {
		return fmt.Errorf("the admin API says %s", answer)
	}
	return nil
}

// waitForLog waits until the log has a text.
func waitForLog(t *testing.T, p *gate.Process, text string) {
	t.Helper()
	gate.Eventually(t, peerTimeout, func() error {
		if !strings.Contains(p.Output(), text) {
			return fmt.Errorf("the log does not have %q yet:\n%s", text, p.Output())
		}
		return nil
	})
}

// mustAnswer makes requests, all of which one server has to answer.
func mustAnswer(t *testing.T, addr, name string) {
	t.Helper()
	for range 10 {
		if page := mustGetPage(t, addr); page != name {
			t.Errorf("%q has answered, expected %q", page, name)
		}
	}
}

// webNginx serves its name, and a page "/healthz" as long as a file is there.
func webNginx(t *testing.T, addr, options string) (healthy string) {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	healthy = dir + "/healthz"
	must(t, os.WriteFile(healthy, []byte("well"), 0o644))
	path := writeFile(t, "nginx.conf", fmt.Sprintf(`daemon off;
user root;
pid %s/nginx.pid;
error_log stderr;
events {}
http {
	access_log off;
	server {
		listen %s;
		location = /healthz { root %s; try_files /healthz =503; }
		location / { return 200 "nginx"; }
	}
}
`, t.TempDir(), addr+options, dir))
	server(t, addr, exec.Command(program(t, "nginx"), "-c", path))
	return healthy
}

// webHAProxy serves a name, and a page for monitors. The program in front of it, if there is one, says where it runs.
func webHAProxy(t *testing.T, addr, name string, in ...string) *exec.Cmd {
	t.Helper()
	path := writeFile(t, "haproxy.cfg", fmt.Sprintf(`defaults
	mode http
	timeout connect 10s
	timeout client 60s
	timeout server 60s
frontend f
	bind %s
	monitor-uri /healthz
	http-request return status 200 content-type text/plain string %s
`, addr, name))
	command := append(slices.Clone(in), program(t, "haproxy"), "-db", "-f", path)
	cmd := exec.Command(command[0], command[1:]...)
	server(t, addr, cmd)
	return cmd
}

// Of two web servers one says that it is ill, and the other hangs. Sessions alone would not find out: both can be connected to.
func TestHealthChecksOfWebServers(t *testing.T) {
	t.Parallel()
	addr, nginx, haproxy := gate.ReserveAddr(t), gate.ReserveAddr(t), gate.ReserveAddr(t)
	healthy, hangs := webNginx(t, nginx, ""), webHAProxy(t, haproxy, "haproxy")
	t.Cleanup(func() { _ = hangs.Process.Signal(syscall.SIGCONT) })
	config := gate.Layer4(gate.Listen(addr, gate.Forward(nginx, haproxy).
		With("health_check", quickly(gate.JSON{"type": "http", "path": "/healthz", "status": "2xx"}))))
	p := gate.Start(t, config)
	mustBeUp(t, p, nginx, true)
	mustBeUp(t, p, haproxy, true)

	must(t, os.Remove(healthy))
	mustBeUp(t, p, nginx, false)
	mustAnswer(t, addr, "haproxy")
	for range 10 {
		p.Load(config)
		mustAnswer(t, addr, "haproxy")
	}
	if n := strings.Count(p.Output(), "upstream is down, sessions try others first"); n != 1 {
		t.Errorf("%d entries in the log", n)
	}
	waitForLog(t, p, `status \"503\", expected 2xx`)
	must(t, os.WriteFile(healthy, []byte("well"), 0o644))
	mustBeUp(t, p, nginx, true)
	waitForLog(t, p, "upstream is up")

	must(t, hangs.Process.Signal(syscall.SIGSTOP))
	mustBeUp(t, p, haproxy, false)
	mustAnswer(t, addr, "nginx")
	waitForLog(t, p, "no answer within 2s")
	must(t, hangs.Process.Signal(syscall.SIGCONT))
	mustBeUp(t, p, haproxy, true)
	if sum := p.Metrics().Sum("caddy_portgate_upstream_checks_total", label("upstream", haproxy), label("result", "failed")); sum < 2 {
		t.Errorf("%v checks have failed", sum)
	}
}

// A check over TLS verifies the server, as sessions do.
func TestHealthChecksOverTLS(t *testing.T) {
	t.Parallel()
	addr, secure := gate.ReserveAddr(t), gate.ReserveAddr(t)
	cert, key, _ := certificate(t)
	ca := writeFile(t, "ca.pem", cert)
	healthy := webNginx(t, secure, fmt.Sprintf(" ssl;\n\t\tssl_certificate %s;\n\t\tssl_certificate_key %s", ca, writeFile(t, "key.pem", key)))
	check := quickly(gate.JSON{"type": "http", "path": "/healthz", "status": "200"})
	known := gate.JSON{"server_name": "localhost", "ca": []string{ca}}
	config := func(of gate.JSON) gate.JSON {
		return gate.Layer4(gate.Listen(addr, gate.Forward(secure).With("health_check", check.With("tls", of))))
	}
	p := gate.Start(t, config(known))
	mustBeUp(t, p, secure, true)
	must(t, os.Remove(healthy))
	mustBeUp(t, p, secure, false)
	must(t, os.WriteFile(healthy, []byte("well"), 0o644))
	mustBeUp(t, p, secure, true)
	p.Load(config(gate.JSON{"server_name": "localhost"}))
	mustBeUp(t, p, secure, false)
	gate.Eventually(t, peerTimeout, func() error {
		answer, err := p.Get("/portgate/upstreams?name=" + secure)
		if err == nil && !strings.Contains(answer, "certificate signed by unknown authority") {
			err = fmt.Errorf("the admin API says %s", answer)
		}
		return err
	})
	p.Load(config(gate.JSON{"insecure_skip_verify": true}))
	mustBeUp(t, p, secure, true)
}

// A name server that hangs is found out over UDP, where silence alone is no failure of a session. A client whose session it had gets its answers from
// another one.
func TestHealthChecksOfNameServers(t *testing.T) {
	t.Parallel()
	dnsmasq := startNameServer(t, "192.0.2.1")
	place := nameServerSocket(t)
	unboundIP := hostOf(place.LocalAddr())
	place.Close()
	startUnbound(t, unboundIP, "192.0.2.2")
	upstreams := []string{net.JoinHostPort(dnsmasq.ip, strconv.Itoa(dnsPort)), net.JoinHostPort(unboundIP, strconv.Itoa(dnsPort))}
	addr := gate.ReserveAddr(t)
	handler := gate.Forward(upstreams...).With("health_check", quickly(gate.JSON{"type": "dns", "name": hostName})).With("on_unhealthy", "close")
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, handler), gate.ListenUDP(addr, handler)))
	mustBeUp(t, p, upstreams[0], true)
	mustBeUp(t, p, upstreams[1], true)
	client := dialUDP(t, addr)
	query := dnsQuery(hostName)
	question := func() (ip byte, err error) {
		_ = client.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := client.Write(query); err != nil {
			return 0, err
		}
		answer := make([]byte, 512)
		n, err := client.Read(answer)
		if err != nil {
			return 0, err
		}
		return answer[n-1], nil
	}
	for ip := byte(0); ip != 1; { // until the session is at dnsmasq
		var err error
		if ip, err = question(); err != nil {
			t.Fatal(err)
		}
		if ip != 1 {
			client.Close()
			client = dialUDP(t, addr)
		}
	}
	dnsmasq.stop()
	mustBeUp(t, p, upstreams[0], false)
	gate.Eventually(t, peerTimeout, func() error {
		ip, err := question()
		if err == nil && ip != 2 {
			err = fmt.Errorf("the answer ends with %d", ip)
		}
		return err
	})
	for range 10 {
		if ip, err := question(); err != nil || ip != 2 {
			t.Errorf("the answer ends with %d, %v", ip, err)
		}
	}
	p.WaitSessions(1, func(s gate.Session) bool { return s.Reason == "unhealthy" && s.Upstream == upstreams[0] })
	run(t, program(t, "dig"), "+tcp", "+tries=1", "@"+hostOf(netAddr(addr)), "-p", portOf(addr), hostName)
	dnsmasq.goOn()
	mustBeUp(t, p, upstreams[0], true)
}

func netAddr(addr string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)) }

// A server of UDP that says nothing any more.
func TestHealthChecksOfSilentDatagrams(t *testing.T) {
	t.Parallel()
	var silent atomic.Bool
	named := func(name string, silent *atomic.Bool) string {
		return serveUDP(t, func(_ netip.AddrPort, b []byte) []byte {
			if silent != nil && silent.Load() {
				return nil
			}
			return append([]byte(name), b...)
		})
	}
	first, second, refuses := named("a", &silent), named("b", nil), gate.ReserveAddr(t)
	addr, other := gate.ReserveAddr(t), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(
		gate.ListenUDP(addr, gate.Forward(first, second).With("lb_policy", "first").With("on_unhealthy", "close").
			With("health_check", quickly(gate.JSON{"type": "udp", "payload": "0a", "expect": `^.\n$`}))),
		gate.ListenUDP(other, gate.Forward(refuses).With("health_check", quickly(gate.JSON{"type": "udp", "payload": "0a"}))),
	))
	mustBeUp(t, p, first, true)
	mustBeUp(t, p, refuses, false)
	client := dialUDP(t, addr)
	exchange := func() (string, error) {
		_ = client.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := client.Write([]byte("x")); err != nil {
			return "", err
		}
		b := make([]byte, 16)
		n, err := client.Read(b)
		return string(b[:n]), err
	}
	if got, err := exchange(); got != "ax" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	silent.Store(true)
	mustBeUp(t, p, first, false)
	p.WaitSessions(1, func(s gate.Session) bool { return s.Reason == "unhealthy" })
	for range 5 {
		if got, err := exchange(); got != "bx" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// A connection goes with its upstream where the config wants that.
func TestOnUnhealthy(t *testing.T) {
	t.Parallel()
	var sick atomic.Bool
	page := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if sick.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	go func() { _ = page.Serve(ln) }()
	t.Cleanup(func() { page.Close() })
	upstream, keeps, closes := serve(t, echo), gate.ReserveAddr(t), gate.ReserveAddr(t)
	checkPort, _ := strconv.Atoi(portOf(ln.Addr().String()))
	handler := gate.Forward(upstream).With("health_check", quickly(gate.JSON{"type": "http", "path": "/", "port": checkPort}))
	p := gate.Start(t, gate.Layer4(gate.Listen(keeps, handler), gate.Listen(closes, handler.With("on_unhealthy", "close"))))
	kept, closed := dial(t, keeps), dial(t, closes)
	mustExchange(t, kept)
	mustExchange(t, closed)
	sick.Store(true)
	if _, err := io.ReadAll(closed); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	if s := p.WaitSession(port(closed)); s.Reason != "unhealthy" || s.Status != 200 {
		t.Errorf("access log: %s", s.Line)
	}
	mustExchange(t, kept)
	late := dial(t, closes) // where all are down, all are tried
	mustExchange(t, late)
	waitForLog(t, p, "sessions_closed")
}

func TestForwardCommandHealthCheck(t *testing.T) {
	t.Parallel()
	addr, dead := gate.ReserveAddr(t), gate.ReserveAddr(t)
	alive := serve(t, greet("alive"))
	p := startForward(t, "--from", addr, "--to", dead, "--to", alive, "--health-check", "tcp")
	waitForLog(t, p, "upstream is down, sessions try others first")
	for range 4 {
		mustGreet(t, addr, "alive")
	}
	p.Stop()
}

// A server that expects a PROXY header is checked with one: without it nginx closes the connection.
func TestHealthChecksOfServersThatExpectAHeader(t *testing.T) {
	t.Parallel()
	for _, version := range proxyVersions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			addr, nginx := gate.ReserveAddr(t), gate.ReserveAddr(t)
			healthy := webNginx(t, nginx, " proxy_protocol")
			p := gate.Start(t, gate.Layer4(gate.Listen(addr, sendProxy(version, nginx).
				With("health_check", quickly(gate.JSON{"type": "http", "path": "/healthz"})))))
			must(t, os.Remove(healthy))
			mustBeUp(t, p, nginx, false)
			waitForLog(t, p, `status \"503\", expected 200-399`)
			must(t, os.WriteFile(healthy, []byte("well"), 0o644))
			mustBeUp(t, p, nginx, true)
			mustAnswer(t, addr, "nginx")
		})
	}
}
