package integration

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// silentClients open connections from an address and say nothing, until the test ends. Those that are reset at once are only counted.
func silentClients(t *testing.T, from, to string, n int) (conns []net.Conn, resets int) {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
	for i := range n {
		conn, err := dialer.Dial("tcp", to)
		if errors.Is(err, syscall.ECONNRESET) {
			resets++
			continue
		}
		if err != nil {
			t.Fatalf("silent client %d: %v", i, err)
		}
		t.Cleanup(func() { conn.Close() })
		conns = append(conns, conn)
	}
	return conns, resets
}

// More silent clients than there are descriptors take neither the admin API nor the other ports away, and a ban ends them.
func TestSilentClientsLeaveDescriptorsToOthers(t *testing.T) {
	const (
		limit   = 1024
		clients = 1500
		most    = (limit - 51) / 8 * 7 / 2 // what the documentation says
	)
	upstream := serve(t, echo)
	attacked, other := gate.ReserveAddr(t), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(
		gate.Listen(attacked, acl("deny list bans"), gate.Forward(upstream)),
		gate.Listen(other, gate.Forward(upstream)),
		gate.ListenUDP(other, gate.Forward("udp/"+upstream)),
	), gate.WithFiles(limit), gate.WithoutRace())
	must(t, oneRequest(attacked))
	must(t, oneRequest(other))
	before := p.Baseline()

	silent, resets := silentClients(t, "127.0.0.2", attacked, clients)
	gate.Eventually(t, peerTimeout, func() error {
		if n := p.Metrics().Sum("caddy_portgate_sessions_active"); n != most {
			return fmt.Errorf("%v sessions, want %d", n, most)
		}
		return nil
	})
	wereReset := make([]bool, len(silent))
	gate.Eventually(t, peerTimeout, func() error {
		for i, conn := range silent {
			if wereReset[i] {
				continue
			}
			conn.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := conn.Read(make([]byte, 1)); errors.Is(err, syscall.ECONNRESET) {
				wereReset[i] = true
				resets++
			}
		}
		if resets != clients-most {
			return fmt.Errorf("%d clients were reset, want %d", resets, clients-most)
		}
		return nil
	})
	refused := p.WaitSessions(1, func(s gate.Session) bool { return s.Reason == "session_limit" })
	if s := refused[0]; s.Status != 429 || s.ClientIP != "127.0.0.2" || s.Listener != attacked {
		t.Errorf("access log: %s", s.Line)
	}
	for range 20 {
		must(t, oneRequest(other))
	}
	if errs := acceptErrors(p); errs > 0 {
		t.Errorf("descriptors ran out %d times", errs)
	}

	ban(t, p, "bans", "127.0.0.2", `{"ttl":"1h"}`)
	gate.Eventually(t, peerTimeout, func() error {
		if n := p.Metrics().Sum("caddy_portgate_sessions_active"); n != 0 {
			return fmt.Errorf("%v sessions are left", n)
		}
		return nil
	})
	must(t, oneRequest(attacked)) // from another address
	for _, conn := range silent {
		conn.Close()
	}
	before.MustReturn(t, peerTimeout)

	// All that was counted was given back: as many find room again.
	silentClients(t, "127.0.0.3", attacked, most)
	gate.Eventually(t, peerTimeout, func() error {
		if n := p.Metrics().Sum("caddy_portgate_sessions_active"); n != most {
			return fmt.Errorf("%v sessions, want %d", n, most)
		}
		return nil
	})
}

// A port of a stock network takes no descriptors that others need either: its sessions are counted when they are forwarded.
func TestSilentClientsOfAStockNetwork(t *testing.T) {
	const limit, clients, portion = 512, 700, 50
	upstream := serve(t, echo)
	attacked, other := gate.ReserveAddr(t), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(
		gate.Listen("tcp/"+attacked, gate.Forward(upstream)),
		gate.Listen(other, gate.Forward(upstream)),
	), gate.WithFiles(limit), gate.WithoutRace())
	must(t, oneRequest(attacked))
	must(t, oneRequest(other))
	before := p.Baseline()

	// A stock network accepts before any handler can refuse, and stops for good when there is no descriptor left. So not all come at a time.
	var silent []net.Conn
	for come := portion; come <= clients; come += portion {
		conns, _ := silentClients(t, "127.0.0.2", attacked, portion)
		silent = append(silent, conns...)
		gate.Eventually(t, peerTimeout, func() error {
			m := p.Metrics()
			if n := m.Sum("caddy_portgate_sessions_total") + m.Sum("caddy_portgate_sessions_active"); n < float64(2+come) {
				return fmt.Errorf("%v sessions of %d", n, 2+come)
			}
			return nil
		})
	}
	refused := p.WaitSessions(1, func(s gate.Session) bool { return s.Reason == "session_limit" })
	if s := refused[0]; s.Status != 429 || s.ClientIP != "127.0.0.2" {
		t.Errorf("access log: %s", s.Line)
	}
	for range 20 {
		must(t, oneRequest(other))
	}
	if n := p.Descriptors(); n > limit-16 {
		t.Errorf("%d of %d descriptors are open", n, limit)
	}
	for _, conn := range silent {
		conn.Close()
	}
	before.MustReturn(t, peerTimeout)
	must(t, oneRequest(attacked))
}

// A flood over UDP leaves descriptors to others as well.
func TestDatagramsLeaveDescriptorsToOthers(t *testing.T) {
	const limit = 256
	upstream := serve(t, echo)
	blackhole := gate.ReserveAddr(t)
	flooded, other := gate.ReserveAddr(t), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(
		gate.ListenUDP(flooded, gate.Forward("udp/"+blackhole)),
		gate.Listen(other, gate.Forward(upstream)),
	), gate.WithFiles(limit), gate.WithoutRace())
	for range 2000 {
		conn, err := net.Dial("udp", flooded)
		must(t, err)
		conn.Write([]byte("x"))
		conn.Close()
	}
	for range 20 {
		must(t, oneRequest(other))
		p.MustGet("/config/")
	}
}
