package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// Bytes that a matcher has read arrive first and once.
func TestBytesReadByMatchersArriveFirstAndOnce(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a header that fills more than one prefetch of 2 KiB, ", 100)
	cases := map[string]struct {
		match gate.JSON
		hello []string // written one after the other, in segments of their own
	}{
		"ssh":                 {gate.JSON{"ssh": gate.JSON{}}, []string{"SSH-2.0-test\r\n"}},
		"ssh in pieces":       {gate.JSON{"ssh": gate.JSON{}}, []string{"S", "SH-2.0-test\r\n"}},
		"regexp":              {gate.JSON{"regexp": gate.JSON{"pattern": "^hello", "count": 6}}, []string{"hello, world"}},
		"regexp of 4 KiB":     {gate.JSON{"regexp": gate.JSON{"pattern": "^a header", "count": 4096}}, []string{long}},
		"http":                {gate.JSON{"http": []gate.JSON{}}, []string{"GET / HTTP/1.1\r\nHost: a\r\nX: " + long + "\r\n\r\n"}},
		"http and much after": {gate.JSON{"http": []gate.JSON{}}, []string{"POST / HTTP/1.1\r\nHost: a\r\n\r\n" + strings.Repeat(long, 100)}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			upstream, accepted := accepting(t)
			addr := gate.ReserveAddr(t)
			server := gate.Listen(addr, gate.Forward(upstream))
			server.Routes[0].Match = []gate.JSON{c.match}
			p := gate.Start(t, gate.Layer4(server))
			client := dial(t, addr)
			for _, piece := range c.hello {
				mustWrite(t, client, piece)
				mustDrain(t, client, true)
			}
			conn := within(t, peerTimeout, "the upstream's accept", accepted)
			mustWrite(t, client, " and the rest")
			must(t, client.CloseWrite())
			got, err := io.ReadAll(conn)
			if want := strings.Join(c.hello, "") + " and the rest"; err != nil || string(got) != want {
				t.Fatalf("the upstream got %d bytes (%v): %.80q, want %d: %.80q", len(got), err, got, len(want), want)
			}
			mustWrite(t, conn, "answer")
			conn.CloseWrite()
			mustRead(t, client, "answer")
			if s := p.WaitSession(port(client)); s.BytesUp != int64(len(got)) || s.BytesDown != int64(len("answer")) {
				t.Errorf("access log: %s", s.Line)
			}
		})
	}
}

func TestServerMaySpeakFirst(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(serve(t, greet("220 ready"))))))
	client := dial(t, addr)
	mustRead(t, client, "220 ready\n") // before the client has sent a byte
	mustExchange(t, client)
}

// certificate makes a self-signed certificate for "localhost".
func certificate(t testing.TB) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	parsed, err := x509.ParseCertificate(der)
	must(t, err)
	pool = x509.NewCertPool()
	pool.AddCert(parsed)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})), pool
}

// withTLS adds the app that holds a self-made certificate, and returns what a client needs to trust it.
func withTLS(t testing.TB, config gate.JSON) (gate.JSON, *tls.Config) {
	t.Helper()
	cert, key, pool := certificate(t)
	return config.WithApp("tls", gate.JSON{
		"certificates": gate.JSON{"load_pem": []gate.JSON{{"certificate": cert, "key": key}}},
	}), &tls.Config{RootCAs: pool, ServerName: "localhost"}
}

// startTLS forwards what the tls handler has decrypted, and opens a session.
func startTLS(t testing.TB) (p *gate.Process, client *tls.Conn, upstream *net.TCPConn) {
	t.Helper()
	upstreamAddr, accepted := accepting(t)
	addr := gate.ReserveAddr(t)
	config, trust := withTLS(t, gate.Layer4(gate.Listen(addr, gate.JSON{"handler": "tls"}, gate.Forward(upstreamAddr))))
	p = gate.Start(t, config)
	client = tls.Client(dial(t, addr), trust)
	must(t, client.Handshake())
	return p, client, within(t, peerTimeout, "the upstream's accept", accepted)
}

func TestBehindTLS(t *testing.T) {
	t.Parallel()
	const n = 16 * mib
	for _, finisher := range []string{"client", "upstream"} {
		t.Run("half-close by the "+finisher, func(t *testing.T) {
			t.Parallel()
			p, client, upstream := startTLS(t)
			var first, other halfCloser = client, upstream
			if finisher == "upstream" {
				first, other = upstream, client
			}
			sent, received := sending(first, n), receiving(other)
			// The end of the first direction is a close_notify on one side and a FIN on the other.
			mustArrive(t, "first direction", within(t, peerTimeout, "sending", sent), within(t, peerTimeout, "receiving", received), n)
			sent, received = sending(other, n), receiving(first)
			mustArrive(t, "other direction", within(t, peerTimeout, "sending", sent), within(t, peerTimeout, "receiving", received), n)
			s := p.WaitSession(port(client))
			if s.Reason != finisher+"_fin" || s.BytesUp != n || s.BytesDown != n || s.Status != 200 {
				t.Errorf("access log: %s", s.Line)
			}
		})
	}
	t.Run("upstream resets", func(t *testing.T) {
		t.Parallel()
		p, client, upstream := startTLS(t)
		mustExchangeBetween(t, client, upstream)
		reset(upstream)
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client got %v, want a reset", err)
		}
		if s := p.WaitSession(port(client)); s.Reason != "upstream_reset" {
			t.Errorf("access log: %s", s.Line)
		}
	})
	t.Run("client resets", func(t *testing.T) {
		t.Parallel()
		p, client, upstream := startTLS(t)
		mustExchangeBetween(t, client, upstream)
		clientPort := port(client)
		reset(client.NetConn().(*net.TCPConn))
		upstream.SetDeadline(time.Now().Add(time.Second + tolerance))
		mustReset(t, upstream)
		if s := p.WaitSession(clientPort); s.Reason != "client_reset" {
			t.Errorf("access log: %s", s.Line)
		}
	})
}

// mustExchangeBetween sends a byte each way.
func mustExchangeBetween(t testing.TB, client, upstream net.Conn) {
	t.Helper()
	mustWrite(t, client, "x")
	mustRead(t, upstream, "x")
	mustWrite(t, upstream, "y")
	mustRead(t, client, "y")
}

// The session ends, whole and in order, behind every way to wrap a connection.
func TestBehindOtherHandlersAndNetworks(t *testing.T) {
	t.Parallel()
	const n = 4 * mib
	fast := gate.JSON{"handler": "throttle", "read_bytes_per_second": 100 << 20, "read_burst_size": 64 << 10}
	const header = "PROXY TCP4 192.0.2.7 192.0.2.1 4321 80\r\n"
	cases := map[string]struct {
		listen   func(addr string, forward gate.JSON) gate.Server
		before   string // what the client sends first and the upstream does not get
		clientIP string
	}{
		"throttle": {func(addr string, forward gate.JSON) gate.Server { return gate.Listen(addr, fast, forward) }, "", "127.0.0.1"},
		"proxy_protocol": {func(addr string, forward gate.JSON) gate.Server {
			return gate.Listen(addr, gate.JSON{"handler": "proxy_protocol", "allow": []string{"127.0.0.0/8"}}, forward)
		}, header, "192.0.2.7"},
		"stock tcp network": {func(addr string, forward gate.JSON) gate.Server { return gate.Listen("tcp/"+addr, forward) }, "", "127.0.0.1"},
		"subroute": {func(addr string, forward gate.JSON) gate.Server {
			return gate.Listen(addr, gate.JSON{"handler": "subroute", "routes": []gate.Route{{Handle: []gate.JSON{forward}}}})
		}, "", "127.0.0.1"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			upstreamAddr, accepted := accepting(t)
			addr := gate.ReserveAddr(t)
			p := gate.Start(t, gate.Layer4(c.listen(addr, gate.Forward(upstreamAddr))))
			for _, finisher := range []string{"client", "upstream"} {
				client := dial(t, addr)
				mustWrite(t, client, c.before)
				upstream := within(t, peerTimeout, "the upstream's accept", accepted)
				first, other := client, upstream
				if finisher == "upstream" {
					first, other = upstream, client
				}
				for range 2 { // one direction after the other: each FIN leaves the other direction open
					sent, received := sending(first, n), receiving(other)
					mustArrive(t, name, within(t, peerTimeout, "sending", sent), within(t, peerTimeout, "receiving", received), n)
					first, other = other, first
				}
			}
			sessions := p.WaitSessions(2, func(s gate.Session) bool { return s.ClientIP == c.clientIP })
			for i, reason := range []string{"client_fin", "upstream_fin"} {
				if s := sessions[i]; s.Reason != reason || s.Status != 200 || s.BytesUp != n || s.BytesDown != n {
					t.Errorf("access log: %s", s.Line)
				}
			}
			client := dial(t, addr)
			mustWrite(t, client, c.before)
			upstream := within(t, peerTimeout, "the upstream's accept", accepted)
			mustExchangeBetween(t, client, upstream)
			reset(upstream)
			mustReset(t, client)
		})
	}
}

// In front of an HTTP site, forward takes what its route matches, and the site everything else. The plain binary: layer4's
// listener wrapper itself has data races with the HTTP server that it hands connections to (caddy-l4 v0.1.2, listener.go).
func TestInFrontOfAnHTTPSite(t *testing.T) {
	t.Parallel()
	upstream, accepted := accepting(t)
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.JSON{"apps": gate.JSON{"http": gate.JSON{"servers": gate.JSON{"site": gate.JSON{
		"listen":          []string{addr},
		"automatic_https": gate.JSON{"disable": true},
		"routes":          []gate.JSON{{"handle": []gate.JSON{{"handler": "static_response", "body": "the site"}}}},
		"listener_wrappers": []gate.JSON{{"wrapper": "layer4", "routes": []gate.Route{{
			Match:  []gate.JSON{{"ssh": gate.JSON{}}},
			Handle: []gate.JSON{gate.Forward(upstream)},
		}}}},
	}}}}}, gate.WithoutRace())
	transport := &http.Transport{DisableKeepAlives: true}
	for range 3 {
		resp, err := (&http.Client{Transport: transport, Timeout: peerTimeout}).Get("http://" + addr)
		must(t, err)
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != "the site" {
			t.Fatalf("the site answered %q (%v)", body, err)
		}
		const hello = "SSH-2.0-test\r\n"
		client := dial(t, addr)
		mustWrite(t, client, hello)
		conn := within(t, peerTimeout, "the upstream's accept", accepted)
		mustRead(t, conn, hello)
		sent, received := sending(conn, mib), receiving(client)
		mustArrive(t, "down", within(t, peerTimeout, "sending", sent), within(t, peerTimeout, "receiving", received), mib)
		client.Close()
		if s := p.WaitSession(port(client)); s.BytesUp != int64(len(hello)) || s.BytesDown != mib || s.Status != 200 {
			t.Errorf("access log: %s", s.Line)
		}
	}
}
