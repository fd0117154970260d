package integration

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// mustLoop waits until a session was refused because it goes round in circles, and all of the loop have ended.
func mustLoop(t *testing.T, p *gate.Process) {
	t.Helper()
	gate.Eventually(t, peerTimeout, func() error {
		m := p.Metrics()
		if m.Sum("caddy_portgate_sessions_total", label("status", "508")) == 0 {
			return errors.New("no session has the status 508")
		}
		return equal(m, "caddy_portgate_sessions_active", 0)
	})
	for _, s := range p.Sessions() {
		if s.Reason == "loop" && s.Status == 508 {
			return
		}
	}
	t.Error("no entry of the access log has the reason loop")
}

// A client of an SNI proxy names the proxy itself: it is reset after a few hops, and the other port of a process with few
// descriptors does not notice.
func TestLoopThroughSNI(t *testing.T) {
	t.Parallel()
	looping, addr := gate.ReserveAddr(t), gate.ReserveAddr(t)
	_, sniPort, err := net.SplitHostPort(looping)
	must(t, err)
	server := gate.Listen(looping, gate.Forward("{l4.tls.server_name}:"+sniPort))
	server.Routes[0].Match = []gate.JSON{{"tls": gate.JSON{}}}
	p := gate.Start(t, gate.Layer4(server, gate.Listen(addr, gate.Forward(serve(t, echo)))), gate.WithFiles(256))
	baseline := p.Descriptors()
	const clients = 20
	for range clients {
		dialer := &net.Dialer{Timeout: peerTimeout}
		if conn, err := tls.DialWithDialer(dialer, "tcp", looping, &tls.Config{ServerName: "localhost"}); err == nil {
			conn.Close()
			t.Error("a handshake with nobody has succeeded")
		}
		must(t, oneRequest(addr))
	}
	mustLoop(t, p)
	if n := p.Metrics().Sum("caddy_portgate_sessions_total", label("listener", looping)); n > 12*clients {
		t.Errorf("%v sessions of %d clients", n, clients)
	}
	gate.Eventually(t, peerTimeout, func() error {
		if n := p.Descriptors(); n > baseline+5 {
			return fmt.Errorf("%d descriptors, were %d", n, baseline)
		}
		return nil
	})
}

// Two ports that lead to each other, by TCP and by UDP, on the fast path and through layer4.
func TestLoopThroughASecondPort(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"gate+tcp", "tcp", "gate+udp", "udp"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			one, other := gate.ReserveAddr(t), gate.ReserveAddr(t)
			p := gate.Start(t, gate.Layer4(
				gate.Listen(network+"/"+one, gate.Forward(other).With("idle_timeout", "2s")),
				gate.Listen(network+"/"+other, gate.Forward(one).With("idle_timeout", "2s"))))
			if strings.HasSuffix(network, "tcp") {
				for range 10 {
					conn, err := net.DialTimeout("tcp", one, peerTimeout)
					if err != nil {
						continue // was reset before this returned
					}
					conn.SetDeadline(time.Now().Add(peerTimeout))
					if n, err := conn.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("got %d bytes, %v, want the end", n, err)
					}
					conn.Close()
				}
			} else {
				mustWrite(t, dialUDP(t, one), "round and round")
			}
			mustLoop(t, p)
			m := p.Metrics()
			// More than 6 of a client only where the last hop is found out after it has begun, see hops.Begin.
			if n := m.Sum("caddy_portgate_sessions_total"); n > 120 {
				t.Errorf("%v sessions", n)
			}
			if n := m.Sum("caddy_portgate_datagrams_total", label("direction", "up")); n > 6 {
				t.Errorf("one datagram has come in %v times", n)
			}
		})
	}
}

// Unix sockets that lead to each other, or to a port that leads back to them. A client is turned away after a few hops, and the other port of a
// process with few descriptors does not notice.
func TestLoopThroughUnixSockets(t *testing.T) {
	t.Parallel()
	for name, ports := range map[string]bool{"unix and unix": false, "unix and TCP": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const clients = 20
			dir, addr := t.TempDir(), gate.ReserveAddr(t)
			one, other := "unix/"+filepath.Join(dir, "one"), "unix/"+filepath.Join(dir, "other")
			between := []gate.Server{gate.Listen(other, gate.Forward(one))}
			if ports {
				third := gate.ReserveAddr(t)
				between = []gate.Server{gate.Listen(other, gate.Forward(third)), gate.Listen("gate+tcp/"+third, gate.Forward(one))}
			}
			p := gate.Start(t, gate.Layer4(append(between, gate.Listen(one, gate.Forward(other)),
				gate.Listen(addr, gate.Forward(serve(t, echo))))...), gate.WithFiles(256))
			must(t, oneRequest(addr))
			baseline := p.Descriptors()
			for range clients {
				conn, err := net.Dial("unix", strings.TrimPrefix(one, "unix/"))
				must(t, err)
				conn.SetDeadline(time.Now().Add(peerTimeout))
				if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("got %d bytes, %v, want the end", n, err)
				}
				conn.Close()
				must(t, oneRequest(addr))
			}
			mustLoop(t, p)
			if n := p.Metrics().Sum("caddy_portgate_sessions_total"); n > 10*clients {
				t.Errorf("%v sessions of %d clients", n, clients)
			}
			gate.Eventually(t, peerTimeout, func() error {
				if n := p.Descriptors(); n > baseline+5 {
					return fmt.Errorf("%d descriptors, were %d", n, baseline)
				}
				return nil
			})
		})
	}
}

// A chain of forwards is no loop.
func TestChainOfForwards(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"gate+tcp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			first, second, third, fourth := gate.ReserveAddr(t), gate.ReserveAddr(t), gate.ReserveAddr(t), gate.ReserveAddr(t)
			listen := func(addr, to string) gate.Server { return gate.Listen(network+"/"+addr, gate.Forward(to)) }
			p := gate.Start(t, gate.Layer4(listen(first, second), listen(second, third), listen(third, fourth), listen(fourth, serve(t, echo))))
			for range 50 {
				must(t, oneRequest(first))
			}
			if n := p.Metrics().Sum("caddy_portgate_sessions_total", label("status", "508")); n > 0 {
				t.Errorf("%v sessions are taken for a loop", n)
			}
		})
	}
}
