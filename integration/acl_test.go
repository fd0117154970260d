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
	"strings"
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

// The verdict does not depend on the form in which a client's address comes: IPv4, IPv6, link-local with
// a zone, and each of them as a PROXY header says it.
func TestACLForms(t *testing.T) {
	t.Parallel()
	list := writeFile(t, "list", "127.0.0.2\n::1\nfe80::/10\n192.0.2.0/24\n2001:db8::/32\n")
	proxied := gate.JSON{"handler": "accept_proxy", "from": []string{"127.0.0.0/8"}}
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
