package check

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// overEngines runs a test with each engine of this system.
func overEngines(t *testing.T, test func(t *testing.T, e engine)) {
	t.Helper()
	run := func(name string, e engine) {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(e.close)
			test(t, e)
		})
	}
	run("goroutines", newDialers())
	if l, err := newLoop(); err == nil {
		run("loop", l)
	}
}

// guard ends a test that hangs.
const guard = time.Minute

// check makes one check, until it is over.
func check(t *testing.T, e engine, p Probe, addr net.Addr) error {
	t.Helper()
	return checkSecure(t, e, p, addr, "127.0.0.1", nil)
}

func checkSecure(t *testing.T, e engine, p Probe, addr net.Addr, host string, secure func(host string) *tls.Config) error {
	t.Helper()
	ready, err := p.prepare()
	if err != nil {
		t.Fatal(err)
	}
	var speak func() *tls.Config
	if p.TLS != "" {
		speak = func() *tls.Config { return secure(host) }
	}
	x, over := ready.exchange(addr, host, speak), make(chan error, 1)
	x.over = func(err error) { over <- err }
	if !e.serves(x) {
		e = newDialers()
		defer e.close()
	}
	e.begin(x)
	select {
	case err := <-over:
		return err
	case <-time.After(guard):
		t.Fatal("no result")
		return nil
	}
}

// contains reports whether an error has a text; "" is no error.
func contains(err error, want string) bool {
	if err == nil || want == "" {
		return err == nil && want == ""
	}
	return strings.Contains(err.Error(), want)
}

// server accepts connections and has serve talk to each.
func server(t *testing.T, network string, serve func(net.Conn)) net.Addr {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		dir, err := os.MkdirTemp("", "check") // short enough for a socket
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		address = filepath.Join(dir, "s")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(guard))
			serve(conn)
			conn.Close()
		}
	}()
	return ln.Addr()
}

// datagrams answers each datagram with those that reply returns.
func datagrams(t *testing.T, reply func([]byte) [][]byte) net.Addr {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	go func() {
		defer close(done)
		buffer := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			for _, b := range reply(buffer[:n]) {
				_, _ = conn.WriteTo(b, from)
			}
		}
	}()
	return conn.LocalAddr()
}

// closed is an address where nobody listens.
func closed(t *testing.T, network string) net.Addr {
	t.Helper()
	if network == "udp" {
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.LocalAddr()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr()
}

func TestConnecting(t *testing.T) {
	overEngines(t, func(t *testing.T, e engine) {
		open := server(t, "tcp", func(net.Conn) {})
		for range 50 {
			if err := check(t, e, Probe{Kind: TCP}, open); err != nil {
				t.Fatal(err)
			}
		}
		if err := check(t, e, Probe{Kind: TCP, Sources: "127.0.0.7 ::1"}, open); err != nil {
			t.Error(err)
		}
		if err := check(t, e, Probe{Kind: TCP}, server(t, "unix", func(net.Conn) {})); err != nil {
			t.Error(err)
		}
		if err := check(t, e, Probe{Kind: TCP}, closed(t, "tcp")); !contains(err, "connection refused") {
			t.Error(err)
		}
		if err := check(t, e, Probe{Kind: TCP}, &net.UnixAddr{Net: "unix", Name: "/nowhere"}); !contains(err, "no such file") {
			t.Error(err)
		}
		if err := check(t, e, Probe{Kind: TCP, Sources: "192.0.2.7"}, open); !isLocal(err) {
			t.Errorf("a source address that this machine does not have: %v", err)
		}
	})
}

func TestSendAndExpect(t *testing.T) {
	overEngines(t, func(t *testing.T, e engine) {
		reply := func(parts ...string) net.Addr {
			return server(t, "tcp", func(conn net.Conn) {
				b := make([]byte, 6)
				if _, err := io.ReadFull(conn, b); err != nil || string(b) != "PING\r\n" {
					return
				}
				for _, part := range parts {
					_, _ = conn.Write([]byte(part))
				}
				_, _ = io.Copy(io.Discard, conn)
			})
		}
		ping := Probe{Kind: Send, Text: `PING\r\n`, Expect: `(?m)^\+PONG\r$`}
		for _, test := range []struct {
			addr net.Addr
			want string
		}{
			{reply("+PONG\r\n"), ""},
			{reply("hello\n", "+PO", "NG\r", "\n"), ""},
			{server(t, "tcp", func(conn net.Conn) { _, _ = conn.Write([]byte("-ERR\r\n")) }), `it has sent "-ERR\r\n", expected "(?m)^\\+PONG\\r$"`},
			{server(t, "tcp", func(conn net.Conn) { _, _ = io.ReadFull(conn, make([]byte, 6)) }), "it has sent nothing"},
			{reply(strings.Repeat("x", 2*maxReply)), `it has sent "` + strings.Repeat("x", 64) + `"...`},
		} {
			if err := check(t, e, ping, test.addr); !contains(err, test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		}
		banner := server(t, "tcp", func(conn net.Conn) { _, _ = conn.Write([]byte("SSH-2.0-x\r\n")); _, _ = io.Copy(io.Discard, conn) })
		if err := check(t, e, Probe{Kind: Send, Expect: "^SSH-"}, banner); err != nil {
			t.Errorf("a server that speaks first: %v", err)
		}
	})
}

// TestRepliesThatDoNotMatch holds that a check which takes too long, because the server waits for more, tells what the server has sent.
func TestRepliesThatDoNotMatch(t *testing.T) {
	overEngines(t, func(t *testing.T, e engine) {
		noauth := server(t, "tcp", func(conn net.Conn) { _, _ = conn.Write([]byte("-NOAUTH\r\n")); _, _ = io.Copy(io.Discard, conn) })
		greets := server(t, "tcp", func(conn net.Conn) { _, _ = conn.Write([]byte("J5.7")); _, _ = io.Copy(io.Discard, conn) })
		silent := server(t, "tcp", func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
		for _, test := range []struct {
			addr  net.Addr
			probe Probe
			want  string
		}{
			{noauth, Probe{Kind: Send, Text: `PING\r\n`, Expect: `^\+PONG`}, `it has sent "-NOAUTH\r\n", expected "^\\+PONG"`},
			{greets, Probe{Kind: HTTP, Text: "/healthz"}, `it has sent "J5.7", expected an HTTP response`},
			{silent, Probe{Kind: HTTP, Text: "/healthz"}, errTimeout.Error()},
		} {
			ready, err := test.probe.prepare()
			if err != nil {
				t.Fatal(err)
			}
			x := ready.exchange(test.addr, "127.0.0.1", nil)
			x.over = func(err error) { t.Errorf("result %v", err) }
			e.begin(x)
			for deadline := time.Now().Add(guard); test.addr != silent && x.unfinished.Load() == nil; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s: nothing of the reply was noted", test.want)
				}
			}
			e.cancel(x)
			if err := x.timedOut(); !contains(err, test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		}
	})
}

func TestHTTP(t *testing.T) {
	overEngines(t, func(t *testing.T, e engine) {
		var host atomic.Value
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			host.Store(r.Host)
			if r.URL.Path == "/bad" {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			_, _ = w.Write(make([]byte, 100))
		})
		plain, secure := httptest.NewServer(handler), httptest.NewUnstartedServer(handler)
		secure.Config.ErrorLog = nil
		secure.StartTLS()
		defer plain.Close()
		defer secure.Close()
		ca := x509.NewCertPool()
		ca.AddCert(secure.Certificate())
		ways := map[string]func(host string) *tls.Config{
			"system":   func(host string) *tls.Config { return &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12} },
			"insecure": func(string) *tls.Config { return &tls.Config{InsecureSkipVerify: true} },
			"ca": func(host string) *tls.Config {
				return &tls.Config{ServerName: host, RootCAs: ca, MinVersion: tls.VersionTLS12}
			},
			"other": func(string) *tls.Config {
				return &tls.Config{ServerName: "example.org", RootCAs: ca, MinVersion: tls.VersionTLS12}
			},
		}
		raw := func(reply string) net.Addr {
			return server(t, "tcp", func(conn net.Conn) { _, _ = conn.Read(make([]byte, 1000)); _, _ = conn.Write([]byte(reply)) })
		}
		for _, test := range []struct {
			name  string
			probe Probe
			addr  net.Addr
			want  string
		}{
			{"passes", Probe{Text: "/"}, plain.Listener.Addr(), ""},
			{"status", Probe{Text: "/bad"}, plain.Listener.Addr(), `status "503", expected 200-399`},
			{"status as asked for", Probe{Text: "/bad", Status: "5xx"}, plain.Listener.Addr(), ""},
			{"another status", Probe{Text: "/", Status: "204"}, plain.Listener.Addr(), `status "200", expected 204`},
			{"host", Probe{Text: "/", Host: "app.example.com"}, plain.Listener.Addr(), ""},
			{"no HTTP", Probe{Text: "/"}, raw("220 mail\r\n"), `it has sent "220 mail\r", expected an HTTP response`},
			{"no reply", Probe{Text: "/"}, raw(""), "it has sent nothing"},
			{"half a reply", Probe{Text: "/"}, raw("HTTP/1.1 20"), `"HTTP/1.1 20", expected an HTTP response`},
			{"interim responses", Probe{Text: "/"}, raw("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"), ""},
			{"an interim response in front of a bad one", Probe{Text: "/"}, raw("HTTP/1.1 100 Continue\n\nHTTP/1.1 500 Bad\r\n"), `status "500", expected 200-399`},
			{"an interim response that is asked for", Probe{Text: "/", Status: "1xx"}, raw("HTTP/1.1 103 Early Hints\r\n\r\n"), ""},
			{"another protocol", Probe{Text: "/"}, raw("HTTP/1.1 101 Switching Protocols\r\n\r\n"), `status "101", expected 200-399`},
			{"nothing else", Probe{Text: "/"}, raw("HTTP/1.1 100 Continue\r\n\r\n"), `it has sent "HTTP/1.1 100 Continue" and no final response, expected 200-399`},
			{"half an interim response", Probe{Text: "/"}, raw("HTTP/1.1 100 Continue\r\nX: "), `it has sent "HTTP/1.1 100 Continue" and no final response`},
			{"interim responses without an end", Probe{Text: "/"}, raw(strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", maxReply/25+1)), "and no final response"},
			{"TLS, unknown certificate", Probe{Text: "/", TLS: "system"}, secure.Listener.Addr(), "certificate"},
			{"TLS, not verified", Probe{Text: "/", TLS: "insecure"}, secure.Listener.Addr(), ""},
			{"TLS, CA", Probe{Text: "/", TLS: "ca"}, secure.Listener.Addr(), ""},
			{"TLS, CA and name", Probe{Text: "/", TLS: "ca", Host: "app.example"}, secure.Listener.Addr(), ""},
			{"TLS, other name", Probe{Text: "/", TLS: "other"}, secure.Listener.Addr(), "example.org"},
			{"TLS, status", Probe{Text: "/bad", TLS: "ca"}, secure.Listener.Addr(), `status "503"`},
			{"TLS, no TLS there", Probe{Text: "/", TLS: "system"}, plain.Listener.Addr(), "TLS"},
		} {
			test.probe.Kind = HTTP
			if err := checkSecure(t, e, test.probe, test.addr, "127.0.0.1", ways[test.probe.TLS]); !contains(err, test.want) {
				t.Errorf("%s: %v, want %q", test.name, err, test.want)
			}
			if test.name == "host" && host.Load() != "app.example.com" {
				t.Errorf("host %q", host.Load())
			}
		}
		if err := checkSecure(t, e, Probe{Kind: TCP, TLS: "insecure"}, secure.Listener.Addr(), "", ways["insecure"]); err != nil {
			t.Errorf("handshake: %v", err)
		}
	})
}

// answer makes the answer of a name server.
func answer(t *testing.T, question []byte, rcode int) []byte {
	var m dns.Msg
	if err := m.Unpack(question); err != nil {
		t.Error(err)
		return nil
	}
	m.Response, m.Rcode = true, rcode
	packed, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return packed
}

func TestDNS(t *testing.T) {
	overEngines(t, func(t *testing.T, e engine) {
		name := Probe{Kind: DNS, Text: "example.com"}
		over := func(rcode int) net.Addr {
			return datagrams(t, func(q []byte) [][]byte {
				other := answer(t, q, dns.RcodeServerFailure)
				other[0] ^= 1 // of another question
				return [][]byte{other, []byte("garbage"), answer(t, q, rcode)}
			})
		}
		stream := func(rcode int) net.Addr {
			return server(t, "tcp", func(conn net.Conn) {
				var size [2]byte
				_, _ = io.ReadFull(conn, size[:])
				q := make([]byte, binary.BigEndian.Uint16(size[:]))
				_, _ = io.ReadFull(conn, q)
				a := answer(t, q, rcode)
				_, _ = conn.Write(binary.BigEndian.AppendUint16(nil, uint16(len(a))))
				_, _ = conn.Write(a)
			})
		}
		for _, test := range []struct {
			addr net.Addr
			want string
		}{
			{over(dns.RcodeSuccess), ""},
			{over(dns.RcodeServerFailure), "it has answered SERVFAIL, expected NOERROR"},
			{stream(dns.RcodeSuccess), ""},
			{stream(dns.RcodeRefused), "it has answered REFUSED"},
			{server(t, "tcp", func(conn net.Conn) { _, _ = conn.Read(make([]byte, 100)) }), "it has closed the connection"},
			{closed(t, "udp"), "connection refused"},
		} {
			if err := check(t, e, name, test.addr); !contains(err, test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		}
	})
}

func TestUDP(t *testing.T) {
	overEngines(t, func(t *testing.T, e engine) {
		echo := datagrams(t, func(b []byte) [][]byte { return [][]byte{append([]byte{0xff}, b...)} })
		for _, test := range []struct {
			probe Probe
			addr  net.Addr
			want  string
		}{
			{Probe{Text: "0a1b"}, echo, ""},
			{Probe{Text: ""}, echo, ""},
			{Probe{Text: "0a1b", Expect: `^\xff\n\x1b$`}, echo, ""},
			{Probe{Text: "0a1b", Expect: `^\xfe`}, echo, `it has sent "\xff\n\x1b", expected "^\\xfe"`},
			{Probe{Text: "00"}, closed(t, "udp"), "connection refused"},
		} {
			test.probe.Kind = UDP
			if err := check(t, e, test.probe, test.addr); !contains(err, test.want) {
				t.Errorf("%+v: %v, want %q", test.probe, err, test.want)
			}
		}
	})
}

// A check that is cancelled has no result and leaves no socket, before it has begun and after.
func TestCancelledChecks(t *testing.T) {
	overEngines(t, func(t *testing.T, e engine) {
		accepted, gone := make(chan struct{}, 10), make(chan struct{}, 10)
		silent := server(t, "tcp", func(conn net.Conn) {
			accepted <- struct{}{}
			_, _ = io.Copy(io.Discard, conn)
			gone <- struct{}{}
		})
		wait := func(what string, happened chan struct{}) {
			select {
			case <-happened:
			case <-time.After(guard):
				t.Fatal("not", what)
			}
		}
		p, err := Probe{Kind: Send, Text: "x", Expect: "y"}.prepare()
		if err != nil {
			t.Fatal(err)
		}
		x := p.exchange(silent, "", nil)
		x.over = func(err error) { t.Errorf("result %v", err) }
		x.cancelled.Store(true)
		e.cancel(x)
		e.begin(x)
		x = p.exchange(silent, "", nil)
		x.over = func(err error) { t.Errorf("result %v", err) }
		e.begin(x)
		wait("accepted", accepted)
		x.cancelled.Store(true)
		e.cancel(x)
		wait("closed", gone)
		if len(accepted) > 0 {
			t.Error("a check that was cancelled before has begun")
		}
	})
}

func TestProbesThatAreWrong(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		probe Probe
		want  string
	}{
		{Probe{}, `"": expected tcp, send, http, dns or udp`},
		{Probe{Kind: Send, Text: `\q`, Expect: "x"}, `"\\q": expected \r, \n, \t, \\ or \x and two hexadecimal digits after each \`},
		{Probe{Kind: Send, Text: "x"}, `expect: "": expected a regular expression such as ^\+PONG`},
		{Probe{Kind: Send, Expect: "("}, "expect: \"(\": expected a regular expression: missing closing ): `(`"},
		{Probe{Kind: Send, Text: strings.Repeat("x", 5000), Expect: "x"}, "at most 4096 bytes"},
		{Probe{Kind: UDP, Text: "0a1"}, `"0a1": expected an even number of hexadecimal digits such as 0a1b`},
		{Probe{Kind: UDP, Text: "zz"}, `"zz": expected an even number of hexadecimal digits`},
		{Probe{Kind: UDP, Text: strings.Repeat("00", 1201)}, "at most 2400"},
		{Probe{Kind: UDP, Text: "00", Expect: "["}, `expect: "[": expected a regular expression`},
		{Probe{Kind: HTTP, Text: "healthz"}, `"healthz": expected a path such as /healthz`},
		{Probe{Kind: HTTP, Text: "/a b"}, `"/a b": expected a path such as /healthz`},
		{Probe{Kind: HTTP, Text: "/", Status: "20"}, `"20": expected a status code from 100 to 599`},
		{Probe{Kind: HTTP, Text: "/", Status: "600"}, `"600": expected a status code`},
		{Probe{Kind: HTTP, Text: "/", Status: "399-200"}, `"399-200": expected a status code`},
		{Probe{Kind: HTTP, Text: "/", Status: "ok"}, `"ok": expected a status code`},
		{Probe{Kind: HTTP, Text: "/", Host: "a b"}, `host: "a b": expected a name`},
		{Probe{Kind: DNS, Text: ""}, `"": expected a name such as example.com`},
		{Probe{Kind: DNS, Text: "a..b"}, `"a..b": expected a name`},
		{Probe{Kind: DNS, Text: "example.com:53"}, `"example.com:53": expected a name`},
		{Probe{Kind: DNS, Text: "a", TLS: "x"}, `tls: expected tcp, send or http, but there is dns`},
		{Probe{Kind: TCP, Sources: "x"}, `source: "x": expected an IP address`},
	} {
		if err := test.probe.Check(); !contains(err, test.want) || err == nil {
			t.Errorf("%+v: %v, want %q", test.probe, err, test.want)
		}
	}
}

func FuzzParseText(f *testing.F) {
	for _, s := range []string{"", "PING\\r\\n", `\x00\xff\\`, `\`, `\x0`, "ü"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		text, err := ParseText(s)
		if err != nil {
			return
		}
		// Every byte written as an escape is the same text.
		var escaped strings.Builder
		for _, c := range text {
			fmt.Fprintf(&escaped, `\x%02x`, c)
		}
		if again, err := ParseText(escaped.String()); err != nil || string(again) != string(text) {
			t.Errorf("%q is %q, and %q is %q, %v", s, text, escaped.String(), again, err)
		}
	})
}

// FuzzReplies has servers reply anything, in two parts.
func FuzzReplies(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\n"), 3)
	f.Add([]byte("HTTP/1.1 \n"), 0)
	f.Add([]byte{0, 12, 1, 2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 1)
	f.Fuzz(func(t *testing.T, reply []byte, cut int) {
		cut = min(max(cut, 0), len(reply))
		for _, p := range []Probe{
			{Kind: HTTP, Text: "/"}, {Kind: Send, Expect: "^x"}, {Kind: UDP, Expect: "^x"}, {Kind: DNS, Text: "example.com"},
		} {
			ready, err := p.prepare()
			if err != nil {
				t.Fatal(err)
			}
			for _, addr := range []net.Addr{&net.TCPAddr{}, &net.UDPAddr{}} {
				x := ready.exchange(addr, "", nil)
				_, _ = x.judge(reply[:cut], false)
				done, err := x.judge(reply, true)
				if _, stream := addr.(*net.TCPAddr); stream && !done {
					t.Errorf("%s: nothing follows %q, and it is not judged: %v", p.Kind, reply, err)
				}
				if err != nil && len(err.Error()) > 500 {
					t.Errorf("%s: an error of %d bytes", p.Kind, len(err.Error()))
				}
			}
		}
	})
}

func FuzzHex(f *testing.F) {
	f.Add("0a1B")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Probe{Kind: UDP, Text: s}.prepare()
		if err == nil && !strings.EqualFold(hex.EncodeToString(p.sent), s) {
			t.Errorf("%q is %x", s, p.sent)
		}
	})
}

// The host of the upstream is that of the request.
func TestHostOfTheRequest(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		probe Probe
		addr  net.Addr
		host  string
		want  string
	}{
		{Probe{}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 80}, "app", "app:80"},
		{Probe{}, &net.TCPAddr{IP: net.IPv6loopback, Port: 80}, "::1", "[::1]:80"},
		{Probe{Host: "x.example"}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 80}, "app", "x.example"},
		{Probe{}, &net.UnixAddr{Net: "unix", Name: "/run/a"}, "", "localhost"},
	} {
		test.probe.Kind, test.probe.Text = HTTP, "/a"
		p, err := test.probe.prepare()
		if err != nil {
			t.Fatal(err)
		}
		x := p.exchange(test.addr, test.host, nil)
		if !strings.Contains(string(x.request), "GET /a HTTP/1.1\r\nHost: "+test.want+"\r\n") {
			t.Errorf("%q, want %q", x.request, test.want)
		}
	}
}

// What upstreams are told comes before the request: before a handshake, and in front of a datagram.
func TestPreface(t *testing.T) {
	const told = "PROXY UNKNOWN\r\n"
	overEngines(t, func(t *testing.T, e engine) {
		after := func(serve func(net.Conn)) net.Addr {
			return server(t, "tcp", func(conn net.Conn) {
				b := make([]byte, len(told))
				if _, err := io.ReadFull(conn, b); err == nil && string(b) == told {
					serve(conn)
				}
			})
		}
		pong := func(conn net.Conn) {
			if _, err := io.ReadFull(conn, make([]byte, 4)); err == nil {
				_, _ = io.WriteString(conn, "PONG")
			}
		}
		web := httptest.NewUnstartedServer(nil)
		web.StartTLS() // for its certificate
		defer web.Close()
		encrypted := func(conn net.Conn) { pong(tls.Server(conn, web.TLS)) }
		ping := Probe{Kind: Send, Text: "PING", Expect: "PONG"}
		secret := ping
		secret.TLS = "x"
		for name, test := range map[string]struct {
			probe Probe
			addr  net.Addr
		}{
			"plain":    {ping, after(pong)},
			"TLS":      {secret, after(encrypted)},
			"greeting": {Probe{Kind: Send, Expect: "PONG"}, after(func(conn net.Conn) { _, _ = io.WriteString(conn, "PONG") })},
			"datagram": {Probe{Kind: UDP, Text: "00", Expect: "PONG"}, datagrams(t, func(b []byte) [][]byte {
				if string(b) != told+"\x00" {
					return nil
				}
				return [][]byte{[]byte("PONG")}
			})},
			"connection": {Probe{Kind: TCP}, server(t, "tcp", func(net.Conn) {})},
		} {
			ready, err := test.probe.prepare()
			if err != nil {
				t.Fatal(err)
			}
			var speak func() *tls.Config
			if test.probe.TLS != "" {
				speak = func() *tls.Config { return &tls.Config{InsecureSkipVerify: true} } //nolint:gosec // it is about the order
			}
			x, over := ready.exchange(test.addr, "127.0.0.1", speak).after([]byte(told)), make(chan error, 1)
			x.over = func(err error) { over <- err }
			by := e
			if !e.serves(x) {
				by = newDialers()
				defer by.close()
			}
			by.begin(x)
			if err := await(t, over); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
