package ratelimit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mholt/caddy-l4/layer4"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portgate/caddy-portgate/modules/internal/fastpath"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

func TestBurst(t *testing.T) {
	t.Parallel()
	h, _ := provision(t, `{"connections": [{"rate": "1/h", "burst": 3}]}`)
	for _, client := range []string{"192.0.2.1:1", "192.0.2.2:1", "[2001:db8::1]:1"} {
		if n := visits(t, h, 5, client); n != 3 {
			t.Errorf("%s: %d admitted, want 3", client, n)
		}
	}
}

// Who shares a limit.
func TestPer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		options string
		clients string // each comes once; the limit is one an hour
		want    int
	}{
		{`"per": "ip"`, "192.0.2.1 192.0.2.2 192.0.2.1", 2},
		{`"per": "ip"`, "2001:db8::1 2001:db8::2 2001:db8:0:1::1", 2},
		{`"per": "ip"`, "192.0.2.1 ::ffff:192.0.2.1", 1},
		{`"per": "subnet"`, "192.0.2.1 192.0.2.2 192.0.3.1", 2},
		{`"per": "subnet"`, "2001:db8::1 2001:db8:0:1::1 2001:db8:1::1", 2},
		{`"per": "listener"`, "192.0.2.1 2001:db8::1", 1},
		{`"per": "all"`, "192.0.2.1 2001:db8::1", 1},
		{`"per": "{l4.conn.remote_addr}"`, "192.0.2.1 192.0.2.1 192.0.2.2", 2},
		{`"per": "{l4.vars.nothing}"`, "192.0.2.1 192.0.2.2", 1},
	} {
		h, unload := provision(t, `{"connections": [{"rate": "1/h", "burst": 1, `+c.options+`}]}`)
		admitted := 0
		for address := range strings.FieldsSeq(c.clients) {
			if visit(t, h, netip.AddrPortFrom(netip.MustParseAddr(address), 1).String()) {
				admitted++
			}
		}
		if admitted != c.want {
			t.Errorf("%s: %s: %d admitted, want %d", c.options, c.clients, admitted, c.want)
		}
		unload()
	}
	h, _ := provision(t, `{"ipv6_prefix": 128, "connections": [{"rate": "1/h", "burst": 1}]}`)
	if !visit(t, h, "[2001:db8::1]:1") || !visit(t, h, "[2001:db8::2]:1") {
		t.Error("ipv6_prefix 128: addresses share a limit")
	}
}

// What one limit refuses is charged to none.
func TestAllMustAgree(t *testing.T) {
	t.Parallel()
	h, _ := provision(t, `{"connections": [{"rate": "1/h", "burst": 4, "per": "all"}, {"rate": "1/h", "burst": 1}], "concurrent": [{"max": 9}]}`)
	if n := visits(t, h, 9, "192.0.2.1:1"); n != 1 {
		t.Errorf("%d admitted, want 1", n)
	}
	admitted := 0
	for i := range 9 {
		admitted += visits(t, h, 1, fmt.Sprintf("192.0.2.%d:1", 10+i))
	}
	if admitted != 3 {
		t.Errorf("%d others admitted, want 3", admitted)
	}
}

// A slot comes back in every way in which a session can end.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	const who = "192.0.2.1:1"
	h, _ := provision(t, `{"concurrent": [{"max": 1}]}`)
	for range 10_000 / 100 {
		if n := visits(t, h, 100, who); n != 100 {
			t.Fatalf("%d of 100 one after another are admitted", n)
		}
	}
	first, leave := stay(t, h, who)
	if second, _ := stay(t, h, who); !first || second {
		t.Fatalf("the first is admitted: %t, the second: %t", first, second)
	}
	if other, _ := stay(t, h, "192.0.2.2:1"); !other {
		t.Error("another client is refused")
	}
	leave()
	for name, next := range map[string]func(*layer4.Connection) error{
		"the next handler fails": func(*layer4.Connection) error { return io.EOF },
		"a session ends later": func(cx *layer4.Connection) error {
			s := session.Begin(cx, h.scope)
			if admitted, leave := stay(t, h, who); admitted {
				leave()
				return errors.New("the slot was given back while the session lives")
			}
			s.End(session.End{})
			return nil
		},
		"a later handler refuses": func(cx *layer4.Connection) error {
			always, _ := provision(t, `{"name": "always", "connections": [{"rate": "1/h", "burst": 1}]}`)
			visit(t, always, who)
			serve(t, always, cx, func(*layer4.Connection) error { return errors.New("not refused") })
			return nil
		},
	} {
		conn, _ := from(t, who)
		serve(t, h, conn, next)
		if !visit(t, h, who) {
			t.Errorf("%s: the slot has not come back", name)
		}
	}
}

// In front of an HTTP site the connection goes on when the handler has returned.
func TestSlotOfAConnectionThatIsGivenAway(t *testing.T) {
	t.Parallel()
	const who = "192.0.2.1:1"
	h, _ := provision(t, `{"concurrent": [{"max": 1}]}`)
	conn, _ := from(t, who)
	var given *layer4.Connection
	cx := layer4.WrapConnection(conn, nil, nil)
	err := h.Handle(cx, layer4.HandlerFunc(func(cx *layer4.Connection) error {
		given = cx
		return errors.New("hijacked connection")
	}))
	if err == nil || visit(t, h, who) {
		t.Fatalf("%v; the slot has come back while the connection lives", err)
	}
	given.Close()
	if !visit(t, h, who) {
		t.Error("the slot has not come back when the connection was closed")
	}
}

// The direct way takes the same decisions, and gives the slot back with the session.
func TestServe(t *testing.T) {
	t.Parallel()
	h, _ := provision(t, `{"connections": [{"rate": "1/h", "burst": 3}], "concurrent": [{"max": 1}]}`)
	arrival := func() *session.Arrival {
		conn, _ := from(t, "192.0.2.1:1")
		return &session.Arrival{Conn: conn, Network: "tcp", Listener: ":8080", Client: netip.MustParseAddrPort("192.0.2.1:1")}
	}
	first, second := arrival(), arrival()
	if !h.Serve(first) {
		t.Fatal("refused")
	}
	s := first.Begin(h.scope)
	if h.Serve(second) || !second.Conn.(*client).isClosed() {
		t.Error("a second one is admitted, or left open")
	}
	s.End(session.End{})
	if third := arrival(); !h.Serve(third) {
		t.Error("refused when the first has ended")
	} else {
		third.Begin(h.scope).End(session.End{})
	}
	if visits(t, h, 5, "192.0.2.1:1") != 1 {
		t.Error("Serve and Handle do not share the rate")
	}
}

// Connections that come too early go on in the order in which they came, at the rate, and those that would wait too long are refused.
func TestLeakyBucket(t *testing.T) {
	t.Parallel()
	const interval = 100 * time.Millisecond
	h, _ := provision(t, `{"connections": [{"rate": "10/s"}], "algorithm": "leaky_bucket", "max_delay": "450ms"}`)
	var mu sync.Mutex
	var order []int
	var went []time.Duration
	start := time.Now()
	var all sync.WaitGroup
	for i := range 8 {
		before := lookedAt(h)
		conn, _ := from(t, "192.0.2.1:1")
		all.Go(func() {
			serve(t, h, conn, func(*layer4.Connection) error {
				mu.Lock()
				defer mu.Unlock()
				order, went = append(order, i), append(went, time.Since(start))
				return nil
			})
		})
		for lookedAt(h) == before { // until it is decided, so that they come in this order
			time.Sleep(time.Millisecond)
		}
	}
	all.Wait()
	if len(order) < 5 { // one at once and 4 within 450ms; on a busy machine some of the others come later
		t.Fatalf("%d went, want 5", len(order))
	}
	for i := range order {
		if i < 5 && order[i] != i || i > 0 && order[i] < order[i-1] || went[i] < time.Duration(i)*interval-time.Millisecond {
			t.Errorf("number %d went in place %d, after %v", order[i], i, went[i])
		}
	}
}

// lookedAt is how many decisions the handler has taken about the listener.
func lookedAt(h *Handler) (n float64) {
	for _, result := range []string{"admitted", "delayed", "refused"} {
		n += testutil.ToFloat64(collectors.decisions.WithLabelValues(":8080", h.limits.arrivals[0].name, result))
	}
	return n
}

func TestOnLimit(t *testing.T) {
	t.Parallel()
	for onLimit, want := range map[string]string{
		`["close"]`:           "",
		`["reset"]`:           "", // on a pipe, which can't be reset
		`["respond", "wait"]`: "wait",
		`["respond"]`: "HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 18\r\n" +
			"Retry-After: 3600\r\nConnection: close\r\n\r\nToo Many Requests\n",
	} {
		h, unload := provision(t, `{"connections": [{"rate": "1/h", "burst": 1}], "on_limit": `+onLimit+`}`)
		visit(t, h, "192.0.2.1:1")
		conn, other := from(t, "192.0.2.1:1")
		done := make(chan string)
		go func() {
			got, _ := io.ReadAll(other)
			done <- string(got)
		}()
		serve(t, h, conn, func(*layer4.Connection) error { return errors.New("admitted") })
		if got := <-done; got != want {
			t.Errorf("%s: got %q, want %q", onLimit, got, want)
		}
		if !conn.isClosed() {
			t.Errorf("%s: still open", onLimit)
		}
		unload()
	}
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	h, _ := provision(t, `{"name": "dry", "dry_run": true, "connections": [{"rate": "1/h", "burst": 2}], "concurrent": [{"max": 1}]}`)
	refused := func() float64 {
		return testutil.ToFloat64(collectors.decisions.WithLabelValues(":8080", "dry: concurrent 1 per ip", "dry_run"))
	}
	before := refused()
	for range 3 {
		if admitted, _ := stay(t, h, "192.0.2.1:1"); !admitted {
			t.Error("refused")
		}
	}
	if n := refused() - before; n != 2 {
		t.Errorf("%v would have been refused, want 2", n)
	}
}

// A reload gives nobody a fresh burst, nor does one that changes the rate, and counts go on.
func TestReload(t *testing.T) {
	t.Parallel()
	const who = "192.0.2.1:1"
	h, unload := provision(t, `{"name": "reload", "connections": [{"rate": "1/h", "burst": 3}], "concurrent": [{"max": 2}]}`)
	if admitted, leave := stay(t, h, who); !admitted {
		t.Fatal("refused")
	} else {
		defer leave()
	}
	visits(t, h, 2, who)
	for i, config := range []string{
		`{"name": "reload", "connections": [{"rate": "1/h", "burst": 3}], "concurrent": [{"max": 2}]}`,
		`{"name": "reload", "concurrent": [{"max": 2}], "connections": [{"rate": "1/d", "burst": 2}], "max_keys": 5}`,
		`{"name": "reload", "concurrent": [{"max": 2}], "connections": [{"rate": "1/h", "burst": 2}]}`,
	} {
		next, unloadNext := provision(t, config)
		unload()
		unload = unloadNext
		if visit(t, next, who) {
			t.Fatalf("%s: a fresh burst", config)
		}
		if admitted, leave := stay(t, next, fmt.Sprintf("192.0.2.%d:1", 10+i)); !admitted {
			t.Errorf("%s: another client is refused", config)
		} else {
			leave()
		}
	}
	next, _ := provision(t, `{"name": "reload", "concurrent": [{"max": 1}]}`)
	unload()
	if visit(t, next, who) {
		t.Error("a session from before is not counted any more")
	}
	if left, _ := provision(t, `{"name": "another", "concurrent": [{"max": 1}]}`); !visit(t, left, who) {
		t.Error("handlers with different names share")
	}
}

// A Provision that fails leaves nothing behind, and takes nothing from others.
func TestProvisionThatFails(t *testing.T) {
	t.Parallel()
	good := `{"name": "fails", "connections": [{"rate": "1/h", "burst": 1}]}`
	h, _ := provision(t, good)
	visit(t, h, "192.0.2.1:1")
	for _, config := range []string{
		`{"name": "fails", "connections": [{"rate": "1/d", "burst": 1000}]}`,
		`{"name": "fails"}`,
		`{"name": "fails", "connections": [{"rate": "1/h"}], "store": {"type": "redis", "url": "http://x"}}`,
	} {
		if _, _, err := tryProvision(t, config); err == nil {
			t.Errorf("%s: no error", config)
		}
	}
	if visit(t, h, "192.0.2.1:1") {
		t.Error("a fresh burst")
	}
}

// The clock can't be set: it is one that only goes on.
func TestClockIsMonotonic(t *testing.T) {
	t.Parallel()
	if !strings.Contains(epoch.String(), " m=") {
		t.Errorf("%v has no monotonic reading", epoch)
	}
}

func TestAdmin(t *testing.T) {
	h, _ := provision(t, `{"name": "shown", "connections": [{"rate": "1/h", "burst": 4}], "concurrent": [{"max": 2}]}`)
	visits(t, h, 3, "192.0.2.1:1")
	admitted, _ := stay(t, h, "192.0.2.2:1")
	if !admitted {
		t.Fatal("refused")
	}
	get := func(query string) (int, []usage) {
		recorder := httptest.NewRecorder()
		err := new(adminAPI).serve(recorder, httptest.NewRequest(http.MethodGet, "/portgate/limits"+query, nil))
		if err != nil {
			return 0, nil
		}
		var all []usage
		if err := json.Unmarshal(recorder.Body.Bytes(), &all); err != nil {
			t.Fatalf("%s: %v", recorder.Body, err)
		}
		return recorder.Code, all
	}
	_, all := get("?top=1000")
	var shown []string
	for _, u := range all {
		if u.Name == "shown" {
			shown = append(shown, fmt.Sprintf("%s %s %.2f", u.Limit, u.Key, u.Used))
		}
	}
	want := "[shown: connections 1/h per ip 192.0.2.1 0.75 shown: concurrent 2 per ip 192.0.2.2 0.50 shown: connections 1/h per ip 192.0.2.2 0.25]"
	if fmt.Sprint(shown) != want {
		t.Errorf("got  %v\nwant %s", shown, want)
	}
	if _, one := get("?top=1"); len(one) != 1 {
		t.Errorf("top=1 shows %d", len(one))
	}
	for _, query := range []string{"?top=0", "?top=x", "?top=1001"} {
		if code, _ := get(query); code != 0 {
			t.Errorf("%s: answered", query)
		}
	}
}

// startRedis starts a Redis server of the test's own.
func startRedis(t *testing.T) (url string, server *os.Process) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	cmd := exec.Command("redis-server", "--port", "0", "--unixsocket", socket, "--save", "")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return "unix://" + socket, cmd.Process
}

// The handler decides with Redis, and goes on without.
func TestRedis(t *testing.T) {
	url, server := startRedis(t)
	config := func(burst int) string {
		return fmt.Sprintf(`{"connections": [{"rate": "1/h", "burst": %d}], "concurrent": [{"max": 9, "per": "all"}],
			"store": {"type": "redis", "url": %q, "timeout": "5s", "on_error": "local"}}`, burst, url)
	}
	a, unloadA := provision(t, config(5))
	waitOpen := func(want bool) {
		t.Helper()
		for start := time.Now(); a.buckets.Value().redis.Open() != want; time.Sleep(time.Millisecond) {
			visit(t, a, "192.0.2.99:1")
			if time.Since(start) > time.Minute {
				t.Fatalf("the breaker is not open: %t", want)
			}
		}
	}
	waitOpen(false)
	if n := visits(t, a, 9, "192.0.2.1:1"); n != 5 {
		t.Errorf("%d admitted, want 5", n)
	}
	b, unloadB := provision(t, config(5)) // the same limits
	if n := visits(t, b, 9, "192.0.2.1:1"); n != 0 {
		t.Errorf("%d more admitted, want none", n)
	}
	admitted, leave := stay(t, b, "192.0.2.2:1")
	if !admitted {
		t.Error("refused")
	}
	_ = server.Kill()
	waitOpen(true)
	if n := visits(t, a, 9, "192.0.2.1:1"); n != 0 {
		t.Errorf("%d admitted without Redis, want none: the burst is used up", n)
	}
	leave()
	unloadA()
	unloadB()
}

// A Redis user who may only touch keys with the prefix is enough, with a password that has all that means something in a URL, from
// the environment as from a file.
func TestRedisUserAndPassword(t *testing.T) {
	url, _ := startRedis(t)
	socket := strings.TrimPrefix(url, "unix://")
	eventually(t, func() error {
		out, err := exec.Command("redis-cli", "-s", socket, "ACL", "SETUSER", "gate", "on", ">"+oddest, "~edge:*", "+@all").CombinedOutput()
		if err == nil && strings.TrimSpace(string(out)) != "OK" {
			err = errors.New("not OK")
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(oddest+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GATE_PASSWORD", oddest)
	for i, password := range []string{"{env.GATE_PASSWORD}", "{file." + file + "}"} {
		h, _ := provision(t, fmt.Sprintf(`{"name": "%s %d", "connections": [{"rate": "1/h", "burst": 5}], "concurrent": [{"max": 9}],
			"store": {"type": "redis", "url": "unix://gate:%s@%s", "timeout": "5s", "on_error": "deny", "prefix": "edge:"}}`, t.Name(), i, password, socket))
		eventually(t, func() error {
			if h.buckets.Value().redis.Open() {
				return errors.New("the breaker is open")
			}
			return nil
		})
		if n := visits(t, h, 9, "192.0.2.1:1"); n != 5 {
			t.Errorf("%s: %d admitted, want 5", password, n)
		}
	}
}

// What nobody is counted for any more, and buckets that are full, are not held.
func TestKeysAtRest(t *testing.T) {
	t.Parallel()
	h, _ := provision(t, `{"name": "rest", "connections": [{"rate": "1000000/s", "burst": 1}], "concurrent": [{"max": 1}]}`)
	visit(t, h, "192.0.2.1:1")
	for start := time.Now(); h.buckets.Value().memory.Len(now()) > 0; time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatal("keys are held at rest")
		}
	}
}

// A connection that no handler takes over gives back what it held, also where its listener serves it.
func TestConcurrentOfConnectionsThatNobodyTakes(t *testing.T) {
	t.Parallel()
	h, _ := provision(t, `{"concurrent": [{"max": 1}]}`)
	for i := range 3 {
		conn, _ := from(t, "192.0.2.1:1")
		arrival := &session.Arrival{Conn: conn, Network: "tcp", Listener: "test", Client: netip.MustParseAddrPort("192.0.2.1:1")}
		fastpath.Serve([]fastpath.Step{h}, arrival, nil)
		if arrival.Begun() {
			t.Fatalf("connection %d was refused", i)
		}
		if !conn.isClosed() {
			t.Errorf("connection %d is open", i)
		}
	}
}

// In Redis, machines share their limits whatever limits they have had before.
func TestLimitsAreKnownByTheSameNumbers(t *testing.T) {
	t.Parallel()
	const now = `"connections": [{"rate": "1/h", "per": "all"}, {"rate": "1/h"}], "concurrent": [{"max": 1}]}`
	_, _ = provision(t, `{"name": "was changed", "connections": [{"rate": "1/h"}], "concurrent": [{"max": 1}]}`)
	changed, _ := provision(t, `{"name": "was changed", `+now)
	started, _ := provision(t, `{"name": "has just started", `+now)
	for i, l := range started.limits.arrivals {
		if before := changed.limits.arrivals[i]; l.ID() != before.ID() {
			t.Errorf("%s has the number %d, but %d where there were other limits before", l.name, l.ID(), before.ID())
		}
	}
}

// A config that is rejected leaves the settings of the running one in force.
func TestSettingsOfARejectedConfig(t *testing.T) {
	t.Parallel()
	const running = `{"name": "rejected", "connections": [{"rate": "1/h", "burst": 1}], "max_keys": 1000}`
	h, _ := provision(t, running)
	_, reject := provision(t, strings.Replace(running, "1000", "1", 1))
	reject()
	for i := range 250 { // of which many would share a bucket
		if !visit(t, h, fmt.Sprintf("192.0.2.%d:1", i)) {
			t.Fatalf("client %d is held to max_keys of the config that was rejected", i)
		}
	}
}

// However often the limits of a handler change, there are numbers for those that it has.
func TestNumbersOfLimitsDoNotRunOut(t *testing.T) {
	t.Parallel()
	h, _ := provision(t, `{"name": "often changed", "connections": [{"rate": "1/h"}]}`)
	b, own := h.buckets.Value(), h.limits.arrivals[0].ID()
	for i := range 1 << 17 {
		id := b.id(fmt.Sprint("limit ", i))
		if id == own {
			t.Fatalf("limit %d has the number %d of one that is in force", i, id)
		}
		b.leave(new(settings)) // as a handler does that a reload has replaced
	}
	if n := len(b.ids); n > keptIDs+1 {
		t.Errorf("%d numbers are kept", n)
	}
}
