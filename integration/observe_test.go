package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// Metrics are made once per process but registered with each config's registry: two handlers in a config and many reloads
// must neither collide nor begin anew.
func TestMetricsOutliveReloadsAndAreSharedByHandlers(t *testing.T) {
	const reloads = 100
	a, b, upstream := gate.ReserveAddr(t), gate.ReserveAddr(t), serve(t, echo)
	other, refuses := serve(t, echo), gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(a, gate.Forward(upstream)), gate.Listen(b, gate.Forward(other, upstream)),
		gate.Listen(gate.ReserveAddr(t), gate.Forward(refuses)))
	p := gate.Start(t, config)
	held := []net.Conn{dial(t, a), dial(t, a), dial(t, b)} // to upstream twice, to other once
	for _, conn := range held {
		mustExchange(t, conn)
	}
	for i := 1; i <= reloads; i++ {
		must(t, oneRequest(a))
		p.Load(config)
		gate.Eventually(t, peerTimeout, func() error {
			m := p.Metrics()
			return errors.Join(
				equal(m, "caddy_portgate_sessions_total", i, label("listener", a), label("upstream", upstream), label("status", "200")),
				// Those of the two sessions under way count too.
				equal(m, "caddy_portgate_bytes_total", (i+2)*messageSize, label("listener", a), label("direction", "up")),
				equal(m, "caddy_portgate_bytes_total", (i+2)*messageSize, label("listener", a), label("direction", "down")),
				equal(m, "caddy_portgate_session_duration_seconds_count", i, label("listener", a)),
				equal(m, "caddy_portgate_connect_duration_seconds_count", i, label("upstream", upstream)),
				equal(m, "caddy_portgate_sessions_active", 2, label("listener", a)),
				equal(m, "caddy_portgate_sessions_active", 1, label("listener", b)),
			)
		})
	}
	for _, conn := range held {
		mustExchange(t, conn)
		conn.Close()
	}
	gate.Eventually(t, peerTimeout, func() error {
		m := p.Metrics()
		return errors.Join(
			equal(m, "caddy_portgate_sessions_active", 0),
			equal(m, "caddy_portgate_sessions_total", reloads+2, label("listener", a)),
			equal(m, "caddy_portgate_sessions_total", 1, label("listener", b), label("upstream", other)),
		)
	})
}

// equal compares the sum of a metric's samples that have these labels.
func equal(m gate.Metrics, name string, want int, labels ...string) error {
	if got := m.Sum(name, labels...); got != float64(want) {
		return fmt.Errorf("%s{%s} is %v, want %d", name, strings.Join(labels, ","), got, want)
	}
	return nil
}

func label(name, value string) string { return fmt.Sprintf("%s=%q", name, value) }

func TestMetricsCountFailuresAndNameNoClient(t *testing.T) {
	t.Parallel()
	addr, refuses := gate.ReserveAddr(t), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(refuses))))
	for range 3 {
		mustBeReset(t, p, addr, "")
	}
	metrics := p.Metrics()
	must(t, equal(metrics, "caddy_portgate_sessions_total", 3, label("listener", addr), label("upstream", refuses), label("status", "502")))
	must(t, equal(metrics, "caddy_portgate_sessions_active", 0))
	for sample := range metrics {
		if strings.HasPrefix(sample, "caddy_portgate_") && strings.Contains(sample, "client") {
			t.Errorf("a label that a client decides about: %s", sample)
		}
	}
}

// Every field of the access log, for every way in which a session ends that no other test looks at.
func TestAccessLogFields(t *testing.T) {
	t.Parallel()
	upstream, accepted := accepting(t)
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(upstream))))
	seen := make(map[string]bool)
	for reason, end := range map[string]func(client, upstream *net.TCPConn){
		"client_fin": func(client, upstream *net.TCPConn) {
			client.CloseWrite()
			io.Copy(io.Discard, upstream)
			upstream.Close()
		},
		"upstream_fin": func(client, upstream *net.TCPConn) {
			upstream.CloseWrite()
			io.Copy(io.Discard, client)
			client.Close()
		},
		"client_reset":   func(client, _ *net.TCPConn) { reset(client) },
		"upstream_reset": func(_, upstream *net.TCPConn) { reset(upstream) },
	} {
		start := time.Now()
		client, upstreamConn := pair(t, addr, accepted)
		clientPort := port(client)
		mustWrite(t, client, "four")
		mustRead(t, upstreamConn, "four")
		mustWrite(t, upstreamConn, "seven!!")
		mustRead(t, client, "seven!!")
		<-time.After(50 * time.Millisecond) // for a duration that is not next to nothing
		end(client, upstreamConn)
		s := p.WaitSession(clientPort)
		elapsed := time.Since(start).Seconds()
		want := gate.Session{
			ID: s.ID, Network: "tcp", Listener: addr, ClientIP: "127.0.0.1", ClientPort: clientPort, Upstream: upstream,
			BytesUp: 4, BytesDown: 7, Duration: s.Duration, ConnectDuration: s.ConnectDuration, Status: 200, Reason: reason, Line: s.Line,
		}
		if s != want {
			t.Errorf("%s: got  %+v\nwant %+v", reason, s, want)
		}
		if s.Duration < 0.05 || s.Duration > elapsed || s.ConnectDuration <= 0 || s.ConnectDuration > s.Duration {
			t.Errorf("%s: durations of a session of at most %.3fs: %s", reason, elapsed, s.Line)
		}
		if s.ID == "" || seen[s.ID] {
			t.Errorf("%s: session_id %q is empty or was given before", reason, s.ID)
		}
		seen[s.ID] = true
		mustHaveFields(t, s.Line)
	}
}

// mustHaveFields requires the level, the message and exactly the fields that are promised, and these besides.
func mustHaveFields(t *testing.T, line string, besides ...string) {
	t.Helper()
	var entry map[string]any
	must(t, json.Unmarshal([]byte(line), &entry))
	if entry["level"] != "info" || entry["msg"] != "session" || entry["logger"] != "layer4.log.access" {
		t.Errorf("level, message or logger: %s", line)
	}
	promised := strings.Fields(`level ts logger msg session_id network listener client_ip client_port upstream
		bytes_up bytes_down duration connect_duration status reason`)
	for _, name := range append(promised, besides...) {
		if _, ok := entry[name]; !ok {
			t.Errorf("no field %q: %s", name, line)
		}
		delete(entry, name)
	}
	if len(entry) > 0 {
		t.Errorf("more fields than promised, %v: %s", entry, line)
	}
}

// A config's own logging decides where the access log goes.
func TestAccessLogFollowsTheConfigsLogging(t *testing.T) {
	t.Parallel()
	upstream, addr := serve(t, echo), gate.ReserveAddr(t)
	file := t.TempDir() + "/access.log"
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(upstream))).With("logging", gate.JSON{"logs": gate.JSON{
		"default": gate.JSON{"exclude": []string{"layer4.log.access"}},
		"access": gate.JSON{
			"include": []string{"layer4.log.access"}, "writer": gate.JSON{"output": "file", "filename": file},
			"encoder": gate.JSON{"format": "json"},
		},
	}}))
	must(t, oneRequest(addr))
	gate.Eventually(t, peerTimeout, func() error { return fileContains(file, `"reason":"client_fin"`) })
	if sessions := p.Sessions(); len(sessions) > 0 {
		t.Errorf("in the default log: %s", sessions[0].Line)
	}
}

func fileContains(path, text string) error {
	data, err := os.ReadFile(path)
	if err == nil && !strings.Contains(string(data), text) {
		err = fmt.Errorf("%s: no %s in %q", path, text, data)
	}
	return err
}

// Nothing that a client sends, or does not send, ends the process or disturbs others.
func TestHostileClientsDisturbNobody(t *testing.T) {
	t.Parallel()
	addr, matching := gate.ReserveAddr(t), gate.ReserveAddr(t)
	upstream := serve(t, echo)
	matched := gate.Listen(matching, gate.Forward(upstream))
	matched.Routes[0].Match = []gate.JSON{{"http": []gate.JSON{}}, {"ssh": gate.JSON{}}, {"tls": gate.JSON{}}}
	matched.MatchingTimeout = "200ms"
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(upstream)), matched))
	must(t, oneRequest(addr))
	before := p.Baseline()
	friend := dial(t, addr)
	for _, target := range []string{addr, matching} {
		for _, attack := range []func(*net.TCPConn){
			func(c *net.TCPConn) { reset(c) },
			func(c *net.TCPConn) { c.Close() },
			func(c *net.TCPConn) { c.CloseWrite(); io.Copy(io.Discard, c) },
			func(c *net.TCPConn) {
				c.Write([]byte{0x16, 3, 1, 0xff, 0xff, 0, 0})
				c.CloseWrite()
				io.Copy(io.Discard, c)
			},
			func(c *net.TCPConn) { c.Write(make([]byte, 100_000)); reset(c) },
			func(c *net.TCPConn) { c.Write([]byte("GET / HTTP/1.1\r\n")); c.SetLinger(0); c.CloseWrite(); c.Close() },
		} {
			for range 20 {
				attack(dial(t, target))
				mustExchange(t, friend)
			}
		}
	}
	friend.Close()
	before.MustReturn(t, peerTimeout)
}

// A session's time begins when its connection is accepted, and not when a handler has heard enough, or its turn has come.
func TestDurationCountsFromAccept(t *testing.T) {
	t.Parallel()
	upstream := serve(t, echo)
	header := gate.JSON{"handler": "accept_proxy", "from": []string{"127.0.0.0/8"}}
	for _, network := range []string{"gate+tcp", "tcp"} {
		t.Run("header on "+network, func(t *testing.T) {
			t.Parallel()
			for i, before := range [][]gate.JSON{nil, {rateLimit(`{"connections": [{"rate": "1000/s"}], "algorithm": "leaky_bucket"}`)}} { // direct, and not
				addr := gate.ReserveAddr(t)
				p := gate.Start(t, gate.Layer4(gate.Listen(network+"/"+addr, append(before, header, gate.Forward(upstream))...)))
				client, later := dial(t, addr), dial(t, addr)
				speak := func(conn net.Conn, from int) {
					mustWrite(t, conn, fmt.Sprintf("PROXY TCP4 192.0.2.1 192.0.2.2 %d 80\r\n", from))
					mustExchange(t, conn)
				}
				speak(later, 9) // so the first one has been accepted, too
				start := time.Now()
				<-time.After(hesitates)
				speak(client, 1000+i)
				least := time.Since(start)
				client.Close()
				lasted(t, p, 1000+i, least)
			}
		})
		t.Run("leaky bucket on "+network, func(t *testing.T) {
			t.Parallel()
			p, addr := startLimited(t, network, `{"connections": [{"rate": "20/m", "per": "all"}], "algorithm": "leaky_bucket", "max_delay": "1m"}`)
			mustExchange(t, dial(t, addr))
			client := dial(t, addr)
			gate.Eventually(t, peerTimeout, func() error { return equal(p.Metrics(), "caddy_portgate_ratelimit_waiting", 1) })
			start := time.Now()
			mustExchange(t, client)
			least := time.Since(start)
			client.Close()
			lasted(t, p, port(client), least)
		})
	}
}

// hesitates is how long a client waits before it speaks.
const hesitates = 300 * time.Millisecond

// lasted requires a duration of a session in the access log.
func lasted(t *testing.T, p *gate.Process, clientPort int, least time.Duration) {
	t.Helper()
	if s := p.WaitSession(clientPort); s.Duration < (least - hesitates/2).Seconds() {
		t.Errorf("the duration of a session that lasted at least %v: %s", least, s.Line)
	}
}

// What a matcher waits for counts, too, on a network that tells when it accepted.
func TestDurationCountsMatchers(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	server := gate.Listen(addr, gate.Forward(serve(t, echo)))
	server.Routes[0].Match = []gate.JSON{{"ssh": gate.JSON{}}}
	p := gate.Start(t, gate.Layer4(server))
	client, later := dial(t, addr), dial(t, addr)
	speak := func(conn net.Conn) {
		mustWrite(t, conn, "SSH-2.0-x\r\n")
		mustRead(t, conn, "SSH-2.0-x\r\n")
	}
	speak(later) // so the first one has been accepted, too
	start := time.Now()
	<-time.After(hesitates)
	speak(client)
	least := time.Since(start)
	client.Close()
	lasted(t, p, port(client), least)
}
