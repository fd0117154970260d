package integration

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// crowd is an echo that knows how many sessions it had at most.
type crowd struct {
	mu        sync.Mutex
	now, most int
}

func (c *crowd) serve(conn *net.TCPConn) {
	c.add(1)
	defer c.add(-1)
	echo(conn)
}

func (c *crowd) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += n
	c.most = max(c.most, c.now)
}

func (c *crowd) atMost() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.most
}

// queueing is a handler whose upstream has so many sessions at once, while others wait.
func queueing(upstream string, limit, count int, longest string) gate.JSON {
	return gate.Forward().With("to", nil).With("upstreams", []gate.JSON{upstreamWith(upstream, gate.JSON{"max_connections": limit})}).
		With("queue", gate.JSON{"count": count, "duration": longest})
}

// mustQueue waits until so many wait.
func mustQueue(t *testing.T, p *gate.Process, n int) {
	t.Helper()
	gate.Eventually(t, peerTimeout, func() error { return equal(p.Metrics(), "caddy_portgate_upstream_queued", n) })
}

// Ten at a time, and a hundred wait: in order of arrival, over reloads. The next one is refused at once, and one that leaves is not served.
func TestQueue(t *testing.T) {
	t.Parallel()
	const limit, many = 10, 100
	all := new(crowd)
	upstream, addr := serve(t, all.serve), gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(addr, queueing(upstream, limit, many, "10m")))
	p := gate.Start(t, config)
	var served, waiting []*net.TCPConn
	for range limit {
		conn := dial(t, addr)
		mustExchange(t, conn)
		served = append(served, conn)
	}
	for i := range many {
		waiting = append(waiting, dial(t, addr))
		if i == many/2 {
			p.Load(config)
		}
	}
	mustQueue(t, p, many)
	for range 2 {
		if s := mustBeReset(t, p, addr, ""); s.Status != 503 || s.Reason != "queue_full" {
			t.Errorf("access log: %s", s.Line)
		}
	}
	for range 3 {
		p.Load(config)
	}
	mustQueue(t, p, many)
	leaves := many / 3
	reset(waiting[leaves])
	if s := p.WaitSession(port(waiting[leaves])); s.Reason != "client_reset" || s.Status != 499 {
		t.Errorf("access log: %s", s.Line)
	}
	mustQueue(t, p, many-1)
	for i, next := range append(waiting[:leaves:leaves], waiting[leaves+1:]...) {
		served[i].Close()
		mustExchange(t, next) // nobody else makes room before
		served = append(served, next)
	}
	mustQueue(t, p, 0)
	for _, conn := range served {
		conn.Close()
	}
	gate.Eventually(t, peerTimeout, func() error {
		return equal(p.Metrics(), "caddy_portgate_upstream_sessions_active", 0, label("upstream", upstream))
	})
	if most := all.atMost(); most != limit {
		t.Errorf("%d sessions at once, want %d", most, limit)
	}
	if n := strings.Count(p.Output(), "the queue for upstreams is full"); n != 1 {
		t.Errorf("the log says %d times that the queue is full", n)
	}
	m := p.Metrics()
	if n := m.Sum("caddy_portgate_upstream_refusals_total", label("reason", "queue_full")); n != 2 {
		t.Errorf("%v sessions counted as refused", n)
	}
}

// One that waits for longer than it may is refused then.
func TestQueueTimeout(t *testing.T) {
	t.Parallel()
	upstream, addr := serve(t, echo), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, queueing(upstream, 1, 100, "1s"))))
	first := dial(t, addr)
	mustExchange(t, first)
	start, late := time.Now(), dial(t, addr)
	if n, err := late.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("got %d bytes", n)
	}
	if took := time.Since(start); took < time.Second {
		t.Errorf("refused after %v", took)
	}
	if s := p.WaitSession(port(late)); s.Reason != "queue_timeout" || s.Status != 503 || s.Duration < 1 {
		t.Errorf("access log: %s", s.Line)
	}
	mustExchange(t, first)
}

// Sessions of datagrams count and wait like others, and what their clients have sent meanwhile is sent then.
func TestQueueOfUDP(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.ListenUDP(addr, queueing(serveUDP(t, echoUDP), 1, 1, "10m").With("idle_timeout", "2s"))))
	first := dialUDP(t, addr)
	mustWrite(t, first, "first")
	mustRead(t, first, "first")
	second := dialUDP(t, addr)
	for i := range 3 {
		mustWrite(t, second, fmt.Sprintf("question %d", i))
	}
	mustQueue(t, p, 1)
	third := dialUDP(t, addr)
	mustWrite(t, third, "third")
	if s := p.WaitSession(port(third)); s.Reason != "queue_full" || s.Status != 503 {
		t.Errorf("access log: %s", s.Line)
	}
	for i := range 3 {
		mustRead(t, second, fmt.Sprintf("question %d", i))
	}
	if s := p.WaitSession(port(first)); s.Reason != "idle_timeout" {
		t.Errorf("access log: %s", s.Line)
	}
	mustQueue(t, p, 0)
}

// A process that stops ends who waits, in a queue or for another try, and has an access log entry of each.
func TestStopWhileSessionsWait(t *testing.T) {
	t.Parallel()
	const many = 20
	full, dead := gate.ReserveAddr(t), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(
		gate.Listen(full, queueing(serve(t, echo), 1, many, "1h")),
		gate.Listen(dead, gate.Forward(gate.ReserveAddr(t)).With("lb_try_duration", "1h")),
	))
	conns := []*net.TCPConn{dial(t, full)}
	mustExchange(t, conns[0])
	for range many {
		conns = append(conns, dial(t, full), dial(t, dead))
	}
	mustQueue(t, p, many)
	gate.Eventually(t, peerTimeout, func() error { return equal(p.Metrics(), "caddy_portgate_sessions_active", 2*many+1) })
	p.Terminate()
	if code := p.Wait(peerTimeout); code != 0 {
		t.Errorf("exit code %d", code)
	}
	ended := p.Sessions()
	for _, s := range ended {
		if s.Reason != "shutdown" {
			t.Errorf("access log: %s", s.Line)
		}
	}
	if len(ended) != len(conns) {
		t.Errorf("%d entries in the access log, want %d", len(ended), len(conns))
	}
}
