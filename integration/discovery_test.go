package integration

import (
	"errors"
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

// discovered is a handler whose upstreams come from a source.
func discovered(source string, options gate.JSON) gate.JSON {
	return gate.JSON{"handler": "forward", "dynamic": []gate.JSON{options.With("source", source)}}
}

// zone is a dnsmasq with records of our own. It is started anew when they change.
type zone struct {
	t    testing.TB
	addr string
	cmd  *exec.Cmd
}

func startZone(t testing.TB) *zone {
	t.Helper()
	return &zone{t: t, addr: gate.ReserveAddr(t)}
}

// serve starts it, in place of the one that runs, with these records, as options of dnsmasq.
func (z *zone) serve(records ...string) {
	z.t.Helper()
	z.kill()
	host, port, err := net.SplitHostPort(z.addr)
	must(z.t, err)
	args := append([]string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--log-facility=-", "--no-resolv", "--no-hosts", "--local-ttl=1",
		"--local=/test/", "--bind-interfaces", "--listen-address=" + host, "--port=" + port,
	}, records...)
	z.cmd = exec.Command(program(z.t, "dnsmasq"), args...)
	server(z.t, z.addr, z.cmd)
}

func (z *zone) kill() {
	if z.cmd == nil {
		return
	}
	z.cmd.Process.Kill()
	z.cmd = nil
	gate.Eventually(z.t, peerTimeout, func() error {
		conn, err := net.Dial("tcp", z.addr)
		if err == nil {
			conn.Close()
			return errors.New("dnsmasq still listens")
		}
		return nil
	})
}

// becomes waits until all of some sessions in a row are greeted by one of these, and each of them greets some.
func becomes(t testing.TB, addr string, greetings ...string) {
	t.Helper()
	gate.Eventually(t, peerTimeout, func() error {
		seen := make(map[string]int)
		for range 4 * len(greetings) {
			conn, err := net.Dial("tcp", addr)
			must(t, err)
			buf := make([]byte, 64)
			conn.SetDeadline(time.Now().Add(peerTimeout))
			n, err := conn.Read(buf)
			conn.Close()
			if err != nil {
				return err
			}
			seen[strings.TrimSpace(string(buf[:n]))]++
		}
		for _, greeting := range greetings {
			if seen[greeting] == 0 {
				return fmt.Errorf("greeted by %v, expected %v", seen, greetings)
			}
		}
		if len(seen) != len(greetings) {
			return fmt.Errorf("greeted by %v, expected %v", seen, greetings)
		}
		return nil
	})
}

// SRV records and changing A records of a real name server. It is killed and comes back with other ones: no session is lost meanwhile.
func TestDiscoveryFromDNSMasq(t *testing.T) {
	t.Parallel()
	first := serve(t, greet("first"))
	_, port, err := net.SplitHostPort(first)
	must(t, err)
	serveAt(t, net.JoinHostPort("127.0.0.2", port), greet("second"))
	backup := serve(t, greet("backup"))
	_, backupPort, err := net.SplitHostPort(backup)
	must(t, err)
	one, two := "--host-record=one.test,127.0.0.1", "--host-record=two.test,127.0.0.2"
	srv := func(target, port string, priority, weight int) string {
		return fmt.Sprintf("--srv-host=_db._tcp.test,%s,%s,%d,%d", target, port, priority, weight)
	}
	z := startZone(t)
	z.serve(one, two, srv("one.test", port, 10, 5), srv("one.test", backupPort, 20, 5), "--host-record=db.test,127.0.0.1")

	bySRV, byA := gate.ReserveAddr(t), gate.ReserveAddr(t)
	number, err := strconv.Atoi(port)
	must(t, err)
	p := gate.Start(t, gate.Layer4(
		gate.Listen(bySRV, discovered("srv", gate.JSON{"name": "_db._tcp.test", "resolvers": []string{z.addr}, "refresh": "1s"})),
		gate.Listen(byA, discovered("a", gate.JSON{"name": "db.test", "port": number, "resolvers": []string{z.addr}, "refresh": "1s"})),
	))
	becomes(t, bySRV, "first") // the other one is of a later tier
	becomes(t, byA, "first")

	z.serve(one, two, srv("one.test", port, 10, 5), srv("two.test", port, 10, 5), "--host-record=db.test,127.0.0.1", "--host-record=db.test,127.0.0.2")
	becomes(t, bySRV, "first", "second")
	becomes(t, byA, "first", "second")

	z.serve(one, "--host-record=db.test,127.0.0.1", srv("one.test", port, 10, 5))
	becomes(t, bySRV, "first")
	becomes(t, byA, "first")
	z.kill()
	n := whileSessions(t, bySRV, func() {
		whileSessions(t, byA, func() {
			gate.Eventually(t, peerTimeout, func() error {
				if n := strings.Count(p.Output(), "upstreams can't be discovered, the last good answer is used"); n < 2 {
					return fmt.Errorf("%d sources fail", n)
				}
				return nil
			})
		})
		z.serve("--host-record=other.test,127.0.0.1") // it is back, and knows nothing any more
		gate.Eventually(t, peerTimeout, func() error {
			if value := p.Metrics().Sum("caddy_portgate_upstream_source_failures_total", `source="srv _db._tcp.test"`); value < 4 {
				return fmt.Errorf("%v failures", value)
			}
			return nil
		})
	})
	if n == 0 {
		t.Error("there was no session")
	}
	z.serve(two, srv("two.test", port, 10, 5), "--host-record=db.test,127.0.0.2")
	becomes(t, bySRV, "second")
	becomes(t, byA, "second")
}

// A list is replaced a hundred times under load, by a rename and by a link that is swapped, with garbage in each second one. No session fails.
func TestDiscoveryFromAFileThatChanges(t *testing.T) {
	t.Parallel()
	const upstreams = 4
	var addrs []string
	for range upstreams {
		addrs = append(addrs, serve(t, greet("first")))
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "list")
	write := func(i int) {
		list := addrs[i%upstreams] + "\n" + addrs[(i+1)%upstreams] + " weight=2\n"
		if i%2 == 1 {
			list += "garbage\n300.0.0.1:1\n"
		}
		must(t, os.WriteFile(path+".new", []byte(list), 0o600))
		if i%5 == 4 {
			target := fmt.Sprintf("%s.%d", path, i)
			must(t, os.Rename(path+".new", target))
			must(t, os.Symlink(target, path+".link"))
			must(t, os.Rename(path+".link", path))
			return
		}
		must(t, os.Rename(path+".new", path))
	}
	write(0)
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, discovered("file", gate.JSON{"path": path}))))
	mustGreet(t, addr, "first")
	source := fmt.Sprintf("source=%q", "file "+path)
	changes := func() int { return strings.Count(p.Output(), `"msg":"upstreams discovered"`) }
	n := whileSessions(t, addr, func() {
		for i := range 101 {
			write(i + 1)
			gate.Eventually(t, peerTimeout, func() error { // each is another list than the one before
				if now := changes(); now != i+2 {
					return fmt.Errorf("%d changes are in use, %d were made", now, i+2)
				}
				return nil
			})
		}
		gate.Eventually(t, peerTimeout, func() error {
			if bad := p.Metrics().Sum("caddy_portgate_upstream_source_bad_entries", source); bad != 2 {
				return fmt.Errorf("%v bad entries", bad)
			}
			return nil
		})
		must(t, os.Remove(path))
		gate.Eventually(t, peerTimeout, func() error {
			if p.Metrics().Sum("caddy_portgate_upstream_source_failing", source) != 1 {
				return errors.New("the file that is not there is no failure")
			}
			return nil
		})
	})
	t.Logf("%d sessions", n)
	if n == 0 {
		t.Error("there was no session")
	}
	if !strings.Contains(p.Output(), "a source of upstreams has entries that make no sense, which are left out") {
		t.Error("nothing is said of the garbage")
	}
}

// A start at which no source can be reached: with the stored answer of an earlier process sessions are served at once, else the config is loaded all the same.
func TestDiscoveryAtTheStart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "list")
	must(t, os.WriteFile(path, []byte(serve(t, greet("first"))), 0o600))
	addr := gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(addr, discovered("file", gate.JSON{"path": path}).With("connect_timeout", "1s")))
	stored := config.With("storage", gate.JSON{"module": "file_system", "root": t.TempDir()})
	p := gate.Start(t, stored)
	mustGreet(t, addr, "first")
	p.Stop()
	must(t, os.Remove(path))
	p = gate.Start(t, stored)
	mustGreet(t, addr, "first")
	p.Stop()

	p = gate.Start(t, config) // with a storage of its own
	conn, err := net.Dial("tcp", addr)
	must(t, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(peerTimeout))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("served by nobody")
	}
	if got := p.WaitSession(conn.LocalAddr().(*net.TCPAddr).Port); got.Reason != "no_upstream" || got.Status != 502 {
		t.Errorf("%+v", got)
	}
}

// Sessions of UDP go on over a reload. When their upstream goes after that, they end by the drain_timeout, and the next datagram goes elsewhere.
// An answer that is on its way when the drain_timeout is over is lost, as it is wherever the session ends.
func TestDiscoveryOfUDPUpstreams(t *testing.T) {
	t.Parallel()
	var first, second sources
	one, two := serveUDP(t, first.echo), serveUDP(t, second.echo)
	path := filepath.Join(t.TempDir(), "list")
	write := func(list string) {
		t.Helper()
		must(t, os.WriteFile(path+".new", []byte(list), 0o600))
		must(t, os.Rename(path+".new", path))
	}
	addr := gate.ReserveAddr(t)
	config := gate.Layer4(gate.ListenUDP(addr, discovered("file", gate.JSON{"path": path}).With("drain_timeout", "100ms")))
	p := gate.Start(t, config)
	client := dialUDP(t, addr)
	_, err := client.Write([]byte("early")) // waits for the list
	must(t, err)
	write("udp/" + one)
	client.SetReadDeadline(time.Now().Add(peerTimeout))
	_, err = client.Read(make([]byte, 64))
	must(t, err)
	p.Load(config)
	mustExchange(t, client)
	if n := first.count(); n != 1 {
		t.Errorf("%d sessions after a reload", n)
	}
	write("udp/" + two)
	gate.Eventually(t, peerTimeout, func() error {
		if _, err := client.Write([]byte("late")); err != nil {
			return err
		}
		client.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := client.Read(make([]byte, 64)); err != nil {
			return err
		}
		if second.count() == 0 {
			return errors.New("the session is still at the upstream that has gone")
		}
		return nil
	})
	for _, s := range p.WaitSessions(1, func(gate.Session) bool { return true }) {
		if s.Reason != "drain" || s.Status != 200 {
			t.Errorf("%+v", s)
		}
	}
}
