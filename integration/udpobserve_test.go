package integration

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// Every field of the access log, and what is counted while the session lasts and after it.
func TestUDPAccessLogFieldsAndMetrics(t *testing.T) {
	t.Parallel()
	p, addr, upstream := startDatagrams(t, "gate+udp", nil)
	refuses := gate.ReserveAddr(t)
	start := time.Now()
	client := dialUDP(t, addr)
	var from netip.AddrPort
	for range 3 {
		from = sendUp(t, 100, client, upstream)
	}
	sendDown(t, 5, 1000, upstream, from, client)
	listener, up, down := label("listener", addr), label("direction", "up"), label("direction", "down")
	counted := func(active, sessions int) {
		t.Helper()
		gate.Eventually(t, peerTimeout, func() error {
			m := p.Metrics()
			return errors.Join(
				equal(m, "caddy_portgate_datagrams_total", 3, listener, up), equal(m, "caddy_portgate_datagrams_total", 5, listener, down),
				equal(m, "caddy_portgate_bytes_total", 300, listener, up), equal(m, "caddy_portgate_bytes_total", 5000, listener, down),
				equal(m, "caddy_portgate_datagrams_dropped_total", 0), equal(m, "caddy_portgate_udp_sessions_evicted_total", 0),
				equal(m, "caddy_portgate_sessions_active", active, listener),
				equal(m, "caddy_portgate_sessions_total", sessions, listener, label("upstream", upstream.LocalAddr().String()), label("status", "200")),
				equal(m, "caddy_portgate_session_duration_seconds_count", sessions, listener),
			)
		})
	}
	counted(1, 0)
	// The counts outlive the config.
	p.Load(gate.Layer4(gate.ListenUDP(addr, gate.Forward(refuses))))
	counted(0, 1)
	s := p.WaitSession(port(client))
	want := gate.Session{
		ID: s.ID, Network: "udp", Listener: addr, ClientIP: "127.0.0.1", ClientPort: port(client), Upstream: upstream.LocalAddr().String(),
		BytesUp: 300, BytesDown: 5000, DatagramsUp: 3, DatagramsDown: 5, Duration: s.Duration, ConnectDuration: s.ConnectDuration,
		Status: 200, Reason: "drain", Line: s.Line,
	}
	if s != want || s.ID == "" || s.Duration <= 0 || s.Duration > time.Since(start).Seconds() || s.ConnectDuration > s.Duration {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
	mustHaveFields(t, s.Line, "datagrams_up", "datagrams_down")
	for sample := range p.Metrics() {
		if strings.HasPrefix(sample, "caddy_portgate_") && (strings.Contains(sample, "client") && !strings.Contains(sample, "client_limit") ||
			strings.Contains(sample, client.LocalAddr().String())) {
			t.Errorf("a label that a client decides about: %s", sample)
		}
	}
}

// Where there is no room for a session, the oldest one goes that has never had a reply, then the oldest one whose client has not spoken since.
// A client whose sessions all have spoken after a reply can't lose one, and gets no further one at its cap.
func TestUDPSessionsAreCapped(t *testing.T) {
	t.Parallel()
	const (
		total, each = 10, 4
		// The second message may overtake the news that the first was answered, the third can't.
		spoken = 3
	)
	addr := gate.ReserveAddr(t)
	upstream := serveUDP(t, func(from netip.AddrPort, b []byte) []byte {
		if string(b) == "silent" {
			return nil
		}
		return tellUDP("a")(from, b)
	})
	capped := func(total int) gate.JSON {
		return gate.Layer4(gate.ListenUDP(addr, gate.Forward(upstream))).
			WithApp("portgate", gate.JSON{"udp_max_sessions": total, "udp_max_sessions_per_client": each})
	}
	p := gate.Start(t, capped(total))
	open := func(ip string, messages int, silent bool) *net.UDPConn {
		t.Helper()
		conn := dialUDPFrom(t, ip, addr)
		if silent {
			mustWrite(t, conn, "silent")
		}
		for range messages {
			mustAsk(t, conn, "a")
		}
		return conn
	}
	mustCount := func(evicted, clientLimit, sessionLimit, active int) {
		t.Helper()
		gate.Eventually(t, peerTimeout, func() error {
			m := p.Metrics()
			dropped := func(reason string, want int) error {
				return equal(m, "caddy_portgate_datagrams_dropped_total", want, label("listener", addr), label("reason", reason))
			}
			return errors.Join(equal(m, "caddy_portgate_udp_sessions_evicted_total", evicted, label("listener", addr)),
				dropped("client_limit", clientLimit), dropped("session_limit", sessionLimit), equal(m, "caddy_portgate_sessions_active", active))
		})
	}
	mustHaveGone := func(conn *net.UDPConn) {
		t.Helper()
		if s := p.WaitSession(port(conn)); s.Reason != "evicted" || s.Status != 200 {
			t.Errorf("access log: %s", s.Line)
		}
	}
	var established []*net.UDPConn
	for range each {
		established = append(established, open("127.0.0.2", spoken, false))
	}
	mustCount(0, 0, 0, 4)
	refused := dialUDPFrom(t, "127.0.0.2", addr)
	mustWrite(t, refused, "one too many of this client")
	mustCount(0, 1, 0, 4)

	var silent []*net.UDPConn
	for i := range each + 2 {
		silent = append(silent, open("127.0.0.3", 0, true))
		mustCount(max(0, i+1-each), 1, 0, min(4+i+1, 8)) // one after the other, for an order
	}
	mustHaveGone(silent[0])
	mustHaveGone(silent[1])

	answered := []*net.UDPConn{open("127.0.0.4", 1, false), open("127.0.0.5", 1, false)}
	mustCount(2, 1, 0, total)
	// The table is full: four have no reply.
	for i := range each {
		established = append(established, open("127.0.0.6", spoken, false))
		mustHaveGone(silent[2+i])
	}
	mustCount(6, 1, 0, total)
	for i := range answered {
		established = append(established, open("127.0.0.7", spoken, false))
		mustHaveGone(answered[i])
	}
	mustCount(8, 1, 0, total)
	mustWrite(t, dialUDPFrom(t, "127.0.0.8", addr), "one too many of all")
	mustCount(8, 1, 1, total)
	mustBeSilent(t, refused, 10*time.Millisecond)
	askAll := func() {
		t.Helper()
		for _, conn := range established {
			mustAsk(t, conn, "a")
		}
	}
	askAll()
	// Another cap holds from the reload on, as soon as the new config accepts, and ends no session.
	p.Load(capped(total + 1))
	late := dialUDPFrom(t, "127.0.0.8", addr) // one client: another one would end the session of an attempt that came too late
	gate.Eventually(t, peerTimeout, func() error {
		late.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, _, err := ask(late, "message")
		return err
	})
	p.Load(capped(2))
	askAll()
	m := p.Metrics()
	must(t, errors.Join(equal(m, "caddy_portgate_sessions_active", total+1), equal(m, "caddy_portgate_udp_sessions_evicted_total", 8)))
}

func TestUDPSettingsInACaddyfile(t *testing.T) {
	t.Parallel()
	adapt := func(options string) (stdout, said string, code int) {
		path := writeFile(t, "Caddyfile", "{\n\tportgate {\n"+options+"\n\t}\n\tlayer4 {\n\t\tgate+udp/:5353 {\n\t\t\troute {\n\t\t\t\tforward udp/127.0.0.1:9000\n\t\t\t}\n\t\t}\n\t}\n}\n")
		stdout, stderr, code := gate.Run(t, gate.Plain, "adapt", "--config", path)
		return stdout, messages(stderr), code
	}
	stdout, said, code := adapt("\t\tudp_max_sessions 200\n\t\tudp_max_sessions_per_client 50")
	for _, want := range []string{`"portgate":{"udp_max_sessions":200,"udp_max_sessions_per_client":50}`, `"listen":["gate+udp/:5353"]`} {
		if code != 0 || !strings.Contains(stdout, want) {
			t.Errorf("exit code %d, want %s in %s\n%s", code, want, stdout, said)
		}
	}
	for options, want := range map[string]string{
		"\t\tudp_max_sessions 0":                                  `udp_max_sessions: "0": expected a whole number from 1 to 1000000`,
		"\t\tudp_max_sessions_per_client many":                    `udp_max_sessions_per_client: "many": expected a whole number from 1 to 1000000`,
		"\t\tudp_max_sessions 1\n\t\tudp_max_sessions 2":          "udp_max_sessions",
		"\t\tudp_max_session 1":                                   "udp_max_session",
		"\t\tudp_max_sessions\n\t\tudp_max_sessions_per_client 1": "udp_max_sessions: expected",
	} {
		if _, said, code := adapt(options); code == 0 || !strings.Contains(said, want) || !strings.Contains(said, "Caddyfile:") {
			t.Errorf("%s: exit code %d, want %q with the file and the line in %s", options, code, want, said)
		}
	}
}
