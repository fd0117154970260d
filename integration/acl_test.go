package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// acl is an acl handler with these rules; each begins with deny or allow, and its values follow as in a Caddyfile.
func acl(rules ...string) gate.JSON {
	parsed := make([]gate.JSON, len(rules))
	for i, rule := range rules {
		values := strings.Fields(rule)
		parsed[i] = gate.JSON{values[0]: values[1:]}
	}
	return gate.JSON{"handler": "acl", "rules": parsed}
}

// servePage is an HTTP server of one text.
func servePage(t testing.TB, text string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }))
	t.Cleanup(server.Close)
	return server.URL
}

// networksDatabase is a database in MaxMind's format: 127.0.0.2, 127.0.0.3 and 2001:db8::/32 are in CN and AS 64496,
// 127.0.0.4 is in DE and AS 64497.
func networksDatabase(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs("testdata/networks.mmdb")
	must(t, err)
	return path
}

// dialFrom connects from an address of this machine.
func dialFrom(from, addr string) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: peerTimeout, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(peerTimeout))
	return conn.(*net.TCPConn), nil
}

// letIn tells whether a client with this address is let in by a gate in front of an echo.
func letIn(from, addr string) (bool, error) {
	conn, err := dialFrom(from, addr)
	if errors.Is(err, syscall.ECONNRESET) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer conn.Close()
	err = exchange(conn)
	if err == nil {
		return true, nil
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return false, nil
	}
	return false, err
}

func mustLetIn(t testing.TB, addr string, want bool, clients ...string) {
	t.Helper()
	for _, client := range clients {
		if got, err := letIn(client, addr); err != nil || got != want {
			t.Errorf("%s is let in: %t (%v), want %t", client, got, err, want)
		}
	}
}

// startACL starts a gate in front of an echo.
func startACL(t testing.TB, handler gate.JSON, opts ...gate.Option) (p *gate.Process, addr string) {
	t.Helper()
	addr = gate.ReserveAddr(t)
	return gate.Start(t, gate.Layer4(gate.Listen(addr, handler, gate.Forward(serve(t, echo)))), opts...), addr
}

// ban puts an address into a list, through the API.
func ban(t testing.TB, p *gate.Process, list, prefix, body string) {
	t.Helper()
	status, answer, err := p.Do(http.MethodPut, "/portgate/lists/"+list+"/entries/"+prefix, body)
	if err != nil || status != http.StatusOK {
		t.Fatalf("%d %s (%v)", status, answer, err)
	}
}

// Each source of addresses denies those that it has, and nobody else.
func TestACLSources(t *testing.T) {
	t.Parallel()
	list := writeFile(t, "list", "\xef\xbb\xbf# bad\r\n127.0.0.2 ; one\r\n\r\n127.0.0.3-127.0.0.3\r\n")
	for name, handler := range map[string]gate.JSON{
		"prefix":  acl("deny 127.0.0.2/31"),
		"mapped":  acl("deny ::ffff:127.0.0.2/127"),
		"file":    acl("deny file " + list),
		"url":     acl("deny url " + servePage(t, "127.0.0.2\n127.0.0.3\n")),
		"list":    acl("deny list bad"),
		"country": acl("deny country CN FR").With("country_database", networksDatabase(t)),
		"asn":     acl("deny asn 64496").With("asn_database", networksDatabase(t)),
	} {
		for _, network := range []string{"gate+tcp", "tcp"} {
			t.Run(name+" "+network, func(t *testing.T) {
				t.Parallel()
				addr := gate.ReserveAddr(t)
				p := gate.Start(t, gate.Layer4(gate.Listen(network+"/"+addr, handler, gate.Forward(serve(t, echo)))))
				if name == "list" {
					ban(t, p, "bad", "127.0.0.2", "")
					ban(t, p, "bad", "127.0.0.3/32", "")
				}
				mustLetIn(t, addr, false, "127.0.0.2", "127.0.0.3")
				mustLetIn(t, addr, true, "127.0.0.1", "127.0.0.4")
				denied := p.WaitSessions(2, func(s gate.Session) bool { return s.Status == 403 })
				for _, s := range denied {
					if s.Reason != "denied" || !strings.HasPrefix(s.Rule, "deny "+strings.Fields(name)[0]) && name != "prefix" && name != "mapped" || s.ClientIP != "127.0.0.2" && s.ClientIP != "127.0.0.3" {
						t.Errorf("access log: %s", s.Line)
					}
				}
				m := p.Metrics()
				must(t, errors.Join(
					equal(m, "caddy_portgate_acl_decisions_total", 2, label("action", "deny"), label("rule", denied[0].Rule)),
					equal(m, "caddy_portgate_acl_decisions_total", 2, label("action", "allow"), label("rule", "default allow")),
				))
			})
		}
	}
}

// FINDINGS F10: the verdict does not depend on the form in which a client's address comes: IPv4, IPv6, link-local with
// a zone, and each of them as a PROXY header says it.
func TestACLForms(t *testing.T) {
	t.Parallel()
	list := writeFile(t, "list", "127.0.0.2\n::1\nfe80::/10\n192.0.2.0/24\n2001:db8::/32\n")
	proxied := gate.JSON{"handler": "proxy_protocol"}
	rules := map[string]gate.JSON{
		"inline": acl("deny 127.0.0.2 ::1 fe80::/10 192.0.2.0/24 2001:db8::/32"),
		"mapped": acl("deny ::ffff:127.0.0.2 ::1 fe80::/10 ::ffff:192.0.2.0/120 2001:db8::/32"),
		"file":   acl("deny file " + list),
		"url":    acl("deny url " + servePage(t, "127.0.0.2\n::1\nfe80::/10\n192.0.2.0/24\n2001:db8::/32\n")),
		"list":   acl("deny list bad"),
	}
	namespace, near := linkLocal(t)
	listen := gate.ReservePort(t) // one that lets them in, so that what is seen below is the rules' doing
	gate.Start(t, gate.Layer4(gate.Listen(fmt.Sprintf(":%d", listen), acl("allow fe80::/10"), gate.Forward(serve(t, greet("in"))))))
	if got := greetedFrom(t, namespace, near, listen); got != "in\n" {
		t.Errorf("link-local: %q", got)
	}
	for name, handler := range rules {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			upstream := serve(t, greet("in"))
			plain, behind := gate.ReservePort(t), gate.ReserveAddr(t)
			p := gate.Start(t, gate.Layer4(
				gate.Listen(fmt.Sprintf(":%d", plain), handler, gate.Forward(upstream)),
				gate.Listen(behind, proxied, handler, gate.Forward(upstream)),
			))
			if name == "list" {
				for _, prefix := range []string{"127.0.0.2", "::1", "fe80::/10", "192.0.2.0/24", "2001:db8::/32"} {
					ban(t, p, "bad", prefix, "")
				}
			}
			mustLetIn(t, gate.Loopback(plain), false, "127.0.0.2")
			mustLetIn(t, fmt.Sprintf("[::ffff:127.0.0.1]:%d", plain), false, "127.0.0.2")
			mustLetIn(t, fmt.Sprintf("[::1]:%d", plain), false, "::1")
			if got := greetedFrom(t, namespace, near, plain); got != "" {
				t.Errorf("link-local: %q", got)
			}
			for header, want := range map[string]string{
				"TCP4 192.0.2.7 127.0.0.1": "", "TCP6 ::ffff:192.0.2.7 ::1": "", "TCP6 2001:db8::7 ::1": "", "TCP6 fe80::7 ::1": "",
				"TCP4 198.51.100.7 127.0.0.1": "in\n", "TCP6 ::ffff:198.51.100.7 ::1": "in\n", "TCP6 2001:db9::7 ::1": "in\n",
			} {
				conn := dial(t, behind)
				mustWrite(t, conn, "PROXY "+header+" 1234 80\r\n")
				conn.CloseWrite()
				if got, _ := io.ReadAll(conn); string(got) != want {
					t.Errorf("%s: %q, want %q", header, got, want)
				}
			}
		})
	}
}

// linkLocal makes a network namespace, and returns its name and the link-local address with zone by which one gets from
// there to this machine.
func linkLocal(t testing.TB) (namespace, near string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a network namespace: run it as root")
	}
	ip := program(t, "ip")
	namespace = fmt.Sprintf("gacl%d", os.Getpid()%100000)
	here, there := namespace+"a", namespace+"b"
	run(t, ip, "netns", "add", namespace)
	t.Cleanup(func() { run(t, ip, "netns", "delete", namespace) })
	run(t, ip, "link", "add", here, "type", "veth", "peer", "name", there, "netns", namespace)
	t.Cleanup(func() { run(t, ip, "link", "delete", here) })
	run(t, ip, "address", "add", "fe80::4761:1/64", "dev", here, "nodad")
	run(t, ip, "link", "set", here, "up")
	run(t, ip, "-n", namespace, "address", "add", "fe80::4761:2/64", "dev", there, "nodad")
	run(t, ip, "-n", namespace, "link", "set", there, "up")
	return namespace, "fe80::4761:1%" + there
}

// greetedFrom connects from the namespace, and returns what it is told.
func greetedFrom(t testing.TB, namespace, addr string, port int) string {
	t.Helper()
	cmd := exec.Command(program(t, "ip"), "netns", "exec", namespace, program(t, "nc"), "-6", "-N", "-w", "20", addr, fmt.Sprint(port))
	out, _ := cmd.Output() // it fails where the gate closes
	return string(out)
}

// What can't be a list is refused when the config is loaded, in little time; what can is taken.
func TestACLFilesAtFirstLoad(t *testing.T) {
	t.Parallel()
	p, addr := startACL(t, acl("deny 127.0.0.9"))
	bad := map[string]string{
		"binary":         strings.Repeat("\x00\x01\xff\n", 10000),
		"100 MB":         strings.Repeat("192.0.2.1                      \n", 100<<20/32),
		"line of 1 MB":   strings.Repeat("1", 1<<20) + "\n",
		"only /33":       "10.0.0.0/33\n",
		"mostly nothing": "<html>\n<body>\n127.0.0.2\n",
	}
	for name, content := range bad {
		path := writeFile(t, "list", content)
		start := time.Now()
		err := p.TryLoad(gate.Layer4(gate.Listen(addr, acl("deny file "+path), gate.Forward(serve(t, echo)))))
		if err == nil || !strings.Contains(err.Error(), "deny file "+path) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
	mustLetIn(t, addr, true, "127.0.0.2") // the config before is still in force
	for name, content := range map[string]string{
		"CRLF":             "127.0.0.2\r\n127.0.0.3\r\n",
		"byte order mark":  "\xef\xbb\xbf127.0.0.2",
		"a bad line":       "127.0.0.2\n10.0.0.0/33\n127.0.0.3\n",
		"a line of 1 MB":   "127.0.0.2\n127.0.0.3\n#" + strings.Repeat("x", 1<<20),
		"a million others": "127.0.0.2\n" + strings.Repeat("192.0.2.1\n", 1e6),
	} {
		path := writeFile(t, "list", content)
		p.Load(gate.Layer4(gate.Listen(addr, acl("deny file "+path), gate.Forward(serve(t, echo)))))
		if got, err := letIn("127.0.0.2", addr); got || err != nil {
			t.Errorf("%s: let in: %t (%v)", name, got, err)
		}
		mustLetIn(t, addr, true, "127.0.0.4")
	}
	empty := writeFile(t, "list", "")
	p.Load(gate.Layer4(gate.Listen(addr, acl("deny file "+empty), gate.Forward(serve(t, echo)))))
	mustLetIn(t, addr, true, "127.0.0.2")
}

// A thousand versions of a list while clients come: nobody is let in who is in all of them, nobody refused who is in none.
func TestACLFileRewrittenUnderLoad(t *testing.T) {
	const rewrites = 1000
	path := writeFile(t, "list", "127.0.0.2\n")
	_, addr := startACL(t, acl("deny file "+path), gate.WithoutRace())
	var stop atomic.Bool
	var load sync.WaitGroup
	var tried [2]atomic.Int64
	for client, want := range []bool{false, true} {
		load.Go(func() {
			from := fmt.Sprintf("127.0.0.%d", client+2)
			for !stop.Load() {
				got, err := letIn(from, addr)
				if err != nil || got != want {
					t.Errorf("%s is let in: %t (%v), want %t", from, got, err, want)
					return
				}
				tried[client].Add(1)
			}
		})
	}
	for n := range rewrites {
		own := fmt.Sprintf("127.0.%d.%d", 1+n/250, 1+n%250)
		must(t, rewrite(path, strings.Repeat("198.51.100.7\n", n%97)+own+"\n127.0.0.2\n", n))
		if n%20 > 0 && n < rewrites-1 {
			continue // most of them follow each other faster than they can be loaded
		}
		gate.Eventually(t, peerTimeout, func() error {
			if got, err := letIn(own, addr); got || err != nil {
				return fmt.Errorf("version %d is not in force (%v)", n, err)
			}
			return nil
		})
	}
	stop.Store(true)
	load.Wait()
	t.Logf("%d denied and %d allowed connections during %d rewrites", tried[0].Load(), tried[1].Load(), rewrites)
}

// rewrite gives a file a new content, in another way each time.
func rewrite(path, content string, n int) error {
	switch n % 3 {
	case 0: // as a shell's > does
		return os.WriteFile(path, []byte(content), 0o644)
	case 1: // in two steps, with a part of a line at the end of the first
		file, err := os.Create(path)
		if err != nil {
			return err
		}
		half := len(content) / 2
		_, err = io.WriteString(file, content[:half])
		_, err2 := io.WriteString(file, content[half:])
		return errors.Join(err, err2, file.Close())
	default:
		if err := os.WriteFile(path+".new", []byte(content), 0o644); err != nil {
			return err
		}
		return os.Rename(path+".new", path)
	}
}

// FINDINGS F6: reloads of configs with lists are quick and leave nothing behind, while clients come and lists change.
func TestACLReloads(t *testing.T) {
	const reloads = 50
	path := writeFile(t, "list", "127.0.0.2\n")
	addr := gate.ReserveAddr(t)
	handler := acl("deny file "+path, "deny list bans", "deny url "+servePage(t, "127.0.0.3\n"), "deny country DE").
		With("country_database", networksDatabase(t))
	config := gate.Layer4(gate.Listen(addr, handler, gate.Forward(serve(t, echo))))
	p := gate.Start(t, config)
	must(t, oneRequest(addr))
	p.Load(config)
	before := p.Baseline()

	var stop atomic.Bool
	var load sync.WaitGroup
	for client, want := range map[string]bool{"127.0.0.1": true, "127.0.0.2": false, "127.0.0.3": false, "127.0.0.4": false} {
		load.Go(func() {
			for !stop.Load() {
				if got, err := letIn(client, addr); err != nil || got != want {
					t.Errorf("%s is let in: %t (%v), want %t", client, got, err, want)
					return
				}
			}
		})
	}
	for n := range reloads {
		must(t, rewrite(path, fmt.Sprintf("127.0.0.2\n10.0.0.%d\n", n), n))
		start := time.Now()
		p.Load(config)
		if took := time.Since(start); took > time.Second {
			t.Errorf("reload %d took %v, want at most 1s", n, took)
		}
	}
	stop.Store(true)
	load.Wait()
	before.MustReturn(t, 20*time.Second)
}

// A ban through the API ends what is going on within a second, and nobody else's; it is still there after a restart, and ends
// with its time.
func TestACLBan(t *testing.T) {
	iperf := program(t, "iperf3")
	storage := gate.JSON{"module": "file_system", "root": t.TempDir()}
	var gates [2]string
	var servers []gate.Server
	for i := range gates {
		upstream := gate.ReserveAddr(t)
		_, port, _ := net.SplitHostPort(upstream)
		server(t, upstream, exec.Command(iperf, "-s", "-B", "127.0.0.1", "-p", port))
		gates[i] = gate.ReserveAddr(t)
		servers = append(servers, gate.Listen(gates[i], acl("deny list bans"), gate.Forward(upstream)))
	}
	config := gate.Layer4(servers...).With("storage", storage)
	p := gate.Start(t, config, gate.WithoutRace())

	running := func(client, addr string) <-chan error {
		host, port, _ := net.SplitHostPort(addr)
		done := make(chan error, 1)
		go func() {
			out, err := exec.Command(iperf, "-c", host, "-p", port, "-B", client, "-t", "5").CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w\n%s", err, out)
			}
			done <- err
		}()
		return done
	}
	banned, other := running("127.0.0.2", gates[0]), running("127.0.0.3", gates[1])
	gate.Eventually(t, peerTimeout, func() error { // the control connection and the stream of each
		if n := p.Metrics().Sum("caddy_portgate_sessions_active"); n < 4 {
			return fmt.Errorf("%v sessions", n)
		}
		return nil
	})
	start := time.Now()
	ban(t, p, "bans", "127.0.0.2", `{"ttl":"1h","reason":"too much"}`)
	cut := p.WaitSessions(2, func(s gate.Session) bool { return s.ClientIP == "127.0.0.2" })
	if took := time.Since(start); took > time.Second {
		t.Errorf("the sessions ended %v after the ban, want at most 1s", took)
	}
	closed := 0
	for _, s := range cut {
		if s.Rule != "deny list bans" {
			t.Errorf("access log: %s", s.Line)
		}
		if s.Reason == "list_changed" { // the iperf3 server ends the other one itself when it loses the first
			closed++
		}
	}
	if closed == 0 {
		t.Errorf("access log: %s%s", cut[0].Line, cut[1].Line)
	}
	if err := within(t, peerTimeout, "the banned iperf3", banned); err == nil {
		t.Error("the banned iperf3 got to its end")
	}
	if err := within(t, peerTimeout, "the other iperf3", other); err != nil {
		t.Errorf("the other iperf3: %v", err)
	}
	ban(t, p, "bans", "127.0.0.4", `{"ttl":"2s"}`)
	p.Stop()

	p = gate.Start(t, config, gate.WithoutRace())
	if got, err := greetsIperf("127.0.0.2", gates[0]); got || err != nil {
		t.Errorf("after a restart the banned client is let in: %t (%v)", got, err)
	}
	gate.Eventually(t, 10*time.Second, func() error {
		entries := p.MustGet("/portgate/lists/bans")
		if got, err := greetsIperf("127.0.0.4", gates[0]); !got || err != nil || strings.Contains(entries, "127.0.0.4") {
			return fmt.Errorf("the ban did not end: %t (%v) %s", got, err, entries)
		}
		return nil
	})
	if entries := p.MustGet("/portgate/lists/bans"); !strings.Contains(entries, `"reason":"too much"`) {
		t.Errorf("after a restart: %s", entries)
	}
}

// greetsIperf tells whether the connection stays open: an iperf3 server waits for its client to speak.
func greetsIperf(from, addr string) (bool, error) {
	conn, err := dialFrom(from, addr)
	if errors.Is(err, syscall.ECONNRESET) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	_, err = conn.Read(make([]byte, 1))
	return isTimeout(err), nil
}

// What a new config denies ends, too, also where the sessions belong to a config before, and the acl was not there then.
func TestACLOfANewConfigConcernsOldSessions(t *testing.T) {
	t.Parallel()
	onEachNetwork(t, func(t *testing.T, network string) {
		addr, other := gate.ReserveAddr(t), gate.ReserveAddr(t)
		upstream := gate.Forward(serve(t, echo))
		config := func(handlers ...gate.JSON) gate.JSON {
			return gate.Layer4(gate.Listen(network+"/"+addr, append(handlers, upstream)...), gate.Listen(network+"/"+other, upstream))
		}
		p := gate.Start(t, config())
		open := func(from, addr string) *net.TCPConn {
			conn, err := dialFrom(from, addr)
			must(t, err)
			t.Cleanup(func() { conn.Close() })
			mustExchange(t, conn)
			return conn
		}
		denied, listed, stays, elsewhere := open("127.0.0.2", addr), open("127.0.0.3", addr), open("127.0.0.4", addr), open("127.0.0.2", other)
		p.Load(config(acl("deny 127.0.0.2", "deny list bans")))
		mustBeCut(t, p, denied, "deny 127.0.0.2")
		p.Load(config(acl("deny 127.0.0.2", "deny list bans", "deny 192.0.2.1"))) // the config is the third one by now
		ban(t, p, "bans", "127.0.0.3", "")
		mustBeCut(t, p, listed, "deny list bans")
		mustExchange(t, stays)
		mustExchange(t, elsewhere)
		// A config that is refused closes nothing.
		err := p.TryLoad(config(acl("deny 127.0.0.4"), gate.JSON{"handler": "no_such_handler"}))
		if err == nil {
			t.Error("the config was not refused")
		}
		p.Load(config(acl("deny 127.0.0.4").With("enforce", "new")))
		mustExchange(t, stays)
		mustLetIn(t, addr, false, "127.0.0.4")
		mustExchange(t, stays)
	})
}

// mustBeCut requires that a session is closed within a second or so because a list has changed.
func mustBeCut(t testing.TB, p *gate.Process, conn *net.TCPConn, rule string) {
	t.Helper()
	start := time.Now()
	mustEnd(t, conn)
	if took := time.Since(start); took > time.Second+tolerance {
		t.Errorf("cut after %v", took)
	}
	if s := p.WaitSession(port(conn)); s.Reason != "list_changed" || s.Rule != rule {
		t.Errorf("access log: %s", s.Line)
	}
}

// A client on a unix socket has no address: no rule has it, and the default decides.
func TestACLUnixSocket(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		handler gate.JSON
		want    string
	}{
		"deny everything with an address": {acl("deny 0.0.0.0/0 ::/0"), "in\n"},
		"allow everything with one":       {acl("allow 0.0.0.0/0 ::/0"), ""},
		"deny all":                        {acl().With("default", "deny"), ""},
		"allow all":                       {acl().With("default", "allow"), "in\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("", "gate-")
			must(t, err)
			t.Cleanup(func() { os.RemoveAll(dir) })
			path := filepath.Join(dir, "sock")
			gate.Start(t, gate.Layer4(gate.Listen("unix/"+path, c.handler, gate.Forward(serve(t, greet("in"))))))
			conn, err := net.Dial("unix", path)
			must(t, err)
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(peerTimeout))
			conn.(*net.UnixConn).CloseWrite()
			if got, _ := io.ReadAll(conn); string(got) != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// The cases of nginx's stream access tests.
func TestACLFamilies(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		handler    gate.JSON
		ipv4, ipv6 bool
	}{
		"allow all": {acl().With("default", "allow"), true, true},
		"deny all":  {acl().With("default", "deny"), false, false},
		"deny IPv4": {acl("deny 0.0.0.0/0"), false, true},
		"deny IPv6": {acl("deny ::/0"), true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			port := gate.ReservePort(t)
			gate.Start(t, gate.Layer4(gate.Listen(fmt.Sprintf(":%d", port), c.handler, gate.Forward(serve(t, echo)))))
			mustLetIn(t, gate.Loopback(port), c.ipv4, "127.0.0.1")
			mustLetIn(t, fmt.Sprintf("[::1]:%d", port), c.ipv6, "::1")
		})
	}
}

// The matcher sends clients different ways.
func TestACLMatcher(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	server := gate.Listen(addr, gate.Forward(serve(t, greet("friends"))))
	server.Routes[0].Match = []gate.JSON{{"acl": gate.JSON{"rules": []gate.JSON{{"allow": []string{"127.0.0.2"}}}}}}
	server.Routes = append(server.Routes, gate.Route{Handle: []gate.JSON{gate.Forward(serve(t, greet("others")))}})
	gate.Start(t, gate.Layer4(server))
	for client, want := range map[string]string{"127.0.0.2": "friends\n", "127.0.0.3": "others\n"} {
		conn, err := dialFrom(client, addr)
		must(t, err)
		mustRead(t, conn, want)
		conn.Close()
	}
}

// A flood of denied clients writes few entries into the access log, and is counted in full.
func TestACLFloodInTheLog(t *testing.T) {
	const flood = 3000
	p, addr := startACL(t, acl("deny 127.0.0.2"), gate.WithoutRace())
	start := time.Now()
	for range flood {
		mustLetIn(t, addr, false, "127.0.0.2")
	}
	elapsed := time.Since(start)
	must(t, equal(p.Metrics(), "caddy_portgate_sessions_total", flood, label("status", "403")))
	<-time.After(time.Second / 5) // so that there is one more, which has the number of those before
	mustLetIn(t, addr, false, "127.0.0.2")
	gate.Eventually(t, peerTimeout, func() error {
		written, skipped := 0, 0
		for _, s := range p.Sessions() {
			written++
			skipped += s.Skipped
		}
		if most := 101 + int(10*elapsed.Seconds()) + 10; written > most {
			t.Fatalf("%d entries, want at most %d", written, most)
		}
		if written+skipped != flood+1 {
			return fmt.Errorf("%d entries and %d skipped, want %d in all", written, skipped, flood+1)
		}
		return nil
	})
}

// caddy acl shows and edits a list.
func TestACLCommand(t *testing.T) {
	t.Parallel()
	p, addr := startACL(t, acl("deny list bans"))
	command := func(args ...string) (string, error) {
		out, err := exec.Command(gate.Binary(t, gate.Race), append(append([]string{"acl"}, args...), "--address", p.Admin())...).CombinedOutput()
		return string(out), err
	}
	mustRun := func(args ...string) string {
		out, err := command(args...)
		if err != nil {
			t.Fatalf("caddy acl %v: %v\n%s", args, err, out)
		}
		return out
	}
	mustRun("add", "bans", "127.0.0.2", "--ttl", "1h", "--reason", "a scan", "--by", "me")
	mustRun("add", "bans", "2001:db8::/32")
	mustLetIn(t, addr, false, "127.0.0.2")
	if out := mustRun("list", "bans"); !strings.Contains(out, "127.0.0.2/32") || !strings.Contains(out, "a scan") || !strings.Contains(out, " me ") || !strings.Contains(out, "never") {
		t.Errorf("the list:\n%s", out)
	}
	if out := mustRun("list"); !strings.Contains(out, "bans  2") {
		t.Errorf("the lists:\n%s", out)
	}
	mustRun("remove", "bans", "127.0.0.2")
	mustLetIn(t, addr, true, "127.0.0.2")
	for _, c := range []struct{ args, want string }{
		{"add bans 127.0.0.2/8", `"127.0.0.2/8": expected no bits set behind the prefix: 127.0.0.0/8, or 127.0.0.2 for the one address`},
		{"add bans 127.0.0.2 --ttl soon", `ttl: \"soon\": expected a duration such as 30s`},
		{"add other 127.0.0.2", `list: \"other\": expected a list that the running config names`},
		{"add a/b 127.0.0.2", `"a/b": expected a name of letters, digits, - and _`},
		{"remove bans 127.0.0.9", `expected an entry of the list`},
	} {
		if out, err := command(strings.Fields(c.args)...); err == nil || !strings.Contains(strings.ReplaceAll(out, `\\\"`, `\"`), c.want) && !strings.Contains(strings.ReplaceAll(out, `\"`, `"`), c.want) {
			t.Errorf("caddy acl %s: %v\n%s\nwant %s", c.args, err, out, c.want)
		}
	}
}

// A list of a million lines takes the place of another one, again and again: no connection waits for it.
func TestACLSwapOfALongListStallsNobody(t *testing.T) {
	const swaps = 10
	path := writeFile(t, "list", "")
	p, addr := startACL(t, acl("deny file "+path), gate.WithoutRace())
	lists := make([]string, 2)
	for i := range lists {
		var text strings.Builder
		for n := range 1_000_000 {
			fmt.Fprintf(&text, "%d.%d.%d.%d\n", 11+i+n>>19, n>>11&255, n>>3&255, n&7<<5)
		}
		lists[i] = writeFile(t, "long", text.String()+fmt.Sprintf("127.0.0.%d\n", 2+i))
	}
	var stop atomic.Bool
	var load sync.WaitGroup
	var mu sync.Mutex
	var took []time.Duration
	for range 2 {
		load.Go(func() {
			for !stop.Load() {
				start := time.Now()
				if err := oneRequest(addr); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				took = append(took, time.Since(start))
				mu.Unlock()
			}
		})
	}
	for n := range swaps {
		must(t, os.Rename(lists[n%2], path))
		gate.Eventually(t, peerTimeout, func() error {
			if got, err := letIn(fmt.Sprintf("127.0.0.%d", 2+n%2), addr); got || err != nil {
				return fmt.Errorf("list %d is not in force (%v)", n, err)
			}
			return nil
		})
		text, err := os.ReadFile(path)
		must(t, err)
		must(t, os.WriteFile(lists[n%2], text, 0o644))
	}
	stop.Store(true)
	load.Wait()
	slices.Sort(took)
	t.Logf("%d connections during %d swaps: median %v, 99.9th percentile %v, most %v", len(took), swaps,
		percentile(took, 50), took[len(took)*999/1000], took[len(took)-1])
	if most := took[len(took)-1]; most > 500*time.Millisecond {
		t.Errorf("a connection took %v", most)
	}
	if resident := p.ResidentKiB(); resident > 400<<10 {
		t.Errorf("the process has grown to %d MiB", resident>>10)
	}
}
