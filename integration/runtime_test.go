package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// listed is what GET /portgate/upstreams tells of an upstream.
type listed struct {
	Name, Handler, State string
	Weight, Sessions     int
	Configured           *int   `json:"configured_weight"`
	LastError            string `json:"last_error"`
}

func upstreamPath(name string) string { return "/portgate/upstreams/" + url.PathEscape(name) }

// set says something of an upstream through the API.
func set(t *testing.T, p *gate.Process, name, body string) (all []listed) {
	t.Helper()
	status, answer, err := p.Do("PATCH", upstreamPath(name), body)
	if err != nil || status != 200 || json.Unmarshal([]byte(answer), &all) != nil || len(all) == 0 {
		t.Fatalf("PATCH %s %s: %d %s (%v)", name, body, status, answer, err)
	}
	return all
}

func mustList(t *testing.T, p *gate.Process, query string) (all []listed) {
	t.Helper()
	must(t, json.Unmarshal([]byte(p.MustGet("/portgate/upstreams"+query)), &all))
	return all
}

// visitors begin sessions one after another, and note when each began that came to the upstream a.
type visitors struct {
	atA  atomic.Int64 // when the last one began, in nanoseconds
	n    atomic.Int64 // sessions
	stop func()
}

func visit(t *testing.T, addr string) *visitors {
	v, over := new(visitors), make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				began := time.Now()
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				_ = conn.SetDeadline(began.Add(peerTimeout))
				b := make([]byte, 1)
				if _, err := conn.Read(b); err != nil {
					t.Errorf("a new session: %v", err)
				}
				conn.Close()
				if b[0] == 'a' {
					for last := v.atA.Load(); began.UnixNano() > last && !v.atA.CompareAndSwap(last, began.UnixNano()); last = v.atA.Load() {
					}
				}
				v.n.Add(1)
			}
		})
	}
	v.stop = sync.OnceFunc(func() {
		close(over)
		wg.Wait()
	})
	t.Cleanup(v.stop)
	return v
}

// more waits for sessions that begin after now.
func (v *visitors) more(t *testing.T, n int64) {
	t.Helper()
	before := v.n.Load()
	gate.Eventually(t, peerTimeout, func() error {
		if now := v.n.Load(); now < before+n {
			return fmt.Errorf("%d sessions of %d", now-before, n)
		}
		return nil
	})
}

// A drained upstream gets no new session, its living ones go on, and that holds over reloads, until it is ready again. No session that begins when
// the request is answered gets to it; how long that took is logged.
func TestDrain(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"drain", "maint"} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			a, b, addr := serveName(t, "a"), serveName(t, "b"), gate.ReserveAddr(t)
			config := gate.Layer4(gate.Listen(addr, gate.Forward(a, b)))
			p := gate.Start(t, config)
			living, name := mustBeAt(t, addr, "ab")
			for name != "a" {
				living, name = mustBeAt(t, addr, "ab")
			}
			v := visit(t, addr)
			v.more(t, 20)
			asked := time.Now()
			if got := set(t, p, a, `{"state": "`+state+`"}`); got[0].State != state || got[0].Sessions < 1 {
				t.Errorf("it is %+v", got)
			}
			answered := time.Now()
			must(t, equal(p.Metrics(), "caddy_portgate_upstream_drained", 1, label("upstream", a)))
			must(t, equal(p.Metrics(), "caddy_portgate_upstream_drained", 0, label("upstream", b)))
			v.more(t, 50)
			last := time.Unix(0, v.atA.Load())
			if last.After(answered) {
				t.Errorf("a session that began %v after the answer is at the upstream", last.Sub(answered))
			}
			t.Logf("the last session at the upstream began %v after the request was sent, the answer came after %v", last.Sub(asked), answered.Sub(asked))
			mustExchange(t, living)

			for i := range 100 {
				changed := config
				if i%2 == 1 {
					changed = gate.Layer4(gate.Listen(addr, gate.Forward(b).With("upstreams", []gate.JSON{upstreamWith(a, gate.JSON{"weight": 1 + i})})))
				}
				p.Load(changed)
				if i%10 == 0 {
					if err := p.TryLoad(gate.Layer4(gate.Listen(addr, gate.Forward(a).With("retries", -1)))); err == nil {
						t.Error("the config is not rejected")
					}
					mustExchange(t, living)
				}
			}
			v.more(t, 20)
			if last := time.Unix(0, v.atA.Load()); last.After(answered) {
				t.Errorf("after reloads a session is at the upstream that began %v after the answer", last.Sub(answered))
			}
			mustExchange(t, living)
			p.Load(gate.Layer4(gate.Listen(addr, gate.Forward(b)))) // it is not in the config at all for a while
			if got := mustList(t, p, "?state="+state); len(got) != 1 || got[0].Name != a || got[0].Handler != "" || got[0].Sessions != 1 {
				t.Errorf("without a config that has it: %+v", got)
			}
			p.Load(config)
			v.more(t, 20)
			if last := time.Unix(0, v.atA.Load()); last.After(answered) {
				t.Error("after a config without it, a session is at the upstream")
			}
			set(t, p, a, `{"state": "ready"}`)
			ready := time.Now()
			gate.Eventually(t, peerTimeout, func() error {
				if last := time.Unix(0, v.atA.Load()); last.Before(ready) {
					return fmt.Errorf("it gets no session")
				}
				return nil
			})
			v.stop()
			mustExchange(t, living)
			living.Close()
			gate.Eventually(t, peerTimeout, func() error { return equal(p.Metrics(), "caddy_portgate_upstream_sessions_active", 0) })
		})
	}
}

// A session of datagrams goes on with a drained upstream, also over a reload, and new ones have another. In maint nothing is sent to an upstream
// that no living session has.
func TestDrainUDP(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"drain", "maint"} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			named := func(name string) string {
				return serveUDP(t, func(netip.AddrPort, []byte) []byte { return []byte(name) })
			}
			a, b, addr := named("a"), named("b"), gate.ReserveAddr(t)
			config := gate.Layer4(gate.ListenUDP(addr, gate.Forward(a, b).With("lb_policy", "first")))
			p := gate.Start(t, config)
			ask := func(client io.ReadWriter, want string) {
				t.Helper()
				mustWrite(t, client, "?")
				mustRead(t, client, want)
			}
			living := dialUDP(t, addr)
			ask(living, "a")
			set(t, p, a, `{"state": "`+state+`"}`)
			for range 5 {
				ask(dialUDP(t, addr), "b")
				ask(living, "a")
				p.Load(config)
			}
			set(t, p, b, `{"state": "`+state+`"}`)
			last := dialUDP(t, addr)
			mustWrite(t, last, "?")
			if s := p.WaitSession(port(last)); s.Status != 502 || s.Reason != "no_upstream" || s.Upstream != "" {
				t.Errorf("where all are drained: %s", s.Line)
			}
			ask(living, "a")
			set(t, p, a, `{"state": "ready"}`)
			ask(dialUDP(t, addr), "a")
		})
	}
}

// What is in drain or maint is not tried, even where nothing else can be reached.
func TestDrainedIsNeverTried(t *testing.T) {
	t.Parallel()
	var seen atomic.Int64
	alive := serve(t, func(conn *net.TCPConn) { seen.Add(1); echo(conn) })
	dead, addr := gate.ReserveAddr(t), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(alive, dead).With("max_fails", 1).With("fail_duration", "1h").With("retries", 5))))
	for _, c := range []struct{ body, other, reason string }{
		{`{"state": "drain"}`, `{"state": "ready"}`, "connect_failed"},
		{`{"state": "maint"}`, `{"state": "ready"}`, "connect_failed"},
		{`{"state": "ready", "weight": 0}`, `{"state": "ready"}`, "connect_failed"},
		{`{"state": "maint"}`, `{"state": "drain"}`, "no_upstream"},
	} {
		set(t, p, alive, c.body)
		set(t, p, dead, c.other)
		for range 3 {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				continue // it is reset already
			}
			_ = conn.SetDeadline(time.Now().Add(peerTimeout))
			if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("%s: read %d bytes", c.body, n)
			}
			if s := p.WaitSession(port(conn)); s.Status != 502 || s.Reason != c.reason {
				t.Errorf("%s: %s, want the reason %s", c.body, s.Line, c.reason)
			}
			conn.Close()
		}
	}
	if n := seen.Load(); n > 0 {
		t.Errorf("the upstream was connected to %d times", n)
	}
	if got := mustList(t, p, "?name="+dead); len(got) != 1 || got[0].State != "drain" || !strings.Contains(got[0].LastError, "refused") {
		t.Errorf("the dead one is %+v", got)
	}
	set(t, p, alive, `{"state": "ready", "weight": null}`)
	mustExchange(t, dial(t, addr))
}

// A weight of the run time decides over that of the config, also of the next one, until it is given back.
func TestWeightsAtRunTime(t *testing.T) {
	t.Parallel()
	names := []string{serveName(t, "a"), serveName(t, "b"), serveName(t, "c")}
	addr := gate.ReserveAddr(t)
	config := func(weight int) gate.JSON {
		return gate.Layer4(gate.Listen(addr, gate.Forward(names[0], names[1]).With("upstreams", []gate.JSON{upstreamWith(names[2], gate.JSON{"weight": weight})})))
	}
	p := gate.Start(t, config(1))
	share := func(when string, want ...int) {
		t.Helper()
		sum, got := 0, make([]int, len(names))
		for _, n := range want {
			sum += n
		}
		for range 10 * sum {
			conn, name := mustBeAt(t, addr, "abc")
			got[name[0]-'a']++
			conn.Close()
		}
		for i := range want {
			if want[i] *= 10; got[i] < want[i]-1 || got[i] > want[i]+1 { // turns that were not over go on
				t.Errorf("%s: sessions are %v, want %v", when, got, want)
				return
			}
		}
	}
	share("as configured", 1, 1, 1)
	set(t, p, names[0], `{"weight": 5}`)
	set(t, p, names[1], `{"weight": 3}`)
	share("set", 5, 3, 1)
	p.Load(config(7))
	share("after a reload", 5, 3, 7)
	if got := set(t, p, names[2], `{"weight": 2}`); got[0].Weight != 2 || got[0].Configured == nil || *got[0].Configured != 7 {
		t.Errorf("it is %+v", got)
	}
	p.Load(config(4))
	share("set again", 5, 3, 2)
	if got := mustList(t, p, "?name="+names[2]); got[0].Weight != 2 || got[0].Configured == nil || *got[0].Configured != 4 {
		t.Errorf("after a reload with another weight it is %+v", got)
	}
	for _, name := range names {
		set(t, p, name, `{"weight": null}`)
	}
	share("given back", 1, 1, 4)
}

// Requests and reloads at the same time lose nothing: in the end all is as it was said last, and nothing is left over.
func TestSetDuringReloads(t *testing.T) {
	t.Parallel()
	a, b, addr := serveName(t, "a"), serveName(t, "b"), gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(addr, gate.Forward(a, b)))
	p := gate.Start(t, config)
	conn, _ := mustBeAt(t, addr, "ab")
	conn.Close()
	before := p.Baseline()
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 30 {
			if err := p.TryLoad(config); err != nil {
				t.Error(err)
			}
		}
	})
	for i, name := range []string{a, b} {
		wg.Go(func() {
			for k := range 30 {
				body := []string{`{"state": "drain"}`, `{"state": "ready", "weight": 7}`, `{"state": "maint"}`}[(i+k)%3]
				if status, answer, err := p.Do("PATCH", upstreamPath(name), body); err != nil || status != 200 {
					t.Errorf("PATCH: %d %s (%v)", status, answer, err)
				}
			}
		})
	}
	wg.Wait()
	set(t, p, a, `{"state": "maint", "weight": null}`)
	set(t, p, b, `{"state": "ready", "weight": null}`)
	for range 4 {
		conn, _ := mustBeAt(t, addr, "b")
		conn.Close()
	}
	before.MustReturn(t, peerTimeout)
}

// The commands that docs/upstreams.md shows do what it says, and pages of other origins can't give them.
func TestCommandsAtRunTime(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward("127.0.0.1:9001", "[::1]:9002", "unix//run/app.sock"))))
	var commands []string
	for _, b := range blocksOf(t, "../docs/upstreams.md") {
		for line := range strings.Lines(b.code) {
			if b.language == "sh" && strings.HasPrefix(line, "curl ") && strings.Contains(line, "/portgate/upstreams") {
				commands = append(commands, strings.TrimSpace(line))
			}
		}
	}
	run := func(command string) string {
		t.Helper()
		shell := exec.Command("sh", "-c", strings.Replace(command, "curl ", "curl -sS --max-time 30 --fail-with-body --unix-socket "+strings.TrimPrefix(p.Admin(), "unix/")+" ", 1))
		out, err := shell.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", command, err, out)
		}
		return string(out)
	}
	if len(commands) < 5 {
		t.Fatalf("found %d commands: the search is broken", len(commands))
	}
	for _, command := range commands {
		var all []listed
		if answer := run(command); json.Unmarshal([]byte(answer), &all) != nil || len(all) == 0 {
			t.Errorf("%s: %s", command, answer)
		}
	}
	states := make(map[string]bool)
	for _, u := range mustList(t, p, "") {
		states[u.State] = true
	}
	if !slices.ContainsFunc([]string{"drain", "maint"}, func(state string) bool { return states[state] }) {
		t.Errorf("no command has drained anything: %v", states)
	}
	evil := exec.Command("curl", "-sS", "--max-time", "30", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", strings.TrimPrefix(p.Admin(), "unix/"),
		"-H", "Origin: http://evil.example", "-X", "PATCH", "-d", `{"state": "maint"}`, "http://localhost"+upstreamPath("127.0.0.1:9001"))
	if out, err := evil.CombinedOutput(); err != nil || string(out) != "403" {
		t.Errorf("a page of another origin: %s (%v)", out, err)
	}
}
