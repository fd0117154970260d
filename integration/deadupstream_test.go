package integration

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// One of two DNS servers is down: every question is answered, and after three of them nobody asks it any more. A reload changes
// nothing of that. The log says so once, and again when the server is back.
func TestDeadUDPUpstream(t *testing.T) {
	t.Parallel()
	dead, alive, addr := gate.ReserveAddr(t), serveUDP(t, echoUDP), gate.ReserveAddr(t)
	config := gate.Layer4(gate.ListenUDP(addr, gate.Forward(dead, alive).With("fail_duration", "1h")))
	p := gate.Start(t, config)
	ask := func(i int) {
		t.Helper()
		client := dialUDP(t, addr)
		question := fmt.Sprintf("question %d", i)
		mustWrite(t, client, question)
		mustRead(t, client, question)
		client.Close()
	}
	upstream := label("upstream", dead)
	for i := range 20 {
		ask(i)
	}
	fails := func() float64 { return p.Metrics().Sum("caddy_portgate_upstream_fails_total", upstream) }
	before := fails()
	if before < 3 {
		t.Errorf("%v fails are counted", before)
	}
	m := p.Metrics()
	if err := errors.Join(
		equal(m, "caddy_portgate_upstream_ejections_total", 1, upstream),
		equal(m, "caddy_portgate_upstream_ejected", 1, upstream),
		equal(m, "caddy_portgate_upstream_ejected", 0, label("upstream", alive)),
	); err != nil {
		t.Error(err)
	}
	p.Load(config)
	for i := range 10 {
		ask(i)
	}
	if after := fails(); after != before {
		t.Errorf("%v fails after the upstream was taken out", after-before)
	}
	gate.Eventually(t, peerTimeout, func() error {
		if n := strings.Count(p.Output(), "upstream fails, sessions try others first"); n != 1 {
			return fmt.Errorf("%d entries in the log", n)
		}
		return nil
	})
}

// Of two TCP upstreams one drops all packets, as one does that has lost its power: three sessions wait for it, and the others begin
// at once, but for one each time that its time is over. It gets sessions again when it is back.
func TestDeadTCPUpstream(t *testing.T) {
	t.Parallel()
	const connect, out = 300 * time.Millisecond, 2 * time.Second
	n := newNamespace(t)
	nft := func(rules string) {
		t.Helper()
		run(t, program(t, "ip"), "netns", "exec", n.name, program(t, "nft"), rules)
	}
	nft("add table inet gate; add chain inet gate in { type filter hook input priority 0; }; add rule inet gate in tcp flags syn drop")
	dead := net.JoinHostPort(n.inside, "9")
	n.do(t, func() error {
		ln, err := net.Listen("tcp", dead)
		if err == nil {
			serveOn(t, ln, func(conn net.Conn) { echo(conn.(*net.TCPConn)) })
		}
		return err
	})
	addr := gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(addr, gate.Forward(dead, serve(t, echo)).
		With("connect_timeout", connect.String()).With("fail_duration", out.String())))
	p := gate.Start(t, config)
	session := func() gate.Session {
		t.Helper()
		client := dial(t, addr)
		mustWrite(t, client, "ping")
		mustRead(t, client, "ping")
		client.Close()
		return p.WaitSession(port(client))
	}
	start, waited := time.Now(), 0
	for i := range 30 {
		if s := session(); strings.Contains(s.Line, "failed_upstreams") {
			waited++
			if s.ConnectDuration < connect.Seconds() || !strings.Contains(s.Line, fmt.Sprintf(`"failed_upstreams":[%q]`, dead)) {
				t.Errorf("access log: %s", s.Line)
			}
		}
		if i%10 == 9 {
			p.Load(config)
		}
	}
	if again := int(time.Since(start) / out); waited < 3 || waited > 3+again {
		t.Errorf("%d of 30 sessions have waited in %v", waited, time.Since(start))
	}
	m := p.Metrics()
	if err := errors.Join(
		equal(m, "caddy_portgate_upstream_fails_total", waited, label("upstream", dead)),
		equal(m, "caddy_portgate_connect_duration_seconds_count", waited, label("upstream", dead)),
		equal(m, "caddy_portgate_upstream_ejected", 1, label("upstream", dead)),
	); err != nil {
		t.Error(err)
	}
	nft("delete table inet gate")
	gate.Eventually(t, peerTimeout, func() error {
		if s := session(); s.Upstream != dead {
			return fmt.Errorf("no session for the upstream that is back: %s", s.Line)
		}
		return nil
	})
	gate.Eventually(t, peerTimeout, func() error {
		if !strings.Contains(p.Output(), "upstream is back") {
			return errors.New("no entry in the log")
		}
		return equal(p.Metrics(), "caddy_portgate_upstream_ejected", 0)
	})
}
