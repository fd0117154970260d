package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// authority issues certificates, in files of one folder.
type authority struct {
	testing.TB
	dir         string
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{TB: t, dir: t.TempDir()}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gate's tests"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	must(t, err)
	a.certificate, err = x509.ParseCertificate(der)
	must(t, err)
	a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// write replaces a file.
func (a *authority) write(name, kind string, der []byte) {
	a.Helper()
	must(a, os.WriteFile(a.path(name+".new"), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o644))
	must(a, os.Rename(a.path(name+".new"), a.path(name)))
}

// issue replaces the files of a certificate for localhost: name.pem and name.key.
func (a *authority) issue(name string, serial int64) {
	a.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	must(a, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(a, err)
	a.write(name+".pem", "CERTIFICATE", der)
	a.write(name+".key", "PRIVATE KEY", pkcs8)
}

// speak is the option tls with the client certificate of the authority.
func (a *authority) speak() gate.JSON {
	return gate.JSON{
		"server_name": "localhost", "ca": []string{a.path("ca.pem")}, "alpn": []string{"x", "gate"},
		"client_certificate": gate.JSON{"certificate": a.path("client.pem"), "key": a.path("client.key")},
	}
}

// secureNginx tells each client that has a certificate what it has found out of it.
func (a *authority) secureNginx(t *testing.T, more string) (addr string) {
	t.Helper()
	addr = gate.ReserveAddr(t)
	path := writeFile(t, "nginx.conf", fmt.Sprintf(`%s
daemon off;
pid %s/nginx.pid;
error_log stderr;
events {}
stream {
	server {
		listen %s ssl%s;
		ssl_certificate %s;
		ssl_certificate_key %s;
		ssl_client_certificate %s;
		ssl_verify_client on;
		ssl_alpn gate;
		return "$ssl_server_name $ssl_alpn_protocol $ssl_client_serial $proxy_protocol_addr\n";
	}
}
`, loadStreamModule(), t.TempDir(), addr, more, a.path("server.pem"), a.path("server.key"), a.path("ca.pem")))
	server(t, addr, exec.Command(program(t, "nginx"), "-c", path))
	return addr
}

// secureHAProxy lets clients with a certificate through to a server.
func (a *authority) secureHAProxy(t *testing.T, to string) (addr string) {
	t.Helper()
	addr = gate.ReserveAddr(t)
	pair, err := os.ReadFile(a.path("server.pem"))
	must(t, err)
	key, err := os.ReadFile(a.path("server.key"))
	must(t, err)
	path := writeFile(t, "haproxy.cfg", fmt.Sprintf(`defaults
	mode tcp
	timeout connect 10s
	timeout client 60s
	timeout server 60s
listen l
	bind %s ssl crt %s ca-file %s verify required
	server s %s
`, addr, writeFile(t, "both.pem", string(pair)+string(key)), a.path("ca.pem"), to))
	server(t, addr, exec.Command(program(t, "haproxy"), "-db", "-f", path))
	return addr
}

// nginx sees the name, the protocol and the certificate, and, in clear before them, who the client is.
func TestTLSToNginx(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.issue("server", 2)
	a.issue("client", 0x7A)
	for name, listen := range entrances {
		for _, proxied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, proxied %t", name, proxied), func(t *testing.T) {
				t.Parallel()
				more, header, told := "", "off", ""
				if proxied {
					more, header, told = " proxy_protocol", "v2", otherIP
				}
				nginx, addr := a.secureNginx(t, more), gate.ReserveAddr(t)
				handler := gate.JSON{"handler": "forward", "upstreams": []gate.JSON{{"address": nginx, "proxy_protocol": header, "tls": a.speak()}}}
				p := gate.Start(t, gate.Layer4(listen(addr, handler)))
				client := mustDialFrom(t, otherIP, addr)
				want := "localhost gate 7A " + told + "\n"
				mustRead(t, client, want)
				mustEnd(t, client)
				client.Close()
				if s := p.WaitSession(port(client)); s.Status != 200 || s.Reason != "upstream_fin" || s.BytesDown != int64(len(want)) {
					t.Errorf("%s", s.Line)
				}
			})
		}
	}
}

// Half closes and much data pass HAProxy's TLS in both directions, and a server that does not trust the gateway is an upstream that fails.
func TestTLSToHAProxy(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	a.issue("server", 2)
	a.issue("client", 3)
	haproxy, addr, wrong := a.secureHAProxy(t, serve(t, echo)), gate.ReserveAddr(t), gate.ReserveAddr(t)
	distrusting := a.speak().With("ca", []string{other.path("ca.pem")})
	p := gate.Start(t, gate.Layer4(
		gate.Listen(addr, gate.Forward(haproxy).With("tls", a.speak())),
		gate.Listen(wrong, gate.Forward(haproxy).With("tls", distrusting)),
	))
	client := dial(t, addr)
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(client, zeros{}, 32*mib)
		_ = client.CloseWrite()
		sent <- err
	}()
	if n, err := io.Copy(io.Discard, client); err != nil || n != 32*mib {
		t.Errorf("%d bytes came back: %v", n, err)
	}
	must(t, <-sent)
	client.Close()
	if s := p.WaitSession(port(client)); s.Status != 200 || s.BytesUp != 32*mib || s.BytesDown != 32*mib {
		t.Errorf("%s", s.Line)
	}
	s := mustBeReset(t, p, wrong, "")
	if s.Status != 502 || !strings.Contains(s.Line, "handshake tcp "+haproxy) || !strings.Contains(s.Line, "certificate signed by unknown authority") {
		t.Errorf("%s", s.Line)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// While sessions come all the time the client certificate is replaced, with reloads in between, and no session fails.
func TestTLSCertificateIsReplacedUnderLoad(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.issue("server", 2)
	a.issue("client", 0x10)
	nginx, addr := a.secureNginx(t, ""), gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(addr, gate.Forward(nginx).With("tls", a.speak())))
	p := gate.Start(t, config)
	var seen [2]atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				client := dial(t, addr)
				line, err := io.ReadAll(client)
				client.Close()
				switch got := string(line); {
				case err == nil && got == "localhost gate 10 \n":
					seen[0].Add(1)
				case err == nil && got == "localhost gate 11 \n":
					seen[1].Add(1)
				default:
					t.Errorf("got %q, %v", got, err)
					return
				}
			}
		})
	}
	waitFor := func(which int) {
		before := seen[which].Load()
		gate.Eventually(t, peerTimeout, func() error {
			if seen[which].Load() < before+20 {
				return fmt.Errorf("sessions with the certificate %d are missing", which)
			}
			return nil
		})
	}
	waitFor(0)
	a.issue("client", 0x11)
	waitFor(1)
	for range 100 {
		p.Load(config)
	}
	waitFor(1)
	a.write("client.pem", "CERTIFICATE", []byte("damaged"))
	gate.Eventually(t, peerTimeout, func() error {
		if p.Metrics().Sum("caddy_portgate_degraded", "what", "upstream_tls") != 1 {
			return errors.New("it is not said that the file is damaged")
		}
		return nil
	})
	waitFor(1)
	a.issue("client", 0x10)
	waitFor(0)
	close(stop)
	load.Wait()
}

// Redis and PostgreSQL are used through connections that were there before, and a server that was restarted costs no session.
func TestPreconnectToRedisAndPostgres(t *testing.T) {
	redisAddr, through, sqlThrough := gate.ReserveAddr(t), gate.ReserveAddr(t), gate.ReserveAddr(t)
	_, redisPort, _ := strings.Cut(redisAddr, ":")
	startRedis := func() *exec.Cmd {
		redis := exec.Command(program(t, "redis-server"), "--bind", "127.0.0.1", "--port", redisPort, "--save", "", "--appendonly", "no")
		redis.Dir = t.TempDir()
		server(t, redisAddr, redis)
		return redis
	}
	redis, postgres := startRedis(), startPostgres(t)
	keep := gate.JSON{"count": 2}
	p := gate.Start(t, gate.Layer4(
		gate.Listen(through, gate.Forward(redisAddr).With("preconnect", keep)),
		gate.Listen(sqlThrough, gate.Forward(postgres).With("preconnect", keep)),
	))
	kept := func(upstream, result string) float64 {
		return p.Metrics().Sum("caddy_portgate_upstream_kept_total", "upstream", upstream, "result", result)
	}
	ready := func(upstream string) {
		t.Helper()
		gate.Eventually(t, peerTimeout, func() error {
			if n := p.Metrics().Sum("caddy_portgate_upstream_connections_kept", "upstream", upstream); n != 2 {
				return fmt.Errorf("%v connections to %s are ready", n, upstream)
			}
			return nil
		})
	}
	_, throughPort, _ := strings.Cut(through, ":")
	ping := func() {
		t.Helper()
		if got := output(t, exec.Command(program(t, "redis-cli"), "-h", "127.0.0.1", "-p", throughPort, "ping")); strings.TrimSpace(got) != "PONG" {
			t.Errorf("redis-cli: %q", got)
		}
	}
	ready(redisAddr)
	for range 10 {
		ping()
	}
	if kept(redisAddr, "used") == 0 {
		t.Error("no session has used a connection that was kept")
	}
	ready(redisAddr)
	must(t, redis.Process.Kill())
	gate.Eventually(t, peerTimeout, func() error {
		if kept(redisAddr, "closed") < 2 {
			return errors.New("it is not noticed that the server has gone")
		}
		return nil
	})
	startRedis()
	for range 10 {
		ping()
	}
	_, sqlPort, _ := strings.Cut(sqlThrough, ":")
	gate.Eventually(t, peerTimeout, func() error {
		return exec.Command(program(t, "psql"), "-h", "127.0.0.1", "-p", sqlPort, "-U", "gate", "-d", "postgres", "-X", "-c", "select 1").Run()
	})
	ready(postgres)
	report := output(t, exec.Command(program(t, "pgbench"), "-h", "127.0.0.1", "-p", sqlPort, "-U", "gate", "-i", "-q", "postgres"))
	report += output(t, exec.Command(program(t, "pgbench"), "-h", "127.0.0.1", "-p", sqlPort, "-U", "gate", "-n", "-C", "-c", "2", "-t", "50", "postgres"))
	if !strings.Contains(report, "number of failed transactions: 0 ") || kept(postgres, "used") < 2 {
		t.Errorf("%v were used, %s", kept(postgres, "used"), report)
	}
}

// A session that finds a connection with the handshake done is connected in a fraction of the time.
func TestPreconnectIsFaster(t *testing.T) {
	a := newAuthority(t)
	a.issue("server", 2)
	a.issue("client", 3)
	haproxy, keeping, dialing := a.secureHAProxy(t, serve(t, echo)), gate.ReserveAddr(t), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(
		gate.Listen(keeping, gate.Forward(haproxy).With("tls", a.speak()).With("preconnect", gate.JSON{"count": 1})),
		gate.Listen(dialing, gate.Forward(haproxy).With("tls", a.speak())),
	), gate.WithoutRace())
	var took [2][]time.Duration
	for range 30 {
		for which, addr := range []string{keeping, dialing} {
			if which == 0 {
				gate.Eventually(t, peerTimeout, func() error {
					if p.Metrics().Sum("caddy_portgate_upstream_connections_kept") != 1 {
						return errors.New("no connection is ready")
					}
					return nil
				})
			}
			client := dial(t, addr)
			mustExchange(t, client)
			client.Close()
			s := p.WaitSession(port(client))
			took[which] = append(took[which], time.Duration(s.ConnectDuration*float64(time.Second)))
		}
	}
	for which := range took {
		slices.Sort(took[which])
	}
	kept, dialed := median(took[0]), median(took[1])
	t.Logf("connected in %s with a connection that was kept, in %s without: a ratio of %.2f", kept, dialed, float64(kept)/float64(dialed))
	if kept*2 > dialed {
		t.Errorf("%s is not much shorter than %s", kept, dialed)
	}
}
