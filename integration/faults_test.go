package integration

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// A process that runs out of descriptors answers again on every port once they are free.
func TestPortsAnswerAgainAfterDescriptorsRanOut(t *testing.T) {
	const (
		limit       = 256
		connections = 400
		recovery    = 2 * time.Second
	)
	forwarding, matching := gate.ReserveAddr(t), gate.ReserveAddr(t)
	upstream := serve(t, echo)
	// The second port's connections wait in a matcher with one descriptor each: enough of them that accept itself fails, and
	// not only the dial of the upstream.
	waiting := gate.Listen(matching, gate.Forward(upstream))
	waiting.Routes[0].Match = []gate.JSON{{"regexp": gate.JSON{"pattern": "^message ", "count": len("message ")}}}
	waiting.MatchingTimeout = "60s"
	config := gate.Layer4(gate.Listen(forwarding, gate.Forward(upstream)), waiting).
		WithApp("portgate", gate.JSON{"max_sessions": limit, "reserve_descriptors": 0}) // else they would not run out
	p := gate.Start(t, config, gate.WithFiles(limit))

	must(t, oneRequest(forwarding))
	must(t, oneRequest(matching))
	before := p.Baseline()

	flood := make([]net.Conn, 0, connections)
	for i := range connections {
		flood = append(flood, dial(t, []string{forwarding, matching}[i%2]))
	}
	gate.Eventually(t, peerTimeout, func() error {
		if acceptErrors(p) == 0 {
			return fmt.Errorf("no EMFILE in the log; the process has %d descriptors", p.Descriptors())
		}
		return nil
	})
	<-time.After(2 * time.Second) // without descriptors, and without filling the log
	for _, conn := range flood {
		conn.Close()
	}
	released := time.Now()
	for _, addr := range []string{forwarding, matching} {
		mustAnswerBy(t, addr, released.Add(recovery))
	}
	t.Logf("both ports answered %v after the descriptors were free", time.Since(released))
	before.MustReturn(t, peerTimeout)
	if lines := acceptErrors(p); lines > 10 { // two ports, at most once a second each
		t.Errorf("%d log lines say that descriptors ran out", lines)
	}
}

// acceptErrors counts the log entries about connections that could not be accepted.
func acceptErrors(p *gate.Process) int {
	count := 0
	for line := range strings.Lines(p.Output()) {
		if strings.Contains(line, "accept") && strings.Contains(line, "too many open files") {
			count++
		}
	}
	return count
}

// mustAnswerBy opens connections, one after the other, until one gets an answer from the echo behind addr.
func mustAnswerBy(t *testing.T, addr string, deadline time.Time) {
	t.Helper()
	var err error
	for time.Now().Before(deadline) {
		var conn net.Conn
		if conn, err = net.DialTimeout("tcp", addr, time.Until(deadline)); err == nil {
			conn.SetDeadline(deadline)
			err = exchange(conn)
			conn.Close()
		}
		if err == nil {
			return
		}
	}
	t.Fatalf("%s does not answer: %v", addr, err)
}

// Routes of a config that is rejected handle no connection, neither while it is tried nor later.
func TestRejectedConfigHandlesNoConnection(t *testing.T) {
	const rejections = 20
	addr := gate.ReserveAddr(t)
	good, bad := serve(t, greet("good")), serve(t, greet("bad"))
	running := gate.Layer4(gate.Listen(addr, gate.Forward(good)))
	p := gate.Start(t, running)
	// One server with two addresses: the first is open when the second fails.
	rejected := gate.Listen(addr, gate.Forward(bad))
	rejected.Listen = append(rejected.Listen, "gate+tcp/"+gate.TakePort(t))

	mustGreet(t, addr, "good")
	p.Load(running)
	before := p.Baseline()
	configBefore := p.MustGet("/config/")

	var (
		stop    atomic.Bool
		clients sync.WaitGroup
		handled atomic.Int64
	)
	for range 4 {
		clients.Go(func() {
			for !stop.Load() {
				if err := greeting(addr, "good"); err != nil {
					t.Errorf("a connection during the rejections: %v", err)
					return
				}
				handled.Add(1)
			}
		})
	}
	for i := range rejections {
		err := p.TryLoad(gate.Layer4(rejected))
		if err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("config %d: got %v, want a rejection that says which address is taken", i, err)
		}
	}
	stop.Store(true)
	clients.Wait()
	for range 200 {
		mustGreet(t, addr, "good")
	}
	t.Logf("%d connections during %d rejections", handled.Load(), rejections)
	if config := p.MustGet("/config/"); config != configBefore {
		t.Errorf("the running config changed:\n%s\nwas\n%s", config, configBefore)
	}
	before.MustReturn(t, peerTimeout)

	// The next good config takes over from the good one, not from what was rejected.
	p.Load(gate.Layer4(gate.Listen(addr, gate.Forward(serve(t, greet("next"))))))
	for range 20 {
		mustGreet(t, addr, "next")
	}
}

// greeting opens a connection, requires the upstream with this name, and closes it.
func greeting(addr, name string) error {
	conn, err := net.DialTimeout("tcp", addr, peerTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(peerTimeout))
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return fmt.Errorf("after %q: %w", line, err)
	}
	if line != name+"\n" {
		return fmt.Errorf("handled by %q, want %q", line, name)
	}
	return nil
}

func mustGreet(t testing.TB, addr, name string) {
	t.Helper()
	if err := greeting(addr, name); err != nil {
		t.Fatal(err)
	}
}
