package integration

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// quiet is how long a session has been without a byte when it counts as idle at a stop.
const quiet = time.Second

// waysToStop are what a service manager and an operator do. The function that is returned checks that asking worked.
var waysToStop = map[string]func(t *testing.T, p *gate.Process) (check func()){
	"SIGTERM": func(_ *testing.T, p *gate.Process) func() {
		p.Terminate()
		return func() {}
	},
	"caddy stop": func(t *testing.T, p *gate.Process) func() {
		command := gate.Launch(t, []gate.Option{gate.WithoutRace()}, "stop", "--address", p.Admin())
		return func() {
			if code := command.Wait(peerTimeout); code != 0 {
				t.Errorf("caddy stop: exit code %d", code)
			}
		}
	},
}

// trickle sends a byte now and then until that fails or until is closed. The channel that it returns gets what was sent.
func trickle(conn *net.TCPConn, until <-chan struct{}) <-chan result {
	done := make(chan result, 1)
	go func() {
		var sent result
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for sent.err == nil {
			select {
			case <-until:
				done <- sent
				return
			case <-tick.C:
				var n int
				n, sent.err = conn.Write([]byte("x"))
				sent.bytes += int64(n)
			}
		}
		done <- sent
	}()
	return done
}

func TestStopClosesIdleSessionsFirstAndGivesOthersTheGracePeriod(t *testing.T) {
	t.Parallel()
	for name, stop := range waysToStop {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onEachNetwork(t, func(t *testing.T, network string) { stopWithSessions(t, network, stop) })
		})
	}
}

func stopWithSessions(t *testing.T, network string, stop func(*testing.T, *gate.Process) func()) {
	const (
		grace = 4 * time.Second
		idle  = 20
	)
	p, addr, accepted := startForwarding(t, network, gate.JSON{"grace_period": grace.String()})
	var idlers []net.Conn
	for range idle {
		client, upstream := pair(t, addr, accepted)
		mustExchangeBetween(t, client, upstream)
		idlers = append(idlers, client, upstream)
	}
	// Of three busy sessions, one is through before the grace period is over, one falls silent, and one never stops.
	finishes, silences, endless := startBusy(t, addr, accepted), startBusy(t, addr, accepted), startBusy(t, addr, accepted)
	<-time.After(quiet + quiet/2) // the idle sessions become so

	asked := time.Now()
	check := stop(t, p)
	gate.Eventually(t, peerTimeout, func() error {
		if !strings.Contains(p.Output(), "exiting; byeee") {
			return errors.New("the process does not say that it stops")
		}
		return nil
	})
	began := time.Now()
	for _, end := range idlers {
		mustEnd(t, end)
	}
	if took := time.Since(began); took > tolerance {
		t.Errorf("idle sessions ended %v after the stop, want at most %v", took, tolerance)
	}
	mustRefuse(t, addr)

	silences.mustArrive(t)
	<-time.After(time.Until(began.Add(grace / 2)))
	finishes.mustArriveAfter(t, finishes.upstream.CloseWrite)
	within(t, peerTimeout, "the endless session's end", endless.received)
	if time.Since(asked) < grace || time.Since(began) > grace+tolerance {
		t.Errorf("the endless session ended %v after the stop, want %v to %v", time.Since(began), grace, grace+tolerance)
	}
	if code := p.Wait(peerTimeout); code != 0 {
		t.Errorf("exit code %d", code)
	}
	check()
	reasons := make(map[string]int)
	for _, s := range p.Sessions() {
		reasons[s.Reason]++
	}
	if reasons["shutdown"] != idle+2 || reasons["upstream_fin"] != 1 {
		t.Errorf("reasons in the access log: %v, want %d shutdown and 1 upstream_fin", reasons, idle+2)
	}
}

// busy is a session whose upstream sends a byte now and then.
type busy struct {
	client, upstream *net.TCPConn
	pause            chan struct{} // closed to stop sending
	sent, received   <-chan result
}

func startBusy(t *testing.T, addr string, accepted <-chan *net.TCPConn) *busy {
	t.Helper()
	b := &busy{pause: make(chan struct{})}
	b.client, b.upstream = pair(t, addr, accepted)
	b.sent, b.received = trickle(b.upstream, b.pause), receiving(b.client)
	return b
}

// mustArrive stops sending and requires that everything arrives before the session's end.
func (b *busy) mustArrive(t *testing.T) {
	t.Helper()
	b.mustArriveAfter(t, func() error { return nil })
}

// mustArriveAfter does the same with something in between, such as a FIN.
func (b *busy) mustArriveAfter(t *testing.T, end func() error) {
	t.Helper()
	close(b.pause)
	sent := within(t, peerTimeout, "sending", b.sent)
	must(t, end())
	got := within(t, peerTimeout, "receiving", b.received)
	if sent.err != nil || got.err != nil || sent.bytes != got.bytes {
		t.Errorf("a busy session: sent %d bytes (%v), received %d (%v)", sent.bytes, sent.err, got.bytes, got.err)
	}
	b.client.Close()
}

func mustRefuse(t testing.TB, addr string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, peerTimeout)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new connection: %v, want it refused", err)
	}
}

func TestStopWithOnlyIdleSessionsDoesNotWait(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(serve(t, echo))))) // grace_period 10s
	conns := openSessions(t, addr, 100)
	<-time.After(quiet + quiet/2)
	stopped := time.Now()
	p.Terminate()
	for _, conn := range conns {
		mustEnd(t, conn)
	}
	if code := p.Wait(peerTimeout); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if took := time.Since(stopped); took > 3*time.Second+tolerance {
		t.Errorf("the process ended after %v", took)
	}
}

// Sessions of datagrams have no grace, and the access log tells the end of the process from that of a config.
func TestStopEndsUDPSessions(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.ListenUDP(addr, gate.Forward(serveUDP(t, echoUDP)))))
	client := dialUDP(t, addr)
	mustExchange(t, client)
	p.Terminate()
	if code := p.Wait(peerTimeout); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if s := p.WaitSession(port(client)); s.Reason != "shutdown" || s.Status != 200 {
		t.Errorf("access log: %s", s.Line)
	}
}

// sendForever sends until the connection is over.
func sendForever(conn *net.TCPConn) <-chan result { return sending(conn, 1<<40) }

// A peer that takes nothing must not hold up the end of the process, not even where a TLS farewell waits for it.
func TestStopDoesNotWaitForStuckPeers(t *testing.T) {
	t.Parallel()
	upstream, accepted := accepting(t)
	plain, secure := gate.ReserveAddr(t), gate.ReserveAddr(t)
	forward := gate.Forward(upstream)
	config, trust := withTLS(t, gate.Layer4(gate.Listen(plain, forward), gate.Listen(secure, gate.JSON{"handler": "tls"}, forward)))
	p := gate.Start(t, config)
	_, first := pair(t, plain, accepted)
	client := tls.Client(dial(t, secure), trust)
	must(t, client.Handshake())
	second := within(t, peerTimeout, "the upstream's accept", accepted)
	sendForever(first)
	sendForever(second)
	<-time.After(2 * quiet) // they are stuck, and idle
	p.Terminate()
	if code := p.Wait(peerTimeout); code != 0 { // grace_period, although both are idle
		t.Errorf("exit code %d", code)
	}
	for _, s := range p.WaitSessions(2, nil) {
		if s.Reason != "shutdown" {
			t.Errorf("access log: %s", s.Line)
		}
	}
}
