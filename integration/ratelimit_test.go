package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// rateLimit is a rate_limit handler with options as JSON has them.
func rateLimit(options string) gate.JSON {
	var handler gate.JSON
	if err := json.Unmarshal([]byte(options), &handler); err != nil {
		panic(err)
	}
	return handler.With("handler", "rate_limit")
}

// startLimited starts a gate in front of an echo.
func startLimited(t testing.TB, network, options string, opts ...gate.Option) (p *gate.Process, addr string) {
	t.Helper()
	addr = gate.ReserveAddr(t)
	return gate.Start(t, gate.Layer4(gate.Listen(network+"/"+addr, rateLimit(options), gate.Forward(serve(t, echo)))), opts...), addr
}

// admittedOf returns how many of n connections from an address are let in, one after another.
func admittedOf(t testing.TB, n int, from, addr string) (admitted int) {
	t.Helper()
	for range n {
		in, err := letIn(from, addr)
		must(t, err)
		if in {
			admitted++
		}
	}
	return admitted
}

// 100 a second with a burst of 200 admit what they should, under 8 clients that never pause: never more than there has been time
// for, and never less than there had been when somebody was refused for the last time.
func TestRateIsAccurate(t *testing.T) {
	for _, network := range []string{"gate+tcp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			p, addr := startLimited(t, network, `{"connections": [{"rate": "100/s", "burst": 200, "per": "all"}]}`, gate.WithoutRace())
			var admitted, refused, lastRefused atomic.Int64
			var clients sync.WaitGroup
			start := time.Now()
			const lasts = 10 * time.Second
			if in, err := letIn("127.0.0.1", addr); err != nil || !in {
				t.Fatalf("the first is let in: %t (%v)", in, err)
			}
			first := time.Since(start) // the bucket fills from then on, or from a little before
			admitted.Add(1)
			for range 8 {
				clients.Go(func() {
					for time.Since(start) < lasts {
						asked := time.Since(start)
						if in, err := letIn("127.0.0.1", addr); err != nil {
							t.Error(err)
						} else if in {
							admitted.Add(1)
						} else {
							refused.Add(1)
							lastRefused.Store(max(lastRefused.Load(), int64(asked)))
						}
					}
				})
			}
			clients.Wait()
			most := 200 + 100*time.Since(start).Seconds() + 1
			least := 200 + 100*(time.Duration(lastRefused.Load())-first).Seconds() - 1
			if n := float64(admitted.Load()); n < least || n > most || refused.Load() == 0 {
				t.Errorf("admitted %v, want %.0f to %.0f; %d refused", n, least, most, refused.Load())
			}
			m := p.Metrics()
			must(t, errors.Join(
				equal(m, "caddy_portgate_ratelimit_decisions_total", int(admitted.Load()), label("result", "admitted"), label("limit", "connections 100/s per all")),
				equal(m, "caddy_portgate_ratelimit_decisions_total", int(refused.Load()), label("result", "refused")),
				equal(m, "caddy_portgate_sessions_total", int(refused.Load()), label("status", "429")),
			))
		})
	}
}

// Sessions one after another are all served; slots come back in every way in which a session can end, and nothing is held at rest.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	onEachNetwork(t, func(t *testing.T, network string) {
		const sequential = 10_000
		upstream, accepted := accepting(t)
		addr, closed := gate.ReserveAddr(t), gate.ReserveAddr(t)
		limited := rateLimit(`{"concurrent": [{"max": 1}]}`)
		echoing := gate.ReserveAddr(t)
		config := gate.Layer4(
			gate.Listen(network+"/"+addr, limited.With("name", "one"), gate.Forward(upstream)),
			gate.Listen(network+"/"+closed, limited.With("name", "closed"), gate.Forward(gate.ReserveAddr(t))),
			gate.Listen(network+"/"+echoing, rateLimit(`{"concurrent": [{"max": 5}]}`), gate.Forward(serve(t, echo))),
		)
		p := gate.Start(t, config, gate.WithoutRace())
		for i := range sequential {
			conn := dial(t, echoing)
			if err := exchange(conn); err != nil {
				t.Fatalf("session %d: %v", i, err)
			}
			conn.CloseWrite()
			mustEnd(t, conn)
			conn.Close()
		}
		for name, end := range map[string]func(client, upstream *net.TCPConn){
			"client FIN":     func(client, upstream *net.TCPConn) { client.CloseWrite(); mustEnd(t, upstream); upstream.Close() },
			"upstream FIN":   func(client, upstream *net.TCPConn) { upstream.CloseWrite(); mustEnd(t, client); client.Close() },
			"client reset":   func(client, _ *net.TCPConn) { reset(client) },
			"upstream reset": func(_, upstream *net.TCPConn) { reset(upstream) },
		} {
			var client, server *net.TCPConn
			gate.Eventually(t, peerTimeout, func() error { // the end of the one before may not be known yet
				conn := dial(t, addr)
				select {
				case server = <-accepted:
					client = conn
					return nil
				case <-time.After(200 * time.Millisecond):
					conn.Close()
					return fmt.Errorf("before %s: refused", name)
				}
			})
			if in, err := letIn("127.0.0.1", addr); err != nil || in {
				t.Errorf("a second one is let in: %t (%v)", in, err)
			}
			end(client, server)
		}
		for i := range 10 { // no upstream: each session ends at once
			conn, err := net.DialTimeout("tcp", closed, peerTimeout)
			if err == nil {
				conn.SetDeadline(time.Now().Add(peerTimeout))
				mustEnd(t, conn)
				conn.Close()
			}
			p.WaitSessions(i+1, func(s gate.Session) bool { return s.Status == 502 })
		}
		gate.Eventually(t, peerTimeout, func() error {
			m := p.Metrics()
			return errors.Join(equal(m, "caddy_portgate_ratelimit_keys", 0), equal(m, "caddy_portgate_sessions_active", 0))
		})
		if s := p.WaitSessions(4, func(s gate.Session) bool { return s.Status == 429 })[0]; s.Reason != "limited" || s.Rule != "one: concurrent 1 per ip" {
			t.Errorf("access log: %s", s.Line)
		}
	})
}

// A reload gives nobody a fresh burst, also one that changes the rate, and sessions from before are counted.
func TestLimitsOutliveReloads(t *testing.T) {
	t.Parallel()
	addr, upstream := gate.ReserveAddr(t), gate.Forward(serve(t, echo))
	config := func(options string) gate.JSON {
		return gate.Layer4(gate.Listen(addr, rateLimit(options), upstream))
	}
	const before = `{"connections": [{"rate": "1/h", "burst": 5}], "concurrent": [{"max": 3, "per": "all"}]}`
	p := gate.Start(t, config(before))
	held := dial(t, addr)
	mustExchange(t, held)
	if n := admittedOf(t, 6, "127.0.0.1", addr); n != 4 {
		t.Errorf("admitted %d more, want 4", n)
	}
	for _, options := range []string{
		before, `{"connections": [{"rate": "1/d", "burst": 5}], "concurrent": [{"max": 3, "per": "all"}]}`,
		`{"connections": [{"rate": "2/h", "burst": 3}], "concurrent": [{"max": 1, "per": "all"}]}`,
	} {
		p.Load(config(options))
		if n := admittedOf(t, 2, "127.0.0.1", addr); n != 0 {
			t.Errorf("%s: %d are let in after the reload", options, n)
		}
	}
	if n := admittedOf(t, 1, "127.0.0.2", addr); n != 0 {
		t.Error("the session from before is not counted any more")
	}
	held.CloseWrite()
	mustEnd(t, held)
	gate.Eventually(t, peerTimeout, func() error {
		if admittedOf(t, 1, "127.0.0.3", addr) != 1 {
			return errors.New("the slot of a session from before has not come back")
		}
		return nil
	})
}

// Handlers that are written alike share their buckets, also after reloads, which provision them in any order.
func TestLimitsThatAreWrittenAlikeAreOne(t *testing.T) {
	t.Parallel()
	upstream := gate.Forward(serve(t, echo))
	var addrs []string
	var listeners []gate.Server
	for range 5 {
		addr := gate.ReserveAddr(t)
		addrs = append(addrs, addr)
		listeners = append(listeners, gate.Listen(addr, rateLimit(`{"connections": [{"rate": "1/h", "burst": 5}]}`), upstream))
	}
	config := gate.Layer4(listeners...)
	p := gate.Start(t, config)
	for _, addr := range addrs {
		if n := admittedOf(t, 1, "127.0.0.1", addr); n != 1 {
			t.Errorf("%s: a client of five is refused", addr)
		}
	}
	for range 10 {
		for _, addr := range addrs {
			if n := admittedOf(t, 1, "127.0.0.1", addr); n != 0 {
				t.Fatalf("%s: a sixth client is let in", addr)
			}
		}
		p.Load(config)
	}
}

// leaky_bucket lets connections wait for their turn.
func TestLeakyBucket(t *testing.T) {
	t.Parallel()
	onEachNetwork(t, func(t *testing.T, network string) {
		_, addr := startLimited(t, network, `{"connections": [{"rate": "10/s"}], "algorithm": "leaky_bucket", "max_delay": "10s"}`)
		const clients = 20
		start := time.Now()
		var all sync.WaitGroup
		for range clients {
			all.Go(func() {
				if in, err := letIn("127.0.0.1", addr); err != nil || !in {
					t.Errorf("let in: %t (%v)", in, err)
				}
			})
		}
		all.Wait()
		if took := time.Since(start); took < 1900*time.Millisecond {
			t.Errorf("%d connections at 10/s took %v", clients, took)
		}
	})
}

// Clients that leave while they wait free their descriptors and their turns at once: the one that comes next waits as if they
// had not come. What ends while others wait, a reload or the process, does not wait for them.
func TestClientsThatLeaveALeakyBucket(t *testing.T) {
	t.Parallel()
	onEachNetwork(t, func(t *testing.T, network string) {
		const clients = 400
		addr := gate.ReserveAddr(t)
		config := gate.Layer4(gate.Listen(network+"/"+addr, rateLimit(`{"name": "calm", "connections": [{"rate": "1/s"}], "algorithm": "leaky_bucket", "max_delay": "1m"}`),
			gate.Forward(serve(t, echo))))
		p := gate.Start(t, config)
		if in, err := letIn("127.0.0.1", addr); err != nil || !in {
			t.Fatalf("let in: %t (%v)", in, err)
		}
		before := p.Baseline()
		waiting := func(want int) error {
			return equal(p.Metrics(), "caddy_portgate_ratelimit_waiting", want, label("name", "calm"))
		}
		for range 10 {
			var all []*net.TCPConn
			for range clients / 10 {
				all = append(all, dial(t, addr))
			}
			gate.Eventually(t, peerTimeout, func() error { // those whose turn has come wait no more
				if n := p.Metrics().Sum("caddy_portgate_ratelimit_waiting"); n < clients/10-5 {
					return fmt.Errorf("%v wait", n)
				}
				return nil
			})
			for i, conn := range all {
				if i%2 == 0 {
					must(t, conn.SetLinger(0))
				}
				conn.Close()
			}
			gate.Eventually(t, peerTimeout, func() error { return waiting(0) })
		}
		start := time.Now()
		if in, err := letIn("127.0.0.1", addr); err != nil || !in {
			t.Errorf("the next one is let in: %t (%v)", in, err)
		}
		if took := time.Since(start); took > 10*time.Second { // its fair time is a second, and it was 40
			t.Errorf("the next one has waited %v", took)
		}
		before.MustReturn(t, peerTimeout)
		if s := p.WaitSessions(1, func(s gate.Session) bool { return s.Reason == "client_gone" })[0]; s.Status != 429 || s.Rule != "calm: connections 1/s per ip" {
			t.Errorf("access log: %s", s.Line)
		}

		var late []*net.TCPConn
		for range 10 {
			late = append(late, dial(t, addr))
		}
		gate.Eventually(t, peerTimeout, func() error {
			if n := p.Metrics().Sum("caddy_portgate_ratelimit_waiting"); n < 5 {
				return fmt.Errorf("%v wait", n)
			}
			return nil
		})
		p.Load(config)
		mustExchange(t, late[0]) // goes on as its own config says
		start = time.Now()
		p.Stop()
		if took := time.Since(start); took > 10*time.Second { // all ten would take as long, and 40 more a minute
			t.Errorf("the process has taken %v to stop", took)
		}
	})
}

// Every connection that waits when the process stops is in the access log, with that as the reason.
func TestStopTellsOfThoseWhoWait(t *testing.T) {
	t.Parallel()
	const clients = 50
	limited := rateLimit(`{"name": "calm", "connections": [{"rate": "1/s", "per": "all"}], "algorithm": "leaky_bucket", "max_delay": "1m"}`)
	for _, network := range []string{"gate+tcp", "tcp", "gate+udp"} {
		t.Run(network, func(t *testing.T) {
			addr := gate.ReserveAddr(t)
			upstream := serve(t, echo)
			if network == "gate+udp" {
				upstream = serveUDP(t, echoUDP)
			}
			p := gate.Start(t, gate.Layer4(gate.Listen(network+"/"+addr, limited, gate.Forward(upstream))))
			for range clients {
				if network == "gate+udp" {
					mustWrite(t, dialUDP(t, addr), "x")
				} else {
					dial(t, addr)
				}
			}
			gate.Eventually(t, peerTimeout, func() error {
				return equal(p.Metrics(), "caddy_portgate_ratelimit_decisions_total", clients-1, label("result", "delayed"))
			})
			waiting := int(p.Metrics().Sum("caddy_portgate_ratelimit_waiting"))
			p.Terminate()
			if code := p.Wait(peerTimeout); code != 0 {
				t.Errorf("exit code %d", code)
			}
			reasons := make(map[string]int)
			for _, s := range p.WaitSessions(clients, nil) {
				reasons[fmt.Sprint(s.Status, " ", s.Reason)]++
			}
			if n := reasons["429 shutdown"]; n > waiting || n < waiting-10 || reasons["429 client_gone"] > 0 { // some may have gone on meanwhile
				t.Errorf("%d were waiting; in the access log: %v", waiting, reasons)
			}
		})
	}
}

// A UDP session whose client is silent waits for its turn, too, with what was sent, and one that the listener ends frees it.
func TestUDPSessionsInALeakyBucket(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	config := gate.Layer4(gate.ListenUDP(addr, rateLimit(`{"name": "calm", "connections": [{"rate": "1/s"}], "algorithm": "leaky_bucket", "max_delay": "1m"}`),
		gate.Forward(serveUDP(t, echoUDP)))).WithApp("portgate", gate.JSON{"udp_max_sessions": 10})
	p := gate.Start(t, config)
	mustExchange(t, dialUDP(t, addr))
	for i := range 50 { // of which each evicts another
		mustWrite(t, dialUDP(t, addr), "x")
		gate.Eventually(t, peerTimeout, func() error {
			if n := p.Metrics().Sum("caddy_portgate_ratelimit_decisions_total"); n < float64(i+2) {
				return fmt.Errorf("%v have come", n)
			}
			return nil
		})
	}
	gate.Eventually(t, peerTimeout, func() error {
		m := p.Metrics()
		if n := m.Sum("caddy_portgate_ratelimit_decisions_total", label("result", "gone")); n < 5 { // and 40 where nobody's turn comes meanwhile
			return fmt.Errorf("%v are gone", n)
		}
		if n := m.Sum("caddy_portgate_ratelimit_waiting"); n > 10 {
			return fmt.Errorf("%v wait", n)
		}
		return nil
	})
	start := time.Now()
	last := dialUDP(t, addr)
	if !answered(last, 1, time.Minute) {
		t.Error("the last one is not served")
	}
	if took := time.Since(start); took > 20*time.Second { // and it was 50
		t.Errorf("the last one has waited %v", took)
	}
	p.WaitSessions(1, func(s gate.Session) bool { return s.Status == 429 && s.Reason == "evicted" })
	p.Load(gate.Layer4()) // nobody has the listener any more
	gate.Eventually(t, peerTimeout, func() error { return equal(p.Metrics(), "caddy_portgate_sessions_active", 0) })
}

// What on_limit says is done.
func TestOnLimit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ onLimit, want string }{
		{`["close"]`, ""}, {`["respond", "later"]`, "later"}, {`["reset"]`, "reset"}, {`["drop"]`, "silence"},
	} {
		t.Run(c.onLimit, func(t *testing.T) {
			t.Parallel()
			_, addr := startLimited(t, "gate+tcp", `{"connections": [{"rate": "1/h", "burst": 1}], "on_limit": `+c.onLimit+`}`)
			if admittedOf(t, 1, "127.0.0.1", addr) != 1 {
				t.Fatal("the first is refused")
			}
			conn, err := net.DialTimeout("tcp", addr, peerTimeout)
			if c.want == "reset" && errors.Is(err, syscall.ECONNRESET) {
				return
			}
			must(t, err)
			defer conn.Close()
			timeout := peerTimeout
			if c.want == "silence" {
				timeout = 2 * time.Second
			}
			conn.SetDeadline(time.Now().Add(timeout))
			got, err := io.ReadAll(conn)
			switch {
			case c.want == "reset" && errors.Is(err, syscall.ECONNRESET):
			case c.want == "silence" && isTimeout(err):
			case err == nil && string(got) == c.want:
			default:
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

// In front of an HTTP site, a client that is limited gets a complete response, and a slot comes back when the site closes the connection.
func TestInFrontOfSites(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	site := func(handler gate.JSON) gate.JSON {
		return gate.JSON{"apps": gate.JSON{"http": gate.JSON{"servers": gate.JSON{"site": gate.JSON{
			"listen":            []string{addr},
			"automatic_https":   gate.JSON{"disable": true},
			"listener_wrappers": []gate.JSON{{"wrapper": "layer4", "routes": []gate.Route{{Handle: []gate.JSON{handler}}}}},
			"routes":            []gate.JSON{{"handle": []gate.JSON{{"handler": "static_response", "body": strings.Repeat("x", 100_000)}}}},
		}}}}}
	}
	// caddy-l4 reads the counts of a connection for its log while the site uses it, which the race detector sees.
	p := gate.Start(t, site(rateLimit(`{"connections": [{"rate": "1/m", "burst": 2}], "on_limit": ["respond"]}`)), gate.WithoutRace())
	get := func() (status int) {
		t.Helper()
		client := http.Client{Timeout: peerTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + addr)
		must(t, err)
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		must(t, err)
		return resp.StatusCode
	}
	for range 2 {
		if status := get(); status != http.StatusOK {
			t.Errorf("status %d within the burst", status)
		}
	}
	// The answer comes before the question is asked, which Go's client takes for an error of the connection, now and then.
	conn := dial(t, addr)
	mustWrite(t, conn, "GET / HTTP/1.1\r\nHost: site\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	status, retryAfter := resp.StatusCode, resp.Header.Get("Retry-After")
	if status != http.StatusTooManyRequests || retryAfter != "60" || !bytes.Contains(body, []byte("Too Many")) {
		t.Errorf("status %d, Retry-After %q: %s", status, retryAfter, body)
	}
	p.Load(site(rateLimit(`{"name": "slots", "concurrent": [{"max": 1}]}`)))
	for i := range 50 {
		gate.Eventually(t, peerTimeout, func() error { // until the site has closed the connection before
			client := http.Client{Timeout: peerTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
			resp, err := client.Get("http://" + addr)
			if err != nil {
				return fmt.Errorf("request %d: %w", i, err)
			}
			return resp.Body.Close()
		})
	}
	p.Load(site(rateLimit(`{"name": "slow", "bandwidth": [{"direction": "down", "rate": "50KB/s"}]}`)))
	gate.Eventually(t, peerTimeout, func() error { // a stock listener that is replaced drops what has just come to it
		start := time.Now()
		client := http.Client{Timeout: peerTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + addr)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if took := time.Since(start); took < 1700*time.Millisecond {
			t.Errorf("100 kB at 50 kB/s took %v", took)
		}
		return nil
	})
}

// dry_run refuses nobody, but says what it would have done.
func TestDryRun(t *testing.T) {
	t.Parallel()
	start := time.Now()
	p, addr := startLimited(t, "gate+tcp", `{"name": "trial", "connections": [{"rate": "1/h", "burst": 2}], "dry_run": true}`)
	if n := admittedOf(t, 10, "127.0.0.1", addr); n != 10 {
		t.Errorf("%d of 10 are let in", n)
	}
	must(t, errors.Join(
		equal(p.Metrics(), "caddy_portgate_ratelimit_decisions_total", 8, label("result", "dry_run"), label("limit", "trial: connections 1/h per ip")),
		equal(p.Metrics(), "caddy_portgate_ratelimit_decisions_total", 2, label("result", "admitted")),
	))
	if n, most := strings.Count(p.Output(), "would refuse"), 1+int(time.Since(start)/time.Second); n < 1 || n > most {
		t.Errorf("%d log entries about 8 decisions, want at most %d: one a second", n, most)
	}
}

// GET /portgate/limits shows who is nearest to a limit.
func TestLimitsEndpoint(t *testing.T) {
	t.Parallel()
	p, addr := startLimited(t, "gate+tcp", `{"connections": [{"rate": "1/h", "burst": 4}]}`)
	admittedOf(t, 3, "127.0.0.1", addr)
	admittedOf(t, 1, "127.0.0.2", addr)
	var shown []struct {
		Limit, Key string
		Used       float64
	}
	must(t, json.Unmarshal([]byte(p.MustGet("/portgate/limits?top=1")), &shown))
	if len(shown) != 1 || shown[0].Key != "127.0.0.1" || shown[0].Limit != "connections 1/h per ip" || shown[0].Used < 0.7 || shown[0].Used > 0.75 {
		t.Errorf("shown: %+v", shown)
	}
}

// Datagrams that are too many are dropped, each client has its own, and UDP sessions are counted as connections.
func TestLimitedDatagrams(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"gate+udp", "udp"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			addr := gate.ReserveAddr(t)
			gate.Start(t, gate.Layer4(gate.Listen(network+"/"+addr, rateLimit(`{"datagrams": [{"rate": "1/h", "burst": 5}]}`), gate.Forward(serveDatagrams(t)))))
			for _, client := range []string{"127.0.0.1", "127.0.0.2"} {
				conn := dialDatagrams(t, client, addr)
				for i := range 5 {
					if !answered(conn, i, peerTimeout) {
						t.Errorf("%s: datagram %d was dropped", client, i)
					}
				}
				if answered(conn, 5, 300*time.Millisecond) {
					t.Errorf("%s: more than 5 pass", client)
				}
			}
		})
	}
	p, addr := startDatagramACL(t, rateLimit(`{"connections": [{"rate": "1/h", "burst": 2}]}`))
	for i := range 3 {
		timeout := peerTimeout
		if i == 2 {
			timeout = 300 * time.Millisecond
		}
		if got := answered(dialDatagrams(t, "127.0.0.1", addr), i, timeout); got != (i < 2) {
			t.Errorf("session %d is served: %t", i, got)
		}
	}
	must(t, equal(p.Metrics(), "caddy_portgate_ratelimit_decisions_total", 1, label("result", "refused")))
}

// startRedis starts a Redis server of the test's own.
func startRedis(t testing.TB) (url string, cmd *exec.Cmd) {
	t.Helper()
	addr := gate.ReserveAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	cmd = exec.Command(program(t, "redis-server"), "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no")
	cmd.Dir = t.TempDir()
	server(t, addr, cmd)
	return "redis://" + addr, cmd
}

// patient is a timeout within which Redis answers, however busy the machine is.
const patient = "10s"

// sharing are two processes that share a Redis.
func sharing(t testing.TB, url, timeout, options string) (processes []*gate.Process, addrs []string) {
	t.Helper()
	options = strings.TrimSuffix(options, "}") + `, "store": {"type": "redis", "url": "` + url + `", "timeout": "` + timeout + `"}}`
	for range 2 {
		p, addr := startLimited(t, "gate+tcp", options)
		gate.Eventually(t, peerTimeout, func() error {
			return equal(p.Metrics(), "caddy_portgate_ratelimit_store_breaker_open", 0)
		})
		processes, addrs = append(processes, p), append(addrs, addr)
	}
	return processes, addrs
}

// Two processes with one Redis admit together what one would alone.
func TestSharedRate(t *testing.T) {
	t.Parallel()
	url, _ := startRedis(t)
	_, addrs := sharing(t, url, patient, `{"connections": [{"rate": "1/h", "burst": 50}]}`)
	var admitted [2]int
	var both sync.WaitGroup
	for i, addr := range addrs {
		both.Go(func() { admitted[i] = admittedOf(t, 40, "127.0.0.1", addr) })
	}
	both.Wait()
	if admitted[0]+admitted[1] != 50 {
		t.Errorf("admitted %v, want 50 together", admitted)
	}
}

// What a process holds that is killed comes back.
func TestSharedCountAndKill(t *testing.T) {
	t.Parallel()
	url, _ := startRedis(t)
	processes, addrs := sharing(t, url, patient, `{"concurrent": [{"max": 2, "per": "all"}]}`)
	for range 2 {
		mustExchange(t, dial(t, addrs[0]))
	}
	if admittedOf(t, 3, "127.0.0.1", addrs[1]) != 0 {
		t.Error("more than two at once")
	}
	must(t, syscall.Kill(processes[0].PID(), syscall.SIGKILL))
	processes[0].Wait(peerTimeout)
	gate.Eventually(t, peerTimeout, func() error {
		if admittedOf(t, 1, "127.0.0.1", addrs[1]) != 1 {
			return errors.New("the slots have not come back")
		}
		return nil
	})
}

// While Redis does not answer, connections are decided about at once, and all is well within seconds when it answers again.
func TestPausedRedis(t *testing.T) {
	t.Parallel()
	url, redis := startRedis(t)
	processes, addrs := sharing(t, url, "500ms", `{"connections": [{"rate": "1/h", "burst": 1000}]}`)
	p, addr := processes[0], addrs[0]
	admittedOf(t, 3, "127.0.0.1", addr)
	before := p.Baseline()
	must(t, redis.Process.Signal(syscall.SIGSTOP))
	defer func() { _ = redis.Process.Signal(syscall.SIGCONT) }()
	const each = 20
	failures := func() float64 { return p.Metrics().Sum("caddy_portgate_ratelimit_store_errors_total") }
	start, failed := time.Now(), failures()
	var clients sync.WaitGroup
	for range each {
		clients.Go(func() {
			for range 20 {
				if in, err := letIn("127.0.0.1", addr); err != nil || !in {
					t.Errorf("let in: %t (%v)", in, err)
				}
			}
		})
	}
	clients.Wait()
	// Of 400 decisions those wait that are under way when the third has failed; from then on, Redis is tried four times a second.
	if n, most := failures()-failed, 3+each+4*(time.Since(start).Seconds()+1); n > most {
		t.Errorf("%v decisions have waited for Redis, want at most %.0f", n, most)
	}
	must(t, equal(p.Metrics(), "caddy_portgate_ratelimit_store_breaker_open", 1))
	before.MustReturn(t, peerTimeout)
	must(t, redis.Process.Signal(syscall.SIGCONT))
	gate.Eventually(t, peerTimeout, func() error {
		return equal(p.Metrics(), "caddy_portgate_ratelimit_store_breaker_open", 0)
	})
	if !strings.Contains(p.Output(), "redis can't be used") || !strings.Contains(p.Output(), "redis works again") {
		t.Error("the log says nothing of it")
	}
}

// A Redis that never worked is said once, at WARN and without its password, and counted from the beginning; and that it
// works, once it does.
func TestRedisThatNeverWorked(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	limited := func(name, url string) gate.JSON {
		return rateLimit(`{"connections": [{"rate": "1000/s"}]}`).With("name", name).
			With("store", gate.JSON{"type": "redis", "url": url, "on_error": "local"})
	}
	closed := gate.ReserveAddr(t)
	works, _ := startRedis(t)
	fine := limited("fine", works)
	fine["store"] = fine["store"].(gate.JSON).With("timeout", "10s") // a busy machine may take its time
	p := gate.Start(t, gate.Layer4(gate.Listen("gate+tcp/"+addr, limited("closed", "redis://:hidden@"+closed), limited("unknown", "redis://:hidden@nowhere.invalid"),
		fine, gate.Forward(serve(t, echo)))))
	must(t, errors.Join(
		equal(p.Metrics(), "caddy_portgate_ratelimit_store_errors_total", 0, label("name", "fine")),
		equal(p.Metrics(), "caddy_portgate_ratelimit_store_breaker_open", 1, label("name", "closed")),
	))
	lines := func(words ...string) (n int) {
		for line := range strings.Lines(p.Output()) {
			if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
				n++
			}
		}
		return n
	}
	said := func(n int, words ...string) {
		t.Helper()
		gate.Eventually(t, peerTimeout, func() error {
			if got := lines(words...); got != n {
				return fmt.Errorf("%q is said %d times, want %d", words, got, n)
			}
			return nil
		})
	}
	said(1, "redis can't be used", `"level":"warn"`, `"closed"`, "connection refused")
	said(1, "redis can't be used", `"level":"warn"`, `"unknown"`, "nowhere.invalid")
	if n := admittedOf(t, 50, "127.0.0.1", addr); n != 50 {
		t.Errorf("%d of 50 are let in", n)
	}
	gate.Eventually(t, peerTimeout, func() error {
		for _, name := range []string{"closed", "unknown"} {
			if n := p.Metrics().Sum("caddy_portgate_ratelimit_store_errors_total", label("name", name)); n < 4 {
				return fmt.Errorf("%v errors are counted for %s", n, name)
			}
		}
		return nil
	})
	if n, leaks := lines("redis can't be used"), lines("hidden"); n != 2 || leaks != 0 {
		t.Errorf("%d lines about Redis, want 2; %d with its password", n, leaks)
	}
	_, port, _ := net.SplitHostPort(closed)
	cmd := exec.Command(program(t, "redis-server"), "--bind", "127.0.0.1", "--port", port, "--requirepass", "hidden", "--save", "")
	cmd.Dir = t.TempDir()
	server(t, closed, cmd)
	said(1, "redis works again", `"closed"`, "lasted")
	said(0, "redis works again", `"fine"`)
}
