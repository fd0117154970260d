package integration

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// curl runs curl without its progress bar, trusting every certificate: those of the examples are Caddy's own.
func curl(t *testing.T, args ...string) (page string, err error) {
	t.Helper()
	cmd := exec.Command(program(t, "curl"), append([]string{"-sSk", "--max-time", "30"}, args...)...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// mustCurl waits for a page: Caddy makes the first certificates after it has started.
func mustCurl(t *testing.T, want string, args ...string) {
	t.Helper()
	gate.Eventually(t, peerTimeout, func() error {
		page, err := curl(t, args...)
		if err != nil || page != want {
			return fmt.Errorf("curl %s: got %q (%v), want %q", strings.Join(args, " "), page, err, want)
		}
		return nil
	})
}

// mustNotCurl requires that the connection ends without a page.
func mustNotCurl(t *testing.T, args ...string) {
	t.Helper()
	if page, err := curl(t, args...); err == nil {
		t.Errorf("curl %s: got %q, want the end of the connection", strings.Join(args, " "), page)
	}
}

// asHost gives curl a name for an address, as --resolve does, and returns the URL.
func asHost(host, addr string) []string {
	_, port, _ := net.SplitHostPort(addr)
	return []string{"--resolve", host + ":" + port + ":127.0.0.1", "https://" + host + ":" + port}
}

func exampleTLS(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
	p := start()
	mustCurl(t, "inside", asHost("localhost", addr(8443))...)
	shown := openssl(t, addr(8443), "localhost")
	if !strings.Contains(shown, "CONNECTION ESTABLISHED") || !strings.Contains(shown, "TLSv1.3") {
		t.Errorf("openssl s_client:\n%s", shown)
	}
	mustNotCurl(t, "http://"+addr(8443))
	// Handshakes fail until there is a certificate: then the route ends without a session.
	for _, s := range p.WaitSessions(1, func(s gate.Session) bool { return s.Reason != "no_route" }) {
		if s.Status != 200 {
			t.Errorf("access log: %s", s.Line)
		}
	}
}

func exampleTLSPostgres(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
	startPostgresAt(t, addr(5432))
	start()
	psql := func(sslmode string) (string, error) {
		host, port, _ := net.SplitHostPort(addr(5433))
		where := fmt.Sprintf("host=localhost hostaddr=%s port=%s dbname=postgres user=gate sslmode=%s connect_timeout=30", host, port, sslmode)
		out, err := exec.Command(program(t, "psql"), where, "-X", "-c", `\conninfo`).CombinedOutput()
		return string(out), err
	}
	gate.Eventually(t, peerTimeout, func() error { // the certificate and the server may take a moment
		said, err := psql("require")
		if err != nil || !strings.Contains(said, "protocol: TLSv1.3") {
			return fmt.Errorf("psql: %w\n%s", err, said)
		}
		return nil
	})
	if said, err := psql("disable"); err == nil {
		t.Errorf("psql without TLS: %s", said)
	}
}

// openssl makes a TLS connection and returns what openssl says of it.
func openssl(t *testing.T, addr, serverName string) string {
	t.Helper()
	cmd := exec.Command(program(t, "openssl"), "s_client", "-connect", addr, "-servername", serverName, "-brief")
	cmd.Stdin = strings.NewReader("quit\n")
	out, _ := cmd.CombinedOutput() // its exit code says whether the certificate is trusted, which a test's own is not
	return string(out)
}

func exampleSNI(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
	start()
	for host, want := range map[string]string{"one.example": "one", "two.example": "two", "a.two.example": "two"} {
		mustCurl(t, want, asHost(host, addr(8443))...)
	}
	mustNotCurl(t, asHost("three.example", addr(8443))...)
	// The handshake is with the server behind, not with the gateway.
	conn, err := tls.Dial("tcp", addr(8443), &tls.Config{ServerName: "one.example", InsecureSkipVerify: true})
	must(t, err)
	defer conn.Close()
	if got := conn.ConnectionState().PeerCertificates[0].DNSNames; len(got) != 1 || got[0] != "one.example" {
		t.Errorf("the certificate is for %q", got)
	}
}

func exampleDNS(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
	startDNSMasqAt(t, addr(9053))
	p := start()
	host, port, _ := net.SplitHostPort(addr(5353))
	for _, network := range []string{"+notcp", "+tcp"} {
		got := output(t, exec.Command(program(t, "dig"), "@"+host, "-p", port, "+time=10", "+short", network, "name.test"))
		if strings.TrimSpace(got) != "192.0.2.1" {
			t.Errorf("dig %s: %q", network, got)
		}
	}
	udp := p.WaitSessions(1, func(s gate.Session) bool { return s.Network == "udp" })[0]
	if udp.Reason != "max_replies" {
		t.Errorf("access log: %s", udp.Line)
	}
}

func examplePortRanges(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
	start()
	for i := range 3 {
		_, upstream, _ := net.SplitHostPort(addr(9000 + i))
		if page := mustGetPage(t, addr(7000+i)); page != "port "+upstream {
			t.Errorf("port %d of the range: %q, want that of upstream %s", i, page, upstream)
		}
	}
}

func examplePrometheus(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
	p := start()
	if page := mustGetPage(t, addr(8080)); page != "inside" {
		t.Errorf("through the port: %q", page)
	}
	p.WaitSessions(1, nil)
	want := fmt.Sprintf(`caddy_portgate_sessions_total{listener=%q,status="200",upstream=%q} 1`, addr(8080), addr(9001))
	gate.Eventually(t, peerTimeout, func() error {
		scraped, err := curl(t, "http://"+addr(9180)+"/metrics")
		if err != nil || !strings.Contains(scraped, want+"\n") {
			return fmt.Errorf("no %s in the metrics (%v)", want, err)
		}
		return nil
	})
	if page, _ := curl(t, "http://"+addr(9180)+"/config/"); page != "" {
		t.Errorf("the port for metrics has more than metrics: %q", page)
	}
}

func exampleHTTPAndLayer4(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
	sshOptions := startSSHDAt(t, addr(22))
	start(gate.WithoutRace()) // caddy-l4 reads the counters of a connection for its log while HTTP uses it
	site := asHost("localhost", addr(8443))
	mustCurl(t, "the site", site...)
	mustNotCurl(t, append(site, "--interface", "127.0.0.2")...)
	current, err := user.Current()
	must(t, err)
	host, port, _ := net.SplitHostPort(addr(8443))
	said := output(t, exec.Command(program(t, "ssh"), append(sshOptions(port), current.Username+"@"+host, "echo over ssh")...))
	if said != "over ssh\n" {
		t.Errorf("ssh: %q", said)
	}
	// HTTP/3 would be a way around the listener wrapper.
	udp, err := net.Dial("udp", addr(8443))
	must(t, err)
	defer udp.Close()
	udp.SetDeadline(time.Now().Add(peerTimeout))
	if _, err = udp.Write([]byte{0}); err == nil {
		_, err = io.ReadFull(udp, make([]byte, 1))
	}
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a datagram to the site's port: %v, want that nobody listens", err)
	}
}

func exampleSystemd(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
	path := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	defer systemd.Close()
	p := start(gate.WithEnv("NOTIFY_SOCKET", path))
	mustHear := func(state string) {
		t.Helper()
		systemd.SetReadDeadline(time.Now().Add(peerTimeout))
		for message := make([]byte, 100); ; {
			n, err := systemd.Read(message)
			if err != nil {
				t.Fatalf("systemd has not heard %q: %v", state, err)
			}
			if strings.HasPrefix(string(message[:n]), state) {
				return
			}
		}
	}
	mustHear("READY=1")
	if page := mustGetPage(t, addr(8080)); page != "inside" {
		t.Errorf("through the port: %q", page)
	}
	status, answer, err := p.Post("/load", "application/json", []byte(p.MustGet("/config/")))
	if err != nil || status != http.StatusOK {
		t.Fatalf("reload: %d %s (%v)", status, answer, err)
	}
	mustHear("RELOADING=1")
	mustHear("READY=1")
	p.Terminate()
	mustHear("STOPPING=1")
}

func exampleProxyProtocol(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
	p := start()
	balancer := gate.ReserveAddr(t)
	config := writeFile(t, "haproxy.cfg", fmt.Sprintf(`defaults
  mode tcp
  timeout connect 3s
  timeout client 10m
  timeout server 10m
listen clients
  bind %s
  server gateway %s send-proxy-v2
`, balancer, addr(8080)))
	server(t, balancer, exec.Command(program(t, "haproxy"), "-db", "-f", config))
	mustCurl(t, "inside", "http://"+balancer)
	mustCurl(t, "inside", "--haproxy-protocol", "http://"+addr(8080))
	for client, args := range map[string][]string{
		"127.0.0.2": {"http://" + balancer, "--interface", "127.0.0.2"},
		"127.0.0.3": {"http://" + addr(8080), "--interface", "127.0.0.3", "--haproxy-protocol"},
	} {
		mustNotCurl(t, args...)
		for _, s := range p.WaitSessions(1, func(s gate.Session) bool { return s.ClientIP == client }) {
			if s.Status != 403 {
				t.Errorf("access log: %s", s.Line)
			}
		}
	}
	mustNotCurl(t, "http://"+addr(8080))
	p.WaitSessions(1, func(s gate.Session) bool { return s.Status == 400 && s.Reason == "proxy_header" })
}

func exampleSystemdSockets(t *testing.T, start func(...gate.Option) *gate.Process, _ addresses) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := ln.Addr().String()
	socket, err := ln.(*net.TCPListener).File()
	must(t, err)
	defer socket.Close()
	must(t, ln.Close())
	p := start(gate.WithSockets(socket))
	for range 2 {
		if page := mustGetPage(t, addr); page != "inside" {
			t.Errorf("through the socket: %q", page)
		}
		status, answer, err := p.Post("/load", "application/json", []byte(p.MustGet("/config/")))
		if err != nil || status != http.StatusOK {
			t.Fatalf("reload: %d %s (%v)", status, answer, err)
		}
	}
}
