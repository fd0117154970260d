package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

const sessionsPath = "/portgate/sessions"

// livingSession is what the admin API tells of a session.
type livingSession struct {
	ID            string `json:"session_id"`
	State         string
	Network       string
	Listener      string
	ClientIP      string `json:"client_ip"`
	ClientPort    int    `json:"client_port"`
	Upstream      string
	BytesUp       int64  `json:"bytes_up"`
	BytesDown     int64  `json:"bytes_down"`
	RateUp        *int64 `json:"rate_up"`
	RateDown      *int64 `json:"rate_down"`
	DatagramsUp   *int64 `json:"datagrams_up"`
	DatagramsDown *int64 `json:"datagrams_down"`
	Duration      float64
	Idle          float64
	Replaced      bool
}

// livingSessions returns the sessions that a query of the admin API has.
func livingSessions(p *gate.Process, query string) (all []livingSession, err error) {
	text, err := p.Get(sessionsPath + query)
	if err == nil {
		err = json.Unmarshal([]byte(text), &all)
	}
	return all, err
}

// mustListSessions waits until the sessions of a query are those of these clients, by their ports.
func mustListSessions(t *testing.T, p *gate.Process, query string, clients ...net.Conn) (all []livingSession) {
	t.Helper()
	var want []int
	for _, client := range clients {
		want = append(want, port(client))
	}
	slices.Sort(want)
	gate.Eventually(t, peerTimeout, func() (err error) {
		if all, err = livingSessions(p, query); err != nil {
			return err
		}
		var got []int
		for _, s := range all {
			got = append(got, s.ClientPort)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("%s: clients with the ports %v, want %v", query, got, want)
		}
		return nil
	})
	return all
}

// mustClose closes sessions, which must be so many.
func mustClose(t *testing.T, p *gate.Process, query string, want int) {
	t.Helper()
	status, answer, err := p.Do(http.MethodDelete, sessionsPath+query, "")
	if err != nil || status != 200 || strings.TrimSpace(answer) != fmt.Sprintf(`{"closed":%d}`, want) {
		t.Fatalf("DELETE %s: %d %s (%v), want %d closed", query, status, answer, err, want)
	}
}

// mustBeClosed requires that clients are cut, and their entries in the access log.
func mustBeClosed(t *testing.T, p *gate.Process, clients ...net.Conn) {
	t.Helper()
	for _, client := range clients {
		if _, ok := client.(*net.TCPConn); ok {
			if n, err := client.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("read %d bytes (%v), want the end", n, err)
			}
		}
		if s := p.WaitSession(port(client)); s.Reason != "admin_closed" || s.Status != 200 {
			t.Errorf("access log: %s", s.Line)
		}
	}
}

// Sessions of TCP and UDP are found by each filter, and closed by it. Others go on.
func TestSessionsAreListedAndClosedByFilters(t *testing.T) {
	t.Parallel()
	a, b, udp := gate.ReserveAddr(t), gate.ReserveAddr(t), gate.ReserveAddr(t)
	toA, toB, toUDP := serve(t, echo), serve(t, echo), serveUDP(t, echoUDP)
	p := gate.Start(t, gate.Layer4(gate.Listen(a, gate.Forward(toA)), gate.Listen(b, gate.Forward(toB)), gate.ListenUDP(udp, gate.Forward("udp/"+toUDP))))
	from := func(ip, addr string) net.Conn {
		conn := mustDialFrom(t, ip, addr)
		conn.SetDeadline(time.Now().Add(peerTimeout))
		mustExchange(t, conn)
		return conn
	}
	fromUDP := func(ip string) net.Conn {
		conn := dialUDPFrom(t, ip, udp)
		mustExchange(t, conn)
		return conn
	}
	stays := from("127.0.9.9", b)
	defer mustExchange(t, stays)
	for _, c := range []struct {
		query string
		open  func() (closed, others []net.Conn)
	}{
		{"?client=127.0.3.0/24", func() (closed, others []net.Conn) {
			return []net.Conn{from("127.0.3.1", a), from("127.0.3.2", b), fromUDP("127.0.3.1")}, []net.Conn{from("127.0.4.1", a), fromUDP("127.0.4.1")}
		}},
		{"?client=127.0.3.1", func() (closed, others []net.Conn) {
			return []net.Conn{from("127.0.3.1", a)}, []net.Conn{from("127.0.3.2", a)}
		}},
		{"?listener=" + a, func() (closed, others []net.Conn) {
			return []net.Conn{from("127.0.3.1", a), from("127.0.3.1", a)}, []net.Conn{from("127.0.3.1", b), fromUDP("127.0.3.1")}
		}},
		{"?listener=" + udp, func() (closed, others []net.Conn) {
			return []net.Conn{fromUDP("127.0.3.1"), fromUDP("127.0.3.2")}, []net.Conn{from("127.0.3.1", a)}
		}},
		{"?upstream=" + toA, func() (closed, others []net.Conn) {
			return []net.Conn{from("127.0.3.1", a)}, []net.Conn{from("127.0.3.1", b), fromUDP("127.0.3.1")}
		}},
		{"?upstream=" + toUDP, func() (closed, others []net.Conn) {
			return []net.Conn{fromUDP("127.0.3.1")}, []net.Conn{from("127.0.3.1", a)}
		}},
		{"?client=127.0.3.1&network=udp", func() (closed, others []net.Conn) {
			return []net.Conn{fromUDP("127.0.3.1")}, []net.Conn{from("127.0.3.1", a)}
		}},
	} {
		closed, others := c.open()
		mustListSessions(t, p, c.query, closed...)
		mustClose(t, p, c.query, len(closed))
		mustBeClosed(t, p, closed...)
		mustListSessions(t, p, c.query)
		for _, other := range others {
			mustExchange(t, other)
			mustClose(t, p, "/"+mustListSessions(t, p, "?client="+clientOf(other)+"&network="+other.LocalAddr().Network(), other)[0].ID, 1)
		}
		mustBeClosed(t, p, others...)
	}
	if status, answer, err := p.Do(http.MethodDelete, sessionsPath, ""); status != 400 || err != nil || !strings.Contains(answer, "expected at least one of client") {
		t.Errorf("DELETE without a filter: %d %s (%v)", status, answer, err)
	}
}

func clientOf(conn net.Conn) string {
	host, _, _ := net.SplitHostPort(conn.LocalAddr().String())
	return host
}

// The filters by time, with times that tell sessions apart on a machine of any speed.
func TestSessionsAreClosedByAge(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(serve(t, echo)))))
	old := dial(t, addr)
	mustExchange(t, old)
	const age = 2 * time.Second
	var young net.Conn
	gate.Eventually(t, peerTimeout, func() error {
		all, err := livingSessions(p, "")
		if err == nil && (len(all) != 1 || all[0].Duration < 2*age.Seconds() || all[0].Idle < 2*age.Seconds()) {
			err = fmt.Errorf("%+v", all)
		}
		return err
	})
	mustExchange(t, old) // and is not idle any more
	young = dial(t, addr)
	mustExchange(t, young)
	duration := mustListSessions(t, p, "?client=127.0.0.1&sort=duration", old, young)
	between := (duration[0].Duration + duration[1].Duration) / 2
	mustClose(t, p, fmt.Sprintf("?older=%.3fs", between), 1)
	mustBeClosed(t, p, old)
	mustExchange(t, young)
	gate.Eventually(t, peerTimeout, func() error {
		all, err := livingSessions(p, "?idle=1s")
		if err == nil && len(all) != 1 {
			err = errors.New("the session is not idle yet")
		}
		return err
	})
	mustClose(t, p, "?idle=1s", 1)
	mustBeClosed(t, p, young)
	if all, err := livingSessions(p, "?older=1ns"); err != nil || len(all) > 0 {
		t.Errorf("%+v (%v)", all, err)
	}
}

// The bytes of a session that the kernel moves are current: they grow while it lasts, and are exact when it pauses. So is the rate.
func TestSplicedBytesOfLivingSessions(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"gate+tcp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			p, client, upstream := startPair(t, network, nil, gate.WithoutRace())
			var received, sent atomic.Int64
			var peers sync.WaitGroup
			stop := make(chan struct{})
			peers.Go(func() {
				block := make([]byte, mib)
				for {
					select {
					case <-stop:
						return
					default:
					}
					n, err := upstream.Write(block)
					if sent.Add(int64(n)); err != nil {
						t.Error(err)
						return
					}
				}
			})
			done := make(chan struct{})
			go func() {
				defer close(done)
				block := make([]byte, mib)
				for {
					n, err := client.Read(block)
					if received.Add(int64(n)); err != nil {
						return
					}
				}
			}()
			look := func() (s livingSession) {
				t.Helper()
				all, err := livingSessions(p, "")
				if err != nil || len(all) != 1 {
					t.Fatalf("%+v (%v)", all, err)
				}
				return all[0]
			}
			calls := p.Trace(func() {
				first := look()
				for range 3 {
					from := received.Load()
					for received.Load() < from+64*mib {
						<-time.After(time.Millisecond)
					}
					// What the client has is counted, and no more than was sent.
					second := look()
					if most := sent.Load() + mib; second.BytesDown < from+32*mib || second.BytesDown <= first.BytesDown || second.BytesDown > most {
						t.Errorf("%d bytes, after %d: the client has had %d and the upstream has sent at most %d", second.BytesDown, first.BytesDown, from+64*mib, most)
					}
					first = second
				}
			})
			if calls.Sum("splice") < 64*mib {
				t.Errorf("nothing was spliced: %v", calls.Count())
			}
			gate.Eventually(t, peerTimeout, func() error {
				if s := look(); s.RateDown == nil || *s.RateDown < mib || *s.RateUp != 0 || s.State != "forwarding" {
					return fmt.Errorf("%+v", s)
				}
				return nil
			})
			close(stop)
			peers.Wait()
			gate.Eventually(t, peerTimeout, func() error {
				if s := look(); s.BytesDown != sent.Load() || received.Load() != sent.Load() {
					return fmt.Errorf("%d bytes are counted, %d were sent and %d received", s.BytesDown, sent.Load(), received.Load())
				}
				return nil
			})
			client.Close()
			<-done
		})
	}
}

// Somebody else's reader of CSV finds in it what JSON has.
func TestSessionsAsCSV(t *testing.T) {
	t.Parallel()
	addr, udp := gate.ReserveAddr(t), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(serve(t, echo))), gate.ListenUDP(udp, gate.Forward("udp/"+serveUDP(t, echoUDP)))))
	clients := []net.Conn{dial(t, addr), dial(t, addr), dialUDP(t, udp)}
	for _, client := range clients {
		mustExchange(t, client)
	}
	want := mustListSessions(t, p, "", clients...)
	text := p.MustGet(sessionsPath + "?format=csv")
	cmd := exec.Command(program(t, "python3"), "-c", `import csv, json, sys; json.dump(list(csv.DictReader(sys.stdin, strict=True)), sys.stdout)`)
	cmd.Stdin = strings.NewReader(text)
	var got []map[string]string
	if err := json.Unmarshal([]byte(output(t, cmd)), &got); err != nil || len(got) != len(want) {
		t.Fatalf("%v: %d sessions in\n%s", err, len(got), text)
	}
	for i, s := range want {
		datagrams := ""
		if s.DatagramsUp != nil {
			datagrams = strconv.FormatInt(*s.DatagramsUp, 10)
		}
		for name, want := range map[string]string{
			"session_id": s.ID, "state": "forwarding", "network": s.Network, "listener": s.Listener, "client_ip": s.ClientIP, "client_port": strconv.Itoa(s.ClientPort),
			"upstream": s.Upstream, "bytes_up": strconv.FormatInt(s.BytesUp, 10), "bytes_down": strconv.FormatInt(s.BytesDown, 10), "datagrams_up": datagrams, "replaced": "false",
		} {
			if got[i][name] != want {
				t.Errorf("%s of session %d is %q, want %q", name, i, got[i][name], want)
			}
		}
	}
}

// What the API, the metrics, the access log and the clients have counted agrees to the byte, over reloads. Sessions that began before one go on and are shown as such.
func TestSessionsAgreeWithMetricsAndLogOverReloads(t *testing.T) {
	t.Parallel()
	const tcpSessions, udpSessions, reloads = 150, 30, 20
	addr, udp := gate.ReserveAddr(t), gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(addr, gate.Forward(serve(t, echo))), gate.ListenUDP(udp, gate.Forward("udp/"+serveUDP(t, echoUDP))))
	p := gate.Start(t, config)
	var clients []net.Conn
	for range tcpSessions {
		clients = append(clients, dial(t, addr))
	}
	for range udpSessions {
		clients = append(clients, dialUDP(t, udp))
	}
	type client struct {
		network string
		port    int // one of TCP may have the number of one of UDP
	}
	rounds := make(map[client]int64)
	for i := range reloads {
		for j, c := range clients {
			if i == 0 || (i+j)%7 == 0 {
				mustExchange(t, c)
				rounds[client{c.LocalAddr().Network(), port(c)}]++
			}
		}
		p.Load(config)
	}
	gate.Eventually(t, peerTimeout, func() error {
		all, err := livingSessions(p, "")
		if err != nil || len(all) != len(clients) {
			return fmt.Errorf("%d sessions (%v)", len(all), err)
		}
		for _, s := range all {
			if want := rounds[client{s.Network, s.ClientPort}] * int64(messageSize); s.BytesUp != want || s.BytesDown != want || !s.Replaced && s.Network == "tcp" {
				return fmt.Errorf("want %d bytes: %+v", want, s)
			}
		}
		return nil
	})
	var total int
	for _, n := range rounds {
		total += int(n) * messageSize
	}
	m := p.Metrics()
	must(t, errors.Join(
		equal(m, "caddy_portgate_bytes_total", total, label("direction", "up")), equal(m, "caddy_portgate_bytes_total", total, label("direction", "down")),
		equal(m, "caddy_portgate_sessions_active", len(clients)),
	))
	mustClose(t, p, "?all=true", len(clients))
	for _, s := range p.WaitSessions(len(clients), func(s gate.Session) bool { return s.Reason == "admin_closed" }) {
		if want := rounds[client{s.Network, s.ClientPort}] * int64(messageSize); s.BytesUp != want || s.BytesDown != want {
			t.Errorf("want %d bytes: %s", want, s.Line)
		}
	}
	mustListSessions(t, p, "")
}

// Lists and closings go on while sessions begin and end and configs are replaced: in the race binary.
func TestSessionsWhileEverythingChanges(t *testing.T) {
	t.Parallel()
	addr, upstream := gate.ReserveAddr(t), serve(t, echo)
	config := gate.Layer4(gate.Listen(addr, gate.Forward(upstream)))
	p := gate.Start(t, config)
	stays := dial(t, addr)
	stop := make(chan struct{})
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if conn, err := dialFrom("127.0.5.1", addr); err == nil {
					conn.SetDeadline(time.Now().Add(peerTimeout))
					_ = exchange(conn) // it may be closed meanwhile
					conn.Close()
				}
			}
		})
	}
	for i := range 20 {
		for _, query := range []string{"?sort=-rate_down&limit=5", "?limit=2", "?idle=1ms&client=127.0.5.0/24"} {
			_, err := livingSessions(p, query)
			must(t, err)
		}
		status, answer, err := p.Do(http.MethodDelete, sessionsPath+"?client=127.0.5.1", "")
		if err != nil || status != 200 {
			t.Errorf("%d %s (%v)", status, answer, err)
		}
		p.Load(config.With("logging", gate.JSON{"logs": gate.JSON{"unused": gate.JSON{"include": []string{fmt.Sprint("unused", i)}}}}))
		mustExchange(t, stays)
	}
	close(stop)
	work.Wait()
	mustListSessions(t, p, "", stays)
}

// Sessions in front of an HTTP site are there, too. The plain binary: see TestInFrontOfAnHTTPSite.
func TestSessionsInFrontOfAnHTTPSite(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.JSON{"apps": gate.JSON{"http": gate.JSON{"servers": gate.JSON{"site": gate.JSON{
		"listen":          []string{addr},
		"automatic_https": gate.JSON{"disable": true},
		"listener_wrappers": []gate.JSON{{"wrapper": "layer4", "routes": []gate.Route{{
			Match:  []gate.JSON{{"ssh": gate.JSON{}}},
			Handle: []gate.JSON{gate.Forward(serve(t, echo))},
		}}}},
	}}}}}, gate.WithoutRace())
	client := dial(t, addr)
	mustWrite(t, client, "SSH-2.0-test\r\n")
	mustRead(t, client, "SSH-2.0-test\r\n")
	s := mustListSessions(t, p, "?client=127.0.0.1", client)[0]
	mustClose(t, p, "?listener="+url.QueryEscape(s.Listener), 1)
	mustBeClosed(t, p, client)
}

// A page of another origin can neither read nor close sessions.
func TestSessionsAreClosedToOtherOrigins(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(serve(t, echo)))))
	client := dial(t, addr)
	mustExchange(t, client)
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", strings.TrimPrefix(p.Admin(), "unix/"))
	}}
	for name, headers := range map[string]map[string]string{
		"another origin": {"Origin": "http://attacker.example"},
		"no origin":      {"Origin": "null"},
		"no-cors":        {"Sec-Fetch-Mode": "no-cors"},
	} {
		for _, method := range []string{http.MethodGet, http.MethodDelete, http.MethodPost, http.MethodOptions} {
			req, err := http.NewRequest(method, "http://127.0.0.1"+sessionsPath+"?all=true", nil)
			must(t, err)
			for header, value := range headers {
				req.Header.Set(header, value)
			}
			resp, err := (&http.Client{Transport: transport, Timeout: peerTimeout}).Do(req)
			must(t, err)
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode/100 != 4 || strings.Contains(string(body), "session_id") || resp.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s with %s: %d %s", method, name, resp.StatusCode, body)
			}
		}
	}
	mustExchange(t, client)
}

// Nine thousand sessions of TCP and 500 of UDP: lists, filters and sums agree with what was sent, with the metrics and with the access log to the byte, over
// a hundred reloads, and a filter closes those that it names.
func TestSessionsByTheThousand(t *testing.T) {
	const udpSessions, reloads = 500, 100
	tcpSessions, _ := idleSessions(t, 9000, 1000)
	addr, udp := gate.ReserveAddr(t), gate.ReserveAddr(t)
	upstream := startProcess(t, nil, "echo").listen()
	config := gate.Layer4(gate.Listen(addr, gate.Forward(upstream)),
		gate.ListenUDP(udp, gate.Forward("udp/"+serveUDP(t, echoUDP)).With("idle_timeout", "24h"))).
		WithApp("portgate", gate.JSON{"max_sessions": 12_000, "access_log": gate.JSON{"queue": 20_000}})
	p := gate.Start(t, config, gate.WithoutRace())
	var clients []net.Conn
	for _, conn := range openMany(t, addr, tcpSessions) {
		clients = append(clients, conn)
	}
	clients = append(clients, askMany(t, udp, udpSessions)...)
	exchanges := int64(len(clients))
	for i := range reloads {
		for j := i; j < len(clients); j += reloads / 2 {
			mustExchange(t, clients[j])
			exchanges++
		}
		p.Load(config)
	}
	sums := func(query string) (n int, up, down int64) {
		all, err := livingSessions(p, query)
		must(t, err)
		for _, s := range all {
			up, down = up+s.BytesUp, down+s.BytesDown
		}
		return len(all), up, down
	}
	total := exchanges * int64(messageSize)
	gate.Eventually(t, peerTimeout, func() error {
		if n, up, down := sums(""); n != len(clients) || up != total || down != total {
			return fmt.Errorf("%d sessions with %d and %d bytes, want %d with %d", n, up, down, len(clients), total)
		}
		return nil
	})
	m := p.Metrics()
	must(t, errors.Join(
		equal(m, "caddy_portgate_bytes_total", int(total), label("direction", "up")), equal(m, "caddy_portgate_bytes_total", int(total), label("direction", "down")),
		equal(m, "caddy_portgate_sessions_active", len(clients)),
	))
	for query, want := range map[string]int{
		"?network=udp": udpSessions, "?listener=" + addr: tcpSessions, "?upstream=" + upstream: tcpSessions, "?client=127.0.0.1": len(clients),
		"?client=192.0.2.0/24": 0, "?limit=700&sort=-bytes_up": 700,
	} {
		if n, _, _ := sums(query); n != want {
			t.Errorf("%s: %d sessions, want %d", query, n, want)
		}
	}
	mustClose(t, p, "?network=udp&listener="+udp, udpSessions)
	mustClose(t, p, "?upstream="+upstream, tcpSessions)
	var up, down int64
	for _, s := range p.WaitSessions(len(clients), func(s gate.Session) bool { return s.Reason == "admin_closed" }) {
		up, down = up+s.BytesUp, down+s.BytesDown
	}
	if up != total || down != total {
		t.Errorf("the access log has %d and %d bytes, want %d", up, down, total)
	}
	if n, _, _ := sums(""); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}
