package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// pingRedis asks a Redis behind an address whether it is there.
func pingRedis(addr string, patience time.Duration) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		return err
	}
	answer := make([]byte, len("+PONG\r\n"))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if string(answer) != "+PONG\r\n" {
		return fmt.Errorf("got %q", answer)
	}
	return nil
}

// One of two Redis servers hangs: the system accepts its connections, and no answer comes. The breaker opens when the first clients have waited for a second.
// From then on nobody waits for it but the probes, over reloads, too. When it goes on, a probe closes the breaker and it gets sessions again.
func TestBreakerOfAServerThatHangs(t *testing.T) {
	t.Parallel()
	hangs, hung := startRedis(t)
	works, _ := startRedis(t)
	upstream, addr := strings.TrimPrefix(hangs, "redis://"), gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(addr, gate.Forward(upstream, strings.TrimPrefix(works, "redis://")).
		With("breaker", gate.JSON{"when": "slow 0.5 1s", "min_sessions": 4, "window": "1m", "open": "3s"})))
	p := gate.Start(t, config)
	must(t, pingRedis(addr, peerTimeout))
	must(t, hung.Process.Signal(syscall.SIGSTOP))
	t.Cleanup(func() { _ = hung.Process.Signal(syscall.SIGCONT) })
	var first sync.WaitGroup
	for range 16 {
		first.Go(func() { _ = pingRedis(addr, 3*time.Second) })
	}
	const opens, tries, closes = "the breaker of an upstream is open", "is half open", "the breaker of an upstream is closed"
	said := func(what string) int { return strings.Count(p.Output(), what) }
	eventuallySaid := func(what string, more int) {
		t.Helper()
		gate.Eventually(t, peerTimeout, func() error {
			if said(what) < more {
				return fmt.Errorf("the log does not say: %s", what)
			}
			return nil
		})
	}
	eventuallySaid(opens, 1)
	first.Wait()
	var failed atomic.Int64
	for range 10 {
		var clients sync.WaitGroup
		for range 4 {
			clients.Go(func() {
				if pingRedis(addr, 10*time.Second) != nil {
					failed.Add(1)
				}
			})
		}
		p.Load(config)
		clients.Wait()
	}
	if n, probes := failed.Load(), said(tries); n > int64(probes) {
		t.Errorf("%d of 40 clients waited for the server that hangs, and there were %d probes", n, probes)
	}
	must(t, hung.Process.Signal(syscall.SIGCONT))
	gate.Eventually(t, peerTimeout, func() error {
		must(t, pingRedis(addr, peerTimeout))
		m := p.Metrics()
		return errors.Join(equal(m, "caddy_portgate_upstream_breaker_state", 0, label("upstream", upstream)),
			equal(m, "caddy_portgate_upstream_breaker_state", 0))
	})
	eventuallySaid(closes, 1)
	begun := func() float64 { return p.Metrics().Sum("caddy_portgate_sessions_total", label("upstream", upstream)) }
	before := begun()
	for range 10 {
		must(t, pingRedis(addr, peerTimeout))
	}
	gate.Eventually(t, peerTimeout, func() error {
		if n := begun() - before; n < 4 {
			return fmt.Errorf("%v of 10 sessions are its own", n)
		}
		return nil
	})
}

// A UDP upstream that refuses datagrams has its breaker opened: nobody asks it any more, though nothing else remembers its failures. Where it is the only one, sessions
// end with a reason of their own. With its first reply to a probe it is back.
func TestBreakerOverUDP(t *testing.T) {
	t.Parallel()
	dead, alive := gate.ReserveAddr(t), serveUDP(t, tellUDP("alive"))
	both, alone := gate.ReserveAddr(t), gate.ReserveAddr(t)
	breaker := func(open string) gate.JSON {
		return gate.JSON{"when": "errors 0.5", "min_sessions": 3, "window": "1h", "open": open}
	}
	p := gate.Start(t, gate.Layer4(
		gate.ListenUDP(both, gate.Forward(dead, alive).With("max_fails", 0).With("breaker", breaker("1h"))),
		gate.ListenUDP(alone, gate.Forward(dead).With("max_fails", 0).With("breaker", breaker("2s")))))
	for range 12 {
		client := dialUDP(t, both)
		mustAsk(t, client, "alive")
		client.Close()
	}
	if n := p.Metrics().Sum("caddy_portgate_upstream_fails_total", label("upstream", dead)); n != 3 {
		t.Errorf("%v datagrams were refused, want those of 3 sessions", n)
	}
	gate.Eventually(t, peerTimeout, func() error { // a probe may be under way
		client := dialUDP(t, alone)
		defer client.Close()
		mustWrite(t, client, "question")
		if n := p.Metrics().Sum("caddy_portgate_upstream_refusals_total", label("reason", "breaker_open"), label("listener", alone)); n == 0 {
			return errors.New("no session was refused")
		}
		return nil
	})
	for _, s := range p.WaitSessions(1, func(s gate.Session) bool { return s.Reason == "breaker_open" })[:1] {
		if s.Status != 502 || s.Upstream != "" || s.DatagramsUp != 0 {
			t.Errorf("access log: %s", s.Line)
		}
	}
	answerUDP(t, listenUDP(t, dead), tellUDP("dead"))
	gate.Eventually(t, peerTimeout, func() error {
		client := dialUDP(t, alone)
		defer client.Close()
		_ = client.SetDeadline(time.Now().Add(100 * time.Millisecond))
		_, _, err := ask(client, "question")
		return err
	})
	mustAsk(t, dialUDP(t, alone), "dead")
}

// examples/breaker.Caddyfile: the clients that wait for the server that says nothing open its breaker, and from then on all are answered.
func exampleBreaker(t *testing.T, start func(...gate.Option) *gate.Process, addr addresses) {
	over := make(chan struct{})
	serveAt(t, addr(9001), func(*net.TCPConn) { <-over })
	t.Cleanup(func() { close(over) })
	serveAt(t, addr(9002), echo)
	p := start()
	var waiting []net.Conn
	for range 60 {
		conn := dial(t, addr(8080))
		mustWrite(t, conn, "question")
		waiting = append(waiting, conn)
	}
	gate.Eventually(t, peerTimeout, func() error {
		return equal(p.Metrics(), "caddy_portgate_upstream_breaker_state", 1, label("state", "open"))
	})
	for range 10 {
		conn := dial(t, addr(8080))
		mustExchange(t, conn)
		conn.Close()
	}
	for _, conn := range waiting {
		conn.Close()
	}
}
