package forward

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// authority issues certificates for a test.
type authority struct {
	testing.TB
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	file        string // of the certificate
	dir         string
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{TB: t, dir: t.TempDir()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.certificate, _ = x509.ParseCertificate(der)
	a.file = filepath.Join(a.dir, "ca.pem")
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

// issue replaces the files of a certificate for names and addresses.
func (a *authority) issue(serial int64, hosts ...string) CertificateFiles {
	a.Helper()
	certificate := a.sign(serial, hosts...)
	encoded, _ := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	files := CertificateFiles{filepath.Join(a.dir, "cert.pem"), filepath.Join(a.dir, "key.pem")}
	writePEM(a, files.Certificate, "CERTIFICATE", certificate.Certificate[0])
	writePEM(a, files.Key, "PRIVATE KEY", encoded)
	return files
}

func (a *authority) sign(serial int64, hosts ...string) tls.Certificate {
	a.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		a.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	write(t, path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// write replaces a file, as renewers of certificates do.
func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

// secure is an upstream that speaks TLS: it says with what, and then sends everything back. What comes before the handshake, up to the
// end of a line, it says as well.
func (a *authority) secure(cfg *tls.Config, hosts ...string) (addr string) {
	a.Helper()
	cfg.Certificates = []tls.Certificate{a.sign(2, hosts...)}
	return serve(a, "tcp", "127.0.0.1:0", func(conn net.Conn) { speakTLS(conn, cfg) })
}

// readBefore is a connection of which something was read already.
type readBefore struct {
	net.Conn
	in *bufio.Reader
}

func (r readBefore) Read(b []byte) (int, error) { return r.in.Read(b) }

func speakTLS(conn net.Conn, cfg *tls.Config) {
	in, inClear := bufio.NewReader(conn), ""
	if first, err := in.Peek(1); err == nil && first[0] == 'P' {
		inClear, _ = in.ReadString('\n')
	}
	server := tls.Server(readBefore{conn, in}, cfg)
	if server.Handshake() != nil {
		return
	}
	state, client := server.ConnectionState(), ""
	if len(state.PeerCertificates) > 0 {
		client = state.PeerCertificates[0].SerialNumber.String()
	}
	inClear, _, _ = strings.Cut(inClear, " 127.")
	_, _ = fmt.Fprintf(server, "%s|%s|%s|%s\n", strings.TrimSpace(inClear), state.ServerName, state.NegotiatedProtocol, client)
	_, _ = io.Copy(server, server)
	_ = server.CloseWrite()
	_, _ = io.Copy(io.Discard, conn)
}

// port returns the port of an address.
func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

func TestTLSToUpstreams(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	own := a.issue(7)
	byIP, byName := a.secure(&tls.Config{}, "127.0.0.1"), a.secure(&tls.Config{NextProtos: []string{"b", "h2"}}, "localhost")
	asking := a.secure(&tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool()}, "127.0.0.1")
	plain := named(t, "127.0.0.1:0", "plain\n")
	ca := object{"ca": []string{a.file}}
	with := func(options object, name string, value any) object {
		more := object{name: value}
		for n, v := range options {
			more[n] = v
		}
		return more
	}
	for name, c := range map[string]struct {
		config  object
		want    string // what the server says, or nothing where the session fails
		refused string // what is in the error then
	}{
		"by its address":       {object{"to": []string{byIP}, "tls": ca}, "|||", ""},
		"by its name":          {object{"to": []string{"localhost:" + portOf(byName)}, "tls": ca}, "|localhost||", ""},
		"this machine":         {object{"to": []string{":" + portOf(byName)}, "tls": ca}, "|localhost||", ""},
		"by another name":      {object{"to": []string{byName}, "tls": with(ca, "server_name", "localhost")}, "|localhost||", ""},
		"with a wrong name":    {object{"to": []string{byIP}, "tls": with(ca, "server_name", "localhost")}, "", "x509: certificate is not valid for any names"},
		"not by its address":   {object{"to": []string{byName}, "tls": ca}, "", "x509: cannot validate certificate for 127.0.0.1"},
		"of another authority": {object{"to": []string{byIP}, "tls": object{"ca": []string{other.file}}}, "", "x509: certificate signed by unknown authority"},
		"of one of two":        {object{"to": []string{byIP}, "tls": object{"ca": []string{other.file, a.file}}}, "|||", ""},
		"of the system's":      {object{"to": []string{byIP}, "tls": object{}}, "", "x509: certificate signed by unknown authority"},
		"whoever it is":        {object{"to": []string{byName}, "tls": object{"insecure_skip_verify": true}}, "|||", ""},
		"a protocol":           {object{"to": []string{byName}, "tls": with(with(ca, "server_name", "localhost"), "alpn", []string{"x", "h2"})}, "|localhost|h2|", ""},
		"no such protocol":     {object{"to": []string{byName}, "tls": with(with(ca, "server_name", "localhost"), "alpn", []string{"x"})}, "", "no application protocol"},
		"a client certificate": {object{"to": []string{asking}, "tls": with(ca, "client_certificate", own)}, "|||7", ""},
		"no TLS there":         {object{"to": []string{plain}, "tls": ca}, "", "first record does not look like a TLS handshake"},
		"only one of them":     {object{"to": []string{}, "upstreams": []object{{"address": byIP, "tls": ca}}}, "|||", ""},
		"not that one":         {object{"tls": ca, "upstreams": []object{{"address": plain, "tls": object{"off": true}}}}, "plain", ""},
		"overridden": {object{"tls": with(ca, "server_name", "wrong"), "upstreams": []object{
			{"address": byName, "tls": object{"server_name": "localhost", "alpn": []string{"b"}}},
		}}, "|localhost|b|", ""},
		"after others":  {object{"to": []string{plain, byName, byIP}, "lb_policy": "first", "tls": ca}, "|||", ""},
		"v1":            {object{"to": []string{byIP}, "tls": ca, "proxy_protocol": "v1"}, "PROXY TCP4|||", ""},
		"v1 of its own": {object{"tls": ca, "upstreams": []object{{"address": byIP, "proxy_protocol": "v1"}}}, "PROXY TCP4|||", ""},
		"no header":     {object{"tls": ca, "proxy_protocol": "v1", "upstreams": []object{{"address": byIP, "proxy_protocol": "off"}}}, "|||", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config, _ := json.Marshal(c.config)
			overKinds(t, func(t *testing.T, k kind) {
				h, _, _ := provision(t, string(config))
				client := k.client(t, h)
				if c.want == "" {
					if rest, err := io.ReadAll(client); err == nil || len(rest) > 0 {
						t.Errorf("got %q, %v, want a reset", rest, err)
					}
					return
				}
				read(t, client, c.want+"\n")
				exchange(t, client, "ping")
				if got := finish(t, client); got.Status != 200 || got.Reason != "client_fin" || got.BytesUp != 4 || got.BytesDown != int64(len(c.want)+5) {
					t.Errorf("%+v", got)
				}
			})
			if c.refused == "" {
				return
			}
			h, _, _ := provision(t, string(config))
			m := &h.rosters.now.Load().means[0]
			conn, err := net.Dial("tcp", "127.0.0.1:"+portOf(c.config["to"].([]string)[0]))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := m.tls.wrap(t.Context(), conn); err == nil || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("got %v, want %q", err, c.refused)
			}
		})
	}
}

// Where nothing is special about the upstreams, a session asks for nothing.
func TestPlainUpstreamsCostNothing(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]bool{
		`{"to": ["127.0.0.1:9"]}`:                                                                             false,
		`{"to": ["127.0.0.1:9"], "proxy_protocol": "v1"}`:                                                     false,
		`{"upstreams": [{"address": "127.0.0.1:9", "weight": 2}]}`:                                            false,
		`{"upstreams": [{"address": "127.0.0.1:9", "tls": {"off": true}, "proxy_protocol": "off"}]}`:          false,
		`{"upstreams": [{"address": "127.0.0.1:9", "proxy_protocol": "v1"}], "proxy_protocol": "v1"}`:         false,
		`{"upstreams": [{"address": "127.0.0.1:9", "proxy_protocol": "v1"}], "to": ["127.0.0.1:8"]}`:          true,
		`{"to": ["127.0.0.1:9"], "tls": {}}`:                                                                  true,
		`{"upstreams": [{"address": "127.0.0.1:9", "tls": {}}], "to": ["127.0.0.1:8"]}`:                       true,
		`{"upstreams": [{"address": "127.0.0.1:9", "tls": {"off": true}}], "to": ["127.0.0.1:8"], "tls": {}}`: true,
	} {
		h, _, _ := provision(t, config)
		if got := h.rosters.now.Load().means != nil; got != want {
			t.Errorf("%s: %v, want %v", config, got, want)
		}
	}
}

func TestServerNameOfAnUpstream(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		options  TLS
		upstream string
		want     string
		err      string
	}{
		{TLS{}, "db.example:1", "db.example", ""},
		{TLS{}, "tcp4/192.0.2.1:1", "192.0.2.1", ""},
		{TLS{}, "[2001:db8::1]:1", "2001:db8::1", ""},
		{TLS{}, "[fe80::1%eth0]:1", "fe80::1", ""},
		{TLS{}, ":1", "localhost", ""},
		{TLS{ServerName: "a.example"}, "unix//run/s", "a.example", ""},
		{TLS{ServerName: "{env.PORTGATE_TEST_HOST}"}, "a:1", "127.0.0.1", ""},
		{TLS{InsecureSkipVerify: true}, "unix//run/s", "", ""},
		{TLS{InsecureSkipVerify: true}, "{l4.tls.server_name}:1", "", ""},
		{TLS{}, "unix//run/s", "", `expected a server_name, because "unix//run/s" is a unix socket`},
		{TLS{}, "{l4.tls.server_name}:1", "", `expected a server_name, because the address "{l4.tls.server_name}:1" has a placeholder`},
		{TLS{ServerName: "{l4.tls.server_name}"}, "a:1", "", `server_name: "{l4.tls.server_name}", which is "{l4.tls.server_name}": expected a name or an IP address`},
		{TLS{ServerName: "{env.PORTGATE_TEST_NONE}"}, "a:1", "", `server_name: "{env.PORTGATE_TEST_NONE}", which is "": expected a name or an IP address`},
	} {
		var u upstream.Upstream
		if err := parseUpstream(caddy.NewReplacer(), c.upstream, &u); err != nil {
			t.Fatal(err)
		}
		got, err := c.options.serverName(&u)
		if text := ""; got != c.want || err != nil && err.Error() != c.err || err == nil && text != c.err {
			t.Errorf("%s: %q, %v, want %q, %s", c.upstream, got, err, c.want, c.err)
		}
	}
}

// Files are read when the config is loaded, and it is refused where they are no good: also if another handler has read them before.
func TestFilesOfTLSThatAreNoGood(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	own := a.issue(7)
	foreign := other.issue(8)
	empty, damaged, folder := filepath.Join(a.dir, "empty"), filepath.Join(a.dir, "damaged"), t.TempDir()
	write(t, empty, nil)
	good, _ := os.ReadFile(a.file)
	write(t, damaged, append(good, strings.Replace(string(good), "MII", "M?I", 1)...))
	for want, options := range map[string]TLS{
		`tls: ca: "/nowhere/ca.pem": no such file or directory`:                        {CA: []string{"/nowhere/ca.pem"}},
		`tls: ca: "` + folder + `": expected a regular file`:                           {CA: []string{a.file, folder}},
		`tls: ca: "` + empty + `": expected certificates in PEM form`:                  {CA: []string{empty}},
		`tls: ca: "` + damaged + `": 1 of 2 certificates are damaged`:                  {CA: []string{damaged}},
		`tls: ca: "` + own.Key + `": "PRIVATE KEY": expected nothing but certificates`: {CA: []string{own.Key}},
		`tls: client_certificate: "/nowhere/c": no such file or directory`:             {ClientCertificate: &CertificateFiles{"/nowhere/c", own.Key}},
		`tls: client_certificate: "/nowhere/k": no such file or directory`:             {ClientCertificate: &CertificateFiles{own.Certificate, "/nowhere/k"}},
		`tls: client_certificate: "` + own.Certificate + `": expected a certificate and its key "` + foreign.Key + `": tls: private key does not match public key`: {
			ClientCertificate: &CertificateFiles{own.Certificate, foreign.Key},
		},
	} {
		config, _ := json.Marshal(Handler{To: []string{"127.0.0.1:9"}, TLS: &options})
		if _, _, _, err := tryProvision(t, string(config)); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
	config, _ := json.Marshal(Handler{To: []string{"127.0.0.1:9"}, TLS: &TLS{CA: []string{a.file}}})
	_, _, unload := provision(t, string(config))
	write(t, a.file, nil)
	if _, _, _, err := tryProvision(t, string(config)); err == nil || !strings.Contains(err.Error(), "expected certificates in PEM form") {
		t.Errorf("a file that another handler has read before: %v", err)
	}
	unload()
	identities.Each(func(files identityFiles, _ *identity) bool {
		if strings.HasPrefix(files.ca, a.dir) {
			t.Errorf("%v is still held", files)
		}
		return true
	})
}

// Files that have changed are read for the next handshake. As long as they are no good, what they had before is used, and it is said.
func TestFilesOfTLSThatChange(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	server := a.secure(&tls.Config{ClientAuth: tls.RequireAnyClientCert}, "127.0.0.1")
	own := a.issue(7)
	config, _ := json.Marshal(Handler{To: []string{server}, TLS: &TLS{CA: []string{a.file}, ClientCertificate: &own}})
	h, _, unload := provision(t, string(config))
	id := h.rosters.now.Load().means[0].tls.files
	session := func(want string) {
		t.Helper()
		client, accepted := connect(t)
		handle(t, h, accepted)
		read(t, client, "|||"+want+"\n")
		finish(t, client)
	}
	look := func() { id.lookAt.Store(0) }
	session("7")
	a.issue(8)
	if now := time.Since(identityEpoch); int64(now) < id.lookAt.Load() {
		t.Log("looked at less than a second ago")
	}
	look()
	session("8")
	mustBeDegraded := func(want bool) {
		t.Helper()
		if id.unusable.Is() != want {
			t.Errorf("degraded: %v, want %v", !want, want)
		}
	}
	write(t, own.Key, []byte("half a key"))
	look()
	session("8")
	mustBeDegraded(false) // the other file may be on its way
	look()
	session("8")
	mustBeDegraded(true)
	if err := os.Remove(own.Certificate); err != nil {
		t.Fatal(err)
	}
	look()
	session("8")
	look()
	session("8")
	mustBeDegraded(true)
	a.issue(9)
	look()
	session("9")
	mustBeDegraded(false)

	stranger := newAuthority(t) // the upstream's authority is replaced by one that it is not of
	good, _ := os.ReadFile(a.file)
	bad, _ := os.ReadFile(stranger.file)
	write(t, a.file, bad)
	look()
	client, accepted := connect(t)
	handle(t, h, accepted)
	if _, err := io.ReadAll(client); err == nil {
		t.Error("an upstream of an authority that was removed is trusted")
	}
	write(t, a.file, good)
	look()
	session("9")

	write(t, own.Key, nil)
	look()
	id.latest()
	look()
	id.latest()
	mustBeDegraded(true)
	unload()
	if id.unusable.Is() {
		t.Error("it is said although no config has the files")
	}
}

// A handshake looks at files once a second at most.
func TestFilesOfTLSAreSeldomLookedAt(t *testing.T) {
	a := newAuthority(t)
	ref, err := holdIdentity(identityFiles{ca: a.file})
	if err != nil {
		t.Fatal(err)
	}
	defer ref.Release()
	id := ref.Value()
	id.lookAt.Store(1 << 62)
	before := id.latest()
	write(t, a.file, nil)
	if allocs := testing.AllocsPerRun(100, func() { id.latest() }); allocs > 0 || id.failed {
		t.Errorf("%v allocations, looked: %v", allocs, id.failed)
	}
	e := newEncryption(&TLS{}, "a", id)
	if first := e.config(); first != e.config() || first.RootCAs != before.authorities {
		t.Error("another config for the same files")
	}
}

// While one looks at the files, which may be on a file system that hangs, others go on with what was read before.
func TestFilesOfTLSThatHang(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	ref, err := holdIdentity(identityFiles{ca: a.file})
	if err != nil {
		t.Fatal(err)
	}
	defer ref.Release()
	id := ref.Value()
	before := id.now.Load()
	id.mu.Lock() // somebody looks
	defer id.mu.Unlock()
	id.lookAt.Store(0)
	if id.latest() != before {
		t.Error("other certificates than those that were read")
	}
}

// Whoever is told nothing, or something else than others, of each session.
func TestHeaderOfEachUpstream(t *testing.T) {
	t.Parallel()
	says := func(conn net.Conn) {
		head := make([]byte, 16)
		n, _ := io.ReadFull(conn, head[:4])
		_, _ = fmt.Fprintf(conn, "%q\n", head[:n])
		_, _ = io.Copy(io.Discard, conn) // with something unread, close would be a reset
	}
	first, second, third := serve(t, "tcp", "127.0.0.1:0", says), serve(t, "tcp", "127.0.0.1:0", says), serve(t, "tcp", "127.0.0.1:0", says)
	config, _ := json.Marshal(Handler{
		ProxyProtocol: "v2", To: []string{third},
		Upstreams: []Target{{Address: first, ProxyProtocol: "v1"}, {Address: second, ProxyProtocol: "off"}, {Address: refuses(), ProxyProtocol: "off"}},
	})
	overKinds(t, func(t *testing.T, k kind) {
		h, _, _ := provision(t, string(config))
		for _, want := range []string{`"\r\n\r\n"`, `"PROX"`, `"ping"`, `"\r\n\r\n"`} {
			client := k.client(t, h)
			if _, err := io.WriteString(client, "ping"); err != nil {
				t.Fatal(err)
			}
			read(t, client, want)
			client.Close()
			logged(t, client)
		}
	})
}

// A handshake that fails because of what one handler expects of the certificate says nothing to a handler that expects something else.
func TestHandshakesThatFailAreOfOneHandler(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	cfg := &tls.Config{Certificates: []tls.Certificate{a.sign(2, "db.test")}, MinVersion: tls.VersionTLS12}
	addr := serve(t, "tcp", newHost()+":0", func(conn net.Conn) {
		secure := tls.Server(conn, cfg)
		_, _ = io.Copy(secure, secure)
	})
	const config = `{"to": [%q], "max_fails": 1, "max_ejected": "100%%", "breaker": {"when": "failures 0", "min_sessions": 1}, "tls": {%s}}`
	wrong, _, _ := provision(t, fmt.Sprintf(config, addr, `"server_name": "other.test"`))
	right, _, _ := provision(t, fmt.Sprintf(config, addr, fmt.Sprintf(`"server_name": "db.test", "ca": [%q]`, a.file)))
	client, accepted := connect(t)
	handle(t, wrong, accepted)
	if e := logged(t, client); e.Status != 502 {
		t.Fatalf("%+v", e)
	}
	client, accepted = connect(t)
	handle(t, right, accepted)
	exchange(t, client, "ping")
	if e := finish(t, client); e.Status != 200 {
		t.Errorf("%+v", e)
	}
	if wrong.watch.failures() == right.watch.failures() || wrong.guard.watched() == right.guard.watched() {
		t.Error("they share what they know")
	}
}
