package integration

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// A ban through the API ends what is going on within a second, and nobody else's; it is still there after a restart, and ends
// with its time.
func TestACLBan(t *testing.T) {
	iperf := program(t, "iperf3")
	storage := gate.JSON{"module": "file_system", "root": t.TempDir()}
	var gates [2]string
	var servers []gate.Server
	for i := range gates {
		upstream := iperfServer(t)
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
	if took := time.Since(start); took > time.Second+tolerance {
		t.Errorf("the sessions ended %v after the ban, want at most %v", took, time.Second+tolerance)
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
	gate.Eventually(t, peerTimeout, func() error {
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
	mustSay := func(want string, args ...string) {
		if out := mustRun(args...); !strings.Contains(out, want) {
			t.Errorf("caddy acl %v says %q, want %q", args, out, want)
		}
	}
	mustSay("added 127.0.0.2/32 to bans, expires 20", "add", "bans", "127.0.0.2", "--ttl", "1h", "--reason", "a scan", "--by", "me")
	mustSay("added 2001:db8::/32 to bans, expires never", "add", "bans", "2001:db8::/32", "--reason", "\x1b[31m\u202e")
	mustLetIn(t, addr, false, "127.0.0.2")
	if out := mustRun("list", "bans"); !strings.Contains(out, "127.0.0.2/32") || !strings.Contains(out, "a scan") || !strings.Contains(out, " me ") || !strings.Contains(out, "never") {
		t.Errorf("the list:\n%s", out)
	}
	if out := mustRun("list"); !strings.Contains(out, "bans  2") {
		t.Errorf("the lists:\n%s", out)
	}
	mustSay(`\x1b[31m\u202e`, "list", "bans")
	mustSay(`"reason":"\u001b[31m\u202e"`, "list", "bans", "--json")
	mustSay("removed 127.0.0.2/32 from bans", "remove", "bans", "127.0.0.2")
	mustLetIn(t, addr, true, "127.0.0.2")
	mustSay("removed all entries of bans (1)", "clear", "bans")
	mustSay("bans  0", "list")
	for _, c := range []struct{ args, want string }{
		{"add bans 127.0.0.2/8", `"127.0.0.2/8": expected no bits set behind the prefix: 127.0.0.0/8, or 127.0.0.2 for the one address`},
		{"add bans 127.0.0.2 --ttl soon", `ttl: \"soon\": expected a duration such as 30s`},
		{"add other 127.0.0.2", `list: \"other\": expected a list that the running config names`},
		{"add bans 127.0.0.2-127.0.0.9", `"127.0.0.2-127.0.0.9": expected an address, or a prefix such as 10.0.0.0/8`},
		{"list ../../config", `"../../config": expected a name of letters, digits, - and _`},
		{"add a/b 127.0.0.2", `"a/b": expected a name of letters, digits, - and _`},
		{"remove bans 127.0.0.9", `expected an entry of the list`},
		{"ban bans 127.0.0.9", `"ban": expected one of list, add, remove, clear`},
		{"bans", `"bans": expected one of list, add, remove, clear`},
		{"clear", `accepts 1 arg(s)`},
	} {
		if out, err := command(strings.Fields(c.args)...); err == nil || !strings.Contains(strings.ReplaceAll(out, `\\\"`, `\"`), c.want) && !strings.Contains(strings.ReplaceAll(out, `\"`, `"`), c.want) {
			t.Errorf("caddy acl %s: %v\n%s\nwant %s", c.args, err, out, c.want)
		}
	}
}
