package integration

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// throughGateBoth is throughGate for a server that has one port for TCP and UDP.
func throughGateBoth(t testing.TB, upstream string, options gate.JSON) (p *gate.Process, host, port string) {
	t.Helper()
	addr := gate.ReserveAddr(t)
	forward := gate.Forward(upstream)
	for name, value := range options {
		forward = forward.With(name, value)
	}
	listen := gate.Listen(addr, forward)
	listen.Listen = append(listen.Listen, "gate+udp/"+addr)
	p = gate.Start(t, gate.Layer4(listen))
	host, port, _ = net.SplitHostPort(addr)
	return p, host, port
}

// startDNSMasq runs a DNS server with an address for name.test, and as big.test 20 texts that have no room in a datagram.
func startDNSMasq(t testing.TB) (addr string, texts []string) {
	t.Helper()
	addr = gate.ReserveAddr(t)
	return addr, startDNSMasqAt(t, addr)
}

func startDNSMasqAt(t testing.TB, addr string) (texts []string) {
	t.Helper()
	_, serverPort, _ := net.SplitHostPort(addr)
	args := []string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--log-facility=-", "--port=" + serverPort,
		"--listen-address=127.0.0.1", "--bind-interfaces", "--no-resolv", "--no-hosts", "--address=/name.test/192.0.2.1",
	}
	for i := range 20 {
		texts = append(texts, fmt.Sprintf("%d-%s", i, strings.Repeat("text", 30)))
		args = append(args, "--txt-record=big.test,"+texts[i])
	}
	server(t, addr, exec.Command(program(t, "dnsmasq"), args...))
	return texts
}

func TestProgramsDigAndDNSPerfAgainstDNSMasq(t *testing.T) {
	addr, texts := startDNSMasq(t)
	p, host, port := throughGateBoth(t, addr, gate.JSON{"max_replies": 1})
	dig := func(args ...string) string {
		return output(t, exec.Command(program(t, "dig"), append([]string{"@" + host, "-p", port, "+tries=1", "+time=10"}, args...)...))
	}
	for range 20 {
		if got := strings.TrimSpace(dig("+short", "name.test", "A")); got != "192.0.2.1" {
			t.Errorf("dig: got %q", got)
		}
	}
	got := dig("+noedns", "big.test", "TXT")
	for _, text := range texts {
		if !strings.Contains(got, text) {
			t.Errorf("dig: no %s in\n%s", text, got)
		}
	}
	if !strings.Contains(got, "retrying in TCP mode") || !strings.Contains(got, "(TCP)") {
		t.Errorf("dig has not come again over TCP:\n%s", got)
	}
	for network, want := range map[string]int{"udp": 21, "tcp": 1} {
		for _, s := range p.WaitSessions(want, func(s gate.Session) bool { return s.Network == network }) {
			if s.Status != 200 || network == "udp" && (s.Reason != "max_replies" || s.DatagramsUp != 1 || s.DatagramsDown != 1) {
				t.Errorf("access log: %s", s.Line)
			}
		}
	}

	// Several queries are under way from each port, and each gets its answer.
	queries := writeFile(t, "queries", "name.test A\nother.name.test A\nbig.test TXT\n")
	report := output(t, exec.Command(program(t, "dnsperf"), "-s", host, "-p", port, "-d", queries, "-l", "1", "-c", "20", "-q", "50"))
	number := func(what string) int {
		found := regexp.MustCompile(what + `:\s+(\d+)`).FindStringSubmatch(report)
		if found == nil {
			t.Fatalf("dnsperf says nothing of %q:\n%s", what, report)
		}
		n, _ := strconv.Atoi(found[1])
		return n
	}
	sent, lost := number("Queries sent"), number("Queries lost")
	t.Logf("dnsperf: %d queries, %d lost", sent, lost)
	if sent < 1000 || number("Queries completed") != sent || lost > 0 {
		t.Errorf("dnsperf:\n%s", report)
	}
}

func TestProgramsIperf3WithDatagrams(t *testing.T) {
	iperf := program(t, "iperf3")
	addr := iperfServer(t)
	p, host, port := throughGateBoth(t, addr, nil) // its control connection is TCP
	for _, direction := range [][]string{nil, {"-R"}, {"-P", "4"}} {
		before := droppedByUDP(t)
		args := append([]string{"-c", host, "-p", port, "-u", "-b", "10M", "-l", "1400", "-t", "1", "-J"}, direction...)
		var out []byte
		gate.Eventually(t, peerTimeout, func() (err error) {
			if out, err = exec.Command(iperf, args...).Output(); isBusy(out) {
				return errors.New("the server is busy")
			}
			if err != nil {
				t.Fatalf("iperf3 %v: %v\n%s", direction, err, out)
			}
			return nil
		})
		var report struct {
			End struct {
				Sum struct {
					Packets int
					Lost    int `json:"lost_packets"`
				}
			}
		}
		must(t, json.Unmarshal(out, &report))
		sum, dropped := report.End.Sum, droppedByUDP(t)-before
		t.Logf("iperf3 -u %v: %d datagrams, %d lost, %d dropped by the system", direction, sum.Packets, sum.Lost, dropped)
		if sum.Packets < 500 || sum.Lost > dropped {
			t.Errorf("iperf3 -u %v: the system has dropped %d datagrams\n%s", direction, dropped, out)
		}
	}
	// The control connection overtakes datagrams: those that come when the server has closed its socket are refused. It does not count them as
	// lost, because none comes after them. Refused at any other time, they are in its count.
	const drops = "caddy_portgate_datagrams_dropped_total"
	m := p.Metrics()
	if all, refused := m.Sum(drops), m.Sum(drops, label("reason", "upstream_refused")); all != refused {
		t.Errorf("%v datagrams were dropped, %v of them because the server had closed its socket:\n%v", all, refused, m)
	}
}

func TestProgramsSNMP(t *testing.T) {
	t.Parallel()
	const contact = "somebody@example.com"
	addr := gate.ReserveAddr(t)
	config := writeFile(t, "snmpd.conf", "rocommunity public 127.0.0.1\nsysContact "+contact+"\n")
	snmpd := exec.Command(program(t, "snmpd"), "-f", "-LE", "3", "-C", "-c", config, "udp:"+addr, "tcp:"+addr)
	snmpd.Env = append(os.Environ(), "SNMP_PERSISTENT_DIR="+t.TempDir(), "MIBS=")
	server(t, addr, snmpd)
	p, host, port := throughGateBoth(t, addr, nil)
	at := []string{"-v2c", "-c", "public", "-t", "10", "-r", "0", net.JoinHostPort(host, port)}
	if got := output(t, exec.Command(program(t, "snmpget"), append(at, ".1.3.6.1.2.1.1.4.0")...)); !strings.Contains(got, contact) {
		t.Errorf("snmpget: %q", got)
	}
	const many = 20
	if got := output(t, exec.Command(program(t, "snmpbulkwalk"), append([]string{"-Cr5"}, append(at, ".1.3.6.1.2.1.1")...)...)); strings.Count(got, "\n") < many {
		t.Errorf("snmpbulkwalk: %q", got)
	}
	p.Load(gate.Layer4())
	for _, s := range p.WaitSessions(2, nil) { // of two clients
		if s.Network != "udp" || s.DatagramsUp < 1 || s.DatagramsUp != s.DatagramsDown {
			t.Errorf("access log: %s", s.Line)
		}
	}
}

// startQUIC is a server that echoes streams and tells where connections come from.
func startQUIC(t testing.TB) (addr string, trust *tls.Config, from func() []string) {
	t.Helper()
	cert, key, pool := certificate(t)
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	must(t, err)
	udp := listenUDP(t, "127.0.0.1:0")
	transport := &quic.Transport{Conn: udp}
	ln, err := transport.Listen(&tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"echo"}}, nil)
	must(t, err)
	conns := make(chan *quic.Conn, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept(context.Background())
			if err != nil {
				return
			}
			conns <- conn
			go func() {
				for {
					stream, err := conn.AcceptStream(context.Background())
					if err != nil {
						return
					}
					go func() {
						_, _ = io.Copy(stream, stream)
						_ = stream.Close()
					}()
				}
			}()
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		_ = transport.Close()
		<-done
	})
	var accepted []*quic.Conn
	return udp.LocalAddr().String(), &tls.Config{RootCAs: pool, ServerName: "localhost", NextProtos: []string{"echo"}}, func() (addrs []string) {
		for len(conns) > 0 {
			accepted = append(accepted, <-conns)
		}
		for _, conn := range accepted {
			addrs = append(addrs, conn.RemoteAddr().String())
		}
		return addrs
	}
}

// A QUIC connection, which knows its peer's address, goes on through reloads and is none the wiser.
func TestProgramsQUICThroughReloads(t *testing.T) {
	t.Parallel()
	const reloads = 5
	upstream, trust, from := startQUIC(t)
	addr := gate.ReserveAddr(t)
	config := gate.Layer4(gate.ListenUDP(addr, gate.Forward(upstream)))
	p := gate.Start(t, config)
	ctx, cancel := context.WithTimeout(t.Context(), peerTimeout)
	defer cancel()
	conn, err := quic.DialAddr(ctx, addr, trust, nil)
	must(t, err)
	defer func() { _ = conn.CloseWithError(0, "") }()
	chat, err := conn.OpenStreamSync(ctx)
	must(t, err)
	for range reloads {
		p.Load(config)
		answer := make([]byte, 5)
		if _, err := chat.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(chat, answer); err != nil || string(answer) != "hello" {
			t.Fatalf("got %q (%v)", answer, err)
		}
		bulk, err := conn.OpenStreamSync(ctx)
		must(t, err)
		sent := make(chan result, 1)
		go func() {
			stream, err := send(bulk, mib)
			bulk.Close()
			sent <- result{stream, err}
		}()
		got, err := receive(bulk)
		mustArrive(t, "echo", within(t, peerTimeout, "sending", sent), result{got, err}, mib)
	}
	if addrs := from(); len(addrs) != 1 {
		t.Errorf("the server has seen connections from %v, want one", addrs)
	}
	if ended := p.Sessions(); len(ended) > 0 {
		t.Errorf("a session has ended: %s", ended[0].Line)
	}
}

// A tunnel of OpenVPN over UDP carries TCP, and goes on through a reload. The client is in a namespace: in the same one, both
// ends of the tunnel would speak to each other directly.
func TestProgramsOpenVPN(t *testing.T) {
	t.Parallel()
	client := newNamespace(t)
	upstream, number := gate.ReserveAddr(t), gate.ReservePort(t)
	addr := net.JoinHostPort(client.outside, strconv.Itoa(number))
	config := gate.Layer4(gate.ListenUDP(addr, gate.Forward(upstream)))
	p := gate.Start(t, config)

	cert, key, _ := certificate(t)
	block, _ := pem.Decode([]byte(cert))
	sum := sha256.Sum256(block.Bytes)
	fingerprint := hex.EncodeToString(sum[:])
	for i := len(fingerprint) - 2; i > 0; i -= 2 {
		fingerprint = fingerprint[:i] + ":" + fingerprint[i:]
	}
	// The second half of what is for tests of network devices.
	near := fmt.Sprintf("198.19.%d.%d", client.id>>6, client.id&63<<2+1)
	far := fmt.Sprintf("198.19.%d.%d", client.id>>6, client.id&63<<2+2)
	device := fmt.Sprintf("gatetun%d", client.id)
	both := []string{
		"--dev", device, "--dev-type", "tun", "--cert", writeFile(t, "cert.pem", cert), "--key", writeFile(t, "key.pem", key),
		"--peer-fingerprint", fingerprint, "--verb", "3", "--proto", "udp",
	}
	_, upstreamPort, _ := net.SplitHostPort(upstream)
	serverAlive := startProgram(t, exec.Command(program(t, "openvpn"),
		append(both, "--tls-server", "--dh", "none", "--local", "127.0.0.1", "--port", upstreamPort, "--ifconfig", near, far)...))
	clientAlive := startProgram(t, exec.Command(program(t, "ip"), append(append([]string{"netns", "exec", client.name, program(t, "openvpn")}, both...),
		"--tls-client", "--nobind", "--remote", client.outside, strconv.Itoa(number), "--ifconfig", far, near)...))

	var ln net.Listener
	gate.Eventually(t, 30*time.Second, func() (err error) { // the server has its end of the tunnel
		serverAlive()
		ln, err = net.Listen("tcp", net.JoinHostPort(near, "0"))
		return err
	})
	serveOn(t, ln, func(conn net.Conn) { echo(conn.(*net.TCPConn)) })
	var through net.Conn
	gate.Eventually(t, peerTimeout, func() (err error) {
		clientAlive()
		client.do(t, func() error {
			through, err = net.DialTimeout("tcp", ln.Addr().String(), time.Second)
			return nil
		})
		return err
	})
	conn := through.(*net.TCPConn)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(peerTimeout))
	mustExchange(t, conn)
	p.Load(config)
	sent, received := sending(conn, mib), receiving(conn)
	p.Load(config)
	mustArrive(t, "through the tunnel and back", within(t, peerTimeout, "sending", sent), within(t, peerTimeout, "receiving", received), mib)
	if moved := p.Metrics().Sum("caddy_portgate_bytes_total", label("listener", addr), label("direction", "up")); moved < mib {
		t.Errorf("%v bytes went through the process, want at least %d", moved, mib)
	}
	if ended := p.Sessions(); len(ended) > 0 {
		t.Errorf("a session has ended: %s", ended[0].Line)
	}
}
