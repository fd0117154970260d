package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// upstreamWith is an upstream with options.
func upstreamWith(address string, options gate.JSON) gate.JSON {
	return options.With("address", address)
}

// serveName is an upstream that says its name, and then sends everything back.
func serveName(t *testing.T, name string) string {
	return serve(t, func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, name)
		echo(conn)
	})
}

// mustBeAt begins a session, which one of the upstreams must answer. All names have one letter.
func mustBeAt(t *testing.T, addr, oneOf string) (conn *net.TCPConn, name string) {
	t.Helper()
	conn = dial(t, addr)
	b := make([]byte, 1)
	if _, err := conn.Read(b); err != nil || !strings.Contains(oneOf, string(b)) {
		t.Fatalf("upstream %q (%v), want one of %s", b, err, oneOf)
	}
	return conn, string(b)
}

// Sessions are dealt out by weight, also when a reload comes, and each is counted at its upstream as long as it lives.
func TestWeights(t *testing.T) {
	t.Parallel()
	names := []string{serveName(t, "a"), serveName(t, "b"), serveName(t, "c"), serveName(t, "d")}
	addr := gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(addr, gate.Forward().With("to", nil).With("upstreams", []gate.JSON{
		upstreamWith(names[0], gate.JSON{"weight": 5}), upstreamWith(names[1], gate.JSON{"weight": 3}), upstreamWith(names[2], gate.JSON{}),
		upstreamWith(names[3], gate.JSON{"weight": 0}),
	})))
	p := gate.Start(t, config)
	living := func(want ...int) {
		t.Helper()
		gate.Eventually(t, peerTimeout, func() error {
			m, all := p.Metrics(), []error(nil)
			for i, name := range names {
				all = append(all, equal(m, "caddy_portgate_upstream_sessions_active", want[i], label("upstream", name)))
			}
			return errors.Join(all...)
		})
	}
	living(0, 0, 0, 0)
	var clients []*net.TCPConn
	for range 9 * 10 {
		conn, _ := mustBeAt(t, addr, "abc")
		clients = append(clients, conn)
	}
	living(50, 30, 10, 0)
	var loading sync.WaitGroup // two reloads at a time, and sessions that come and go meanwhile
	for range 2 {
		loading.Go(func() {
			for range 10 {
				if err := p.TryLoad(config); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 50 {
		conn, _ := mustBeAt(t, addr, "abc")
		conn.Close()
	}
	loading.Wait()
	living(50, 30, 10, 0)
	for _, conn := range clients {
		conn.Close()
	}
	living(0, 0, 0, 0)
}

// Ten thousand sessions, many at a time, are dealt out as the weights say, and none of them is counted when they have ended.
func TestWeightsOfManySessions(t *testing.T) {
	const sessions, callers = 10_000, 16
	weights := map[string]int{"a": 5, "b": 3, "c": 1}
	upstreams, sum := []gate.JSON{}, 0
	for name, weight := range weights {
		upstreams, sum = append(upstreams, upstreamWith(serveName(t, name), gate.JSON{"weight": weight})), sum+weight
	}
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward().With("to", nil).With("upstreams", upstreams))), gate.WithoutRace())
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		got  = make(map[string]int)
		errs []error
	)
	for range callers {
		all.Go(func() {
			for range sessions / callers {
				name, err := nameAt(addr)
				mu.Lock()
				got[name]++
				if err != nil {
					errs = append(errs, err)
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	must(t, errors.Join(errs...))
	for name, weight := range weights {
		if want := sessions * weight / sum; got[name] < want*98/100 || got[name] > want*102/100 {
			t.Errorf("%s has got %d sessions, want %d within 2 %%: %v", name, got[name], want, got)
		}
	}
	gate.Eventually(t, peerTimeout, func() error { return equal(p.Metrics(), "caddy_portgate_upstream_sessions_active", 0) })
}

// nameAt makes a session, and returns the name of the upstream. It is reset, so that it leaves no TIME_WAIT.
func nameAt(addr string) (name string, err error) {
	conn, err := net.DialTimeout("tcp", addr, peerTimeout)
	if err != nil {
		return "", err
	}
	defer reset(conn.(*net.TCPConn))
	_ = conn.SetDeadline(time.Now().Add(peerTimeout))
	b := make([]byte, 1)
	_, err = io.ReadFull(conn, b)
	return string(b), err
}

// A session of datagrams is counted at the upstream that has it in the end, and nowhere once it is over.
func TestUDPSessionsAreCounted(t *testing.T) {
	t.Parallel()
	dead, alive, addr := gate.ReserveAddr(t), serveUDP(t, echoUDP), gate.ReserveAddr(t)
	config := gate.Layer4(gate.ListenUDP(addr, gate.Forward(dead, alive).With("max_fails", 0)))
	p := gate.Start(t, config)
	for i := range 5 {
		client, question := dialUDP(t, addr), fmt.Sprintf("question %d", i)
		mustWrite(t, client, question)
		mustRead(t, client, question)
	}
	living := func(of string, n int) {
		t.Helper()
		gate.Eventually(t, peerTimeout, func() error {
			return equal(p.Metrics(), "caddy_portgate_upstream_sessions_active", n, label("upstream", of))
		})
	}
	living(alive, 5)
	living(dead, 0)
	p.Load(config) // it is the same, so the sessions go on
	living(alive, 5)
	p.Load(gate.Layer4(gate.ListenUDP(addr, gate.Forward(dead, alive))))
	living(alive, 0)
	living(dead, 0)
}

// The upstream with long sessions gets no others, whichever config they began with.
func TestLeastConn(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(addr, gate.Forward(serveName(t, "a"), serveName(t, "b")).With("lb_policy", "least_conn")))
	p := gate.Start(t, config)
	_, first := mustBeAt(t, addr, "ab")
	other, name := mustBeAt(t, addr, "ab")
	if name == first {
		t.Errorf("both sessions are at %s", name)
	}
	other.Close()
	p.WaitSession(port(other))
	for i := range 10 {
		conn, _ := mustBeAt(t, addr, name)
		conn.Close()
		p.WaitSession(port(conn))
		if i == 5 {
			p.Load(config)
		}
	}
}

// The backup gets sessions when the others are out, and when all are out, that is said and counted.
func TestBackup(t *testing.T) {
	t.Parallel()
	dead, backup, addr := gate.ReserveAddr(t), gate.ReserveAddr(t), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(dead).
		With("upstreams", []gate.JSON{upstreamWith(backup, gate.JSON{"backup": true})}).
		With("max_fails", 1).With("fail_duration", "1h"))))
	ln, err := net.Listen("tcp", backup)
	must(t, err)
	serveOn(t, ln, func(conn net.Conn) { _, _ = io.WriteString(conn, "b") })
	for i := range 3 {
		conn, _ := mustBeAt(t, addr, "b")
		conn.Close()
		if failed := strings.Contains(p.WaitSession(port(conn)).Line, "failed_upstreams"); failed != (i == 0) {
			t.Errorf("session %d has tried another upstream: %t", i, failed)
		}
	}
	ln.Close()
	for i := range 2 {
		if conn, err := net.Dial("tcp", addr); err == nil { // else it is reset already
			if n, err := conn.Read(make([]byte, 1)); err == nil {
				t.Errorf("read %d bytes, and no upstream is there", n)
			}
			conn.Close()
		}
		p.WaitSessions(i+1, func(s gate.Session) bool { return s.Status == 502 })
	}
	gate.Eventually(t, peerTimeout, func() error {
		if n := strings.Count(p.Output(), "all upstreams are out, so all are tried"); n != 1 {
			return fmt.Errorf("%d entries in the log", n)
		}
		return equal(p.Metrics(), "caddy_portgate_upstreams_all_out_total", 1)
	})
}

// A client keeps its upstream, over UDP and TCP, and over a reload.
func TestIPHash(t *testing.T) {
	t.Parallel()
	streams, datagrams := gate.ReserveAddr(t), gate.ReserveAddr(t)
	upstreams := []string{serveName(t, "a"), serveName(t, "b"), serveName(t, "c")}
	var udp []string
	for range 3 {
		udp = append(udp, serveUDP(t, echoUDP))
	}
	config := gate.Layer4(
		gate.Listen(streams, gate.Forward(upstreams...).With("lb_policy", "ip_hash")),
		gate.ListenUDP(datagrams, gate.Forward(udp...).With("lb_policy", "ip_hash")))
	p := gate.Start(t, config)
	owners := make(map[string]string)
	for round := range 3 {
		for i := range 20 {
			client := fmt.Sprintf("127.0.0.%d", 1+i)
			conn, err := dialFrom(client, streams)
			must(t, err)
			b := make([]byte, 1)
			if _, err := conn.Read(b); err != nil || round > 0 && owners[client] != string(b) {
				t.Errorf("%s is at %q (%v), and was at %s", client, b, err, owners[client])
			}
			owners[client] = string(b)
			conn.Close()
		}
		client := dialUDP(t, datagrams)
		mustWrite(t, client, "ping")
		mustRead(t, client, "ping")
		client.Close()
		p.Load(config)
	}
	used, asked := make(map[string]bool), 0
	for _, owner := range owners {
		used[owner] = true
	}
	if len(used) < 2 {
		t.Errorf("20 clients are all at %v", used)
	}
	for _, name := range udp {
		if p.Metrics().Sum("caddy_portgate_bytes_total", label("upstream", name)) > 0 {
			asked++
		}
	}
	if asked != 1 {
		t.Errorf("one client was at %d upstreams", asked)
	}
}

// A value of the connection may choose the upstream: here the name that the client asks for.
func TestHashOfAPlaceholder(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	server := gate.Listen(addr, gate.Forward(serveName(t, "a"), serveName(t, "b"), serveName(t, "c")).With("lb_policy", "hash {l4.conn.remote_addr}"))
	gate.Start(t, gate.Layer4(server))
	_, first := mustBeAt(t, addr, "abc")
	for range 60 {
		if _, name := mustBeAt(t, addr, "abc"); name != first {
			return // ports of clients differ, and so do their upstreams
		}
	}
	t.Error("60 clients with different values are at one upstream")
}

// The upstreams of the gateway's zone come first.
func TestZone(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(addr, gate.Forward(serveName(t, "a")).With("upstreams", []gate.JSON{
		upstreamWith(serveName(t, "b"), gate.JSON{"zone": "west"}), upstreamWith(serveName(t, "c"), gate.JSON{"zone": "east"}),
	})))
	p := gate.Start(t, config.WithApp("portgate", gate.JSON{"zone": "east"}))
	for range 6 {
		mustBeAt(t, addr, "c")
	}
	p.Load(config)
	var got string
	for range 3 {
		_, name := mustBeAt(t, addr, "abc")
		got += name
	}
	for _, name := range []string{"a", "b", "c"} {
		if !strings.Contains(got, name) {
			t.Errorf("without a zone of its own, three sessions are at %s", got)
		}
	}
}
