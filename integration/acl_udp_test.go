package integration

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// serveDatagrams is an upstream that sends each datagram back.
func serveDatagrams(t testing.TB) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	done := make(chan struct{})
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	go func() {
		defer close(done)
		buf := make([]byte, 65536)
		for {
			n, from, err := conn.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = conn.WriteTo(buf[:n], from)
			}
		}
	}()
	return "udp/" + conn.LocalAddr().String()
}

func dialDatagrams(t testing.TB, from, addr string) *net.UDPConn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.Dial("udp", addr)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.UDPConn)
}

// answered tells whether a datagram with this number comes back in time. Those of before that come late are left out.
func answered(conn *net.UDPConn, number int, timeout time.Duration) bool {
	message := fmt.Sprintf("datagram %d", number)
	conn.SetDeadline(time.Now().Add(timeout))
	if _, err := conn.Write([]byte(message)); err != nil {
		return false
	}
	buf := make([]byte, 100)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return false
		}
		if string(buf[:n]) == message {
			return true
		}
	}
}

// startDatagramACL starts a gate+udp in front of an echo.
func startDatagramACL(t testing.TB, handler gate.JSON, opts ...gate.Option) (p *gate.Process, addr string) {
	t.Helper()
	addr = gate.ReserveAddr(t)
	return gate.Start(t, gate.Layer4(gate.Listen("gate+udp/"+addr, handler, gate.Forward(serveDatagrams(t)))), opts...), addr
}

// Each of the ways in which a client is denied sends nothing to it over UDP, but respond.
func TestACLDatagrams(t *testing.T) {
	t.Parallel()
	for name, onDeny := range map[string][]string{
		"default": nil, "close": {"close"}, "reset": {"reset"}, "drop": {"drop"}, "tarpit": {"tarpit", "10s"}, "respond": {"respond", "no"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			handler := acl("deny 127.0.0.2")
			if onDeny != nil {
				handler = handler.With("on_deny", onDeny)
			}
			p, addr := startDatagramACL(t, handler)
			denied, allowed := dialDatagrams(t, "127.0.0.2", addr), dialDatagrams(t, "127.0.0.3", addr)
			for range 3 {
				_, err := denied.Write([]byte("x"))
				must(t, err)
			}
			if !answered(allowed, 1, peerTimeout) {
				t.Error("the other client gets no answer")
			}
			denied.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			buf := make([]byte, 10)
			n, err := denied.Read(buf)
			switch {
			case name == "respond" && string(buf[:n]) != "no":
				t.Errorf("read %q (%v), want the text", buf[:n], err)
			case name != "respond" && !isTimeout(err):
				t.Errorf("read %q (%v), want nothing", buf[:n], err)
			}
			s := p.WaitSessions(1, func(s gate.Session) bool { return s.Status == 403 })[0]
			if s.Network != "udp" || s.Reason != "denied" || s.Rule != "deny 127.0.0.2" || s.ClientIP != "127.0.0.2" {
				t.Errorf("access log: %s", s.Line)
			}
		})
	}
}

// A ban cuts a session of datagrams within a second, and nobody else's; one that is lifted lets the client in again.
func TestACLBanOfDatagrams(t *testing.T) {
	t.Parallel()
	p, addr := startDatagramACL(t, acl("deny list bans"))
	banned, other := dialDatagrams(t, "127.0.0.2", addr), dialDatagrams(t, "127.0.0.3", addr)
	for n := range 5 {
		if !answered(banned, n, peerTimeout) || !answered(other, n, peerTimeout) {
			t.Fatal("no answer before the ban")
		}
	}
	start := time.Now()
	ban(t, p, "bans", "127.0.0.2", "")
	s := p.WaitSessions(1, func(s gate.Session) bool { return s.Reason == "list_changed" })[0]
	if took := time.Since(start); took > time.Second+tolerance || s.ClientIP != "127.0.0.2" || s.Rule != "deny list bans" {
		t.Errorf("after %v: %s", took, s.Line)
	}
	if answered(banned, 100, 300*time.Millisecond) {
		t.Error("an answer after the ban")
	}
	if !answered(other, 100, peerTimeout) {
		t.Error("the other client gets no answer")
	}
	if status, answer, err := p.Do(http.MethodDelete, "/portgate/lists/bans/entries/127.0.0.2", ""); err != nil || status != http.StatusNoContent {
		t.Fatalf("%d %s (%v)", status, answer, err)
	}
	number := 200
	gate.Eventually(t, peerTimeout, func() error {
		if number++; !answered(banned, number, 100*time.Millisecond) {
			return errors.New("no answer after the ban was lifted")
		}
		return nil
	})
}

// A denied source that sends 50,000 datagrams a second leaves other clients undisturbed, whether it sends from
// one port or from many.
func TestACLFloodOfDatagrams(t *testing.T) {
	const (
		perSecond = 50_000
		duration  = 3 * time.Second
	)
	for name, sockets := range map[string]int{"from one port": 1, "from many ports": 500} {
		t.Run(name, func(t *testing.T) {
			p, addr := startDatagramACL(t, acl("deny 127.0.0.2"), gate.WithoutRace())
			flood := make([]*net.UDPConn, sockets)
			for i := range flood {
				flood[i] = dialDatagrams(t, "127.0.0.2", addr)
			}
			var stop atomic.Bool
			sent := make(chan int)
			go func() {
				start, n := time.Now(), 0
				for ; !stop.Load(); n++ {
					flood[n%sockets].Write([]byte("flood"))
					if ahead := time.Duration(n)*time.Second/perSecond - time.Since(start); n%50 == 0 && ahead > 0 {
						<-time.After(ahead)
					}
				}
				sent <- n
			}()
			before, dropped := p.CPUTime(), droppedBySystem(t, addr)
			start := time.Now()
			lost, asked, slowest := 0, 0, time.Duration(0)
			for time.Since(start) < duration {
				// Each of them is new, so that it needs a session, and one client may have only so many.
				client := dialDatagrams(t, fmt.Sprintf("127.0.1.%d", 1+asked/10%250), addr)
				for range 10 {
					asked++
					at := time.Now()
					if !answered(client, asked, 2*tolerance) {
						lost++
					}
					slowest = max(slowest, time.Since(at))
				}
				client.Close()
			}
			stop.Store(true)
			elapsed := time.Since(start)
			n := <-sent
			cpu := p.CPUTime() - before
			t.Logf("%.0f datagrams/s from the denied source, %d exchanges of others: %d lost, slowest %v; CPU of the gate: %.1f µs per datagram",
				float64(n)/elapsed.Seconds(), asked, lost, slowest, float64(cpu.Microseconds())/float64(n))
			if n < perSecond/2 { // the stock network was dead after a thousand
				t.Errorf("only %d datagrams were sent", n)
			}
			if may := droppedBySystem(t, addr) - dropped; lost > may {
				t.Errorf("%d of %d exchanges of other clients were lost, of whose datagrams the system has dropped at most %d", lost, asked, may)
			}
		})
	}
}
