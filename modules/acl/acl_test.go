package acl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// client is an end of a connection that says it has another address.
type client struct {
	net.Conn
	remote net.Addr
}

func (c client) RemoteAddr() net.Addr { return c.remote }

func from(address string) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr(address), 1234))
}

// try has a client try the handler, and reports whether it was let in.
func try(t testing.TB, h *Handler, remote net.Addr) bool {
	t.Helper()
	conn, other := net.Pipe()
	defer other.Close()
	defer conn.Close()
	in := false
	cx := layer4.WrapConnection(client{conn, remote}, nil, zap.NewNop())
	must(t, h.Handle(cx, layer4.HandlerFunc(func(*layer4.Connection) error {
		in = true
		return nil
	})))
	if arrival := newArrival(client{conn, remote}); h.Serve(arrival) != in {
		t.Errorf("%v: layer4's way says %t, the direct way does not", remote, in)
	}
	return in
}

func newArrival(conn net.Conn) *session.Arrival {
	a := &session.Arrival{Conn: conn, Network: "tcp", Listener: "test"}
	if remote, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		a.Client = remote.AddrPort()
	}
	return a
}

// The cases of nginx's stream access tests, by IPv4, IPv6 and unix sockets.
func TestAccess(t *testing.T) {
	t.Parallel()
	unix := &net.UnixAddr{Net: "unix"}
	for name, c := range map[string]struct {
		config               string
		ipv4, ipv6, unixOnes bool
	}{
		"allow all":      {`{"default":"allow"}`, true, true, true},
		"deny all":       {`{"default":"deny"}`, false, false, false},
		"deny IPv4":      {`{"rules":[{"deny":["0.0.0.0/0"]}]}`, false, true, true},
		"deny IPv6":      {`{"rules":[{"deny":["::/0"]}]}`, true, false, true},
		"deny both":      {`{"rules":[{"deny":["0.0.0.0/0","::/0"]}]}`, false, false, true},
		"allow IPv4":     {`{"rules":[{"allow":["0.0.0.0/0"]}]}`, true, false, false},
		"allow IPv6":     {`{"rules":[{"allow":["::/0"]}]}`, false, true, false},
		"allow both":     {`{"rules":[{"allow":["0.0.0.0/0","::/0"]}]}`, true, true, false},
		"only unix":      {`{"rules":[{"deny":["0.0.0.0/0"]},{"deny":["::/0"]}],"default":"allow"}`, false, false, true},
		"all but unix":   {`{"rules":[{"allow":["0.0.0.0/0"]},{"allow":["::/0"]}],"default":"deny"}`, true, true, false},
		"mapped network": {`{"rules":[{"deny":["::ffff:127.0.0.0/104"]}]}`, false, true, true},
	} {
		h, _ := handler(t, c.config)
		for _, a := range []struct {
			remote net.Addr
			want   bool
		}{{from("127.0.0.1"), c.ipv4}, {from("::ffff:127.0.0.1"), c.ipv4}, {from("::1"), c.ipv6}, {from("fe80::1%lo"), c.ipv6}, {unix, c.unixOnes}} {
			if got := try(t, h, a.remote); got != a.want {
				t.Errorf("%s: %v is let in: %t, want %t", name, a.remote, got, a.want)
			}
		}
	}
}

// The matcher matches whom the handler with the same rules lets in.
func TestMatcher(t *testing.T) {
	t.Parallel()
	config := `{"rules":[{"allow":["192.0.2.7"]},{"deny":["192.0.2.0/24"]}],"default":"allow"}`
	h, _ := handler(t, config)
	m, _ := provision[*Matcher](t, "layer4.matchers.acl", config)
	for _, remote := range []net.Addr{from("192.0.2.7"), from("192.0.2.8"), from("2001:db8::1"), &net.UnixAddr{}} {
		got, err := m.Match(layer4.WrapConnection(client{nil, remote}.withoutConn(), nil, zap.NewNop()))
		if err != nil || got != try(t, h, remote) {
			t.Errorf("%v: %t, %v", remote, got, err)
		}
	}
}

// withoutConn gives a connection of which only the addresses are asked for.
func (c client) withoutConn() net.Conn {
	c.Conn, _ = net.Pipe()
	return c
}

// tcpPair returns the two ends of a TCP connection.
func tcpPair(t testing.TB) (accepted, dialed *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	other, err := ln.Accept()
	must(t, err)
	t.Cleanup(func() { other.Close() })
	return other.(*net.TCPConn), conn.(*net.TCPConn)
}

// What a denied client sees, in layer4's way and in the direct one.
func TestReactions(t *testing.T) {
	t.Parallel()
	greeting := "GET / HTTP/1.1\r\n\r\n"
	for name, c := range map[string]struct {
		onDeny string
		send   string
		want   string
		end    error
		least  time.Duration
	}{
		"default":                    {`[]`, "", "", nil, 0},
		"close":                      {`["close"]`, "", "", nil, 0},
		"reset":                      {`["reset"]`, "", "", syscall.ECONNRESET, 0},
		"tarpit":                     {`["tarpit","100ms"]`, greeting, "", syscall.ECONNRESET, 100 * time.Millisecond},
		"respond":                    {`["respond","go away"]`, "", "go away", nil, 0},
		"respond to a client's word": {`["respond","go away"]`, greeting, "go away", nil, 0},
	} {
		for _, way := range []string{"layer4", "direct"} {
			t.Run(name+" "+way, func(t *testing.T) {
				t.Parallel()
				h, _ := handler(t, `{"default":"deny","on_deny":`+c.onDeny+`}`)
				accepted, dialed := tcpPair(t)
				_, err := io.WriteString(dialed, c.send)
				must(t, err)
				start := time.Now()
				if way == "direct" {
					if h.Serve(newArrival(accepted)) {
						t.Error("the client is let in")
					}
				} else {
					go func() {
						_ = h.Handle(layer4.WrapConnection(accepted, nil, zap.NewNop()), nil)
						_ = accepted.Close() // as layer4 does
					}()
				}
				_ = dialed.SetReadDeadline(time.Now().Add(20 * time.Second))
				got, err := io.ReadAll(dialed)
				if string(got) != c.want || !errors.Is(err, c.end) {
					t.Errorf("read %q, %v, want %q, %v", got, err, c.want, c.end)
				}
				if took := time.Since(start); took < c.least {
					t.Errorf("after %v, want at least %v", took, c.least)
				}
			})
		}
	}
}

// mover is a session's mover that only notes why it was closed.
type mover struct {
	reason atomic.Value
	ended  sync.Once
	s      *session.Session
}

func (m *mover) Close(reason string) {
	m.reason.CompareAndSwap(nil, reason)
	m.ended.Do(func() { go m.s.End(session.End{Status: session.StatusDone, Reason: reason}) })
}
func (m *mover) LastActive() time.Time   { return time.Time{} }
func (m *mover) Moved() (up, down int64) { return 0, 0 }

// living lets a client in and begins its session.
func living(t testing.TB, h *Handler, sc *session.Scope, remote net.Addr) *mover {
	t.Helper()
	conn, _ := net.Pipe()
	a := newArrival(client{conn, remote})
	if !h.Serve(a) {
		t.Fatalf("%v is not let in", remote)
	}
	return begin(t, a, sc)
}

func begin(t testing.TB, a *session.Arrival, sc *session.Scope) *mover {
	t.Helper()
	m := &mover{s: a.Begin(sc)}
	m.s.SetMover(m)
	t.Cleanup(func() { m.s.End(session.End{}) })
	return m
}

func scope(t testing.TB) *session.Scope {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.ActiveContext())
	t.Cleanup(cancel)
	sc, err := session.NewScope(ctx, 0, 0)
	must(t, err)
	return sc
}

// A change of any list closes the sessions of those whom it denies, and only theirs.
func TestEnforce(t *testing.T) {
	t.Parallel()
	path := tempFile(t, "")
	name := "enforce"
	h, _ := handler(t, fmt.Sprintf(`{"rules":[{"deny":["file",%q]},{"deny":["list",%q]}]}`, path, name))
	newOnly, _ := handler(t, fmt.Sprintf(`{"rules":[{"deny":["file",%q]}],"enforce":"new"}`, path))
	sc := scope(t)
	banned, listed, stays := living(t, h, sc, from(one)), living(t, h, sc, from("::ffff:192.0.2.2")), living(t, h, sc, from("192.0.2.3"))
	unaffected := living(t, newOnly, sc, from(two))
	must(t, findList(name).add(newTestEntry("192.0.2.1/32", 0)))
	eventually(t, "the ban", func() bool { return banned.reason.Load() == session.ReasonListChanged })
	write(t, path, two)
	eventually(t, "the file", func() bool { return listed.reason.Load() == session.ReasonListChanged })
	if stays.reason.Load() != nil || unaffected.reason.Load() != nil {
		t.Errorf("others were closed: %v, %v", stays.reason.Load(), unaffected.reason.Load())
	}
}

// A client that was judged before a change, and whose session begins after it, is noticed.
func TestEnforceOnSessionsThatBeginLate(t *testing.T) {
	t.Parallel()
	name := "late"
	h, _ := handler(t, fmt.Sprintf(`{"rules":[{"deny":["list",%q]}]}`, name))
	conn, _ := net.Pipe()
	a := newArrival(client{conn, from(one)})
	if !h.Serve(a) {
		t.Fatal("not let in")
	}
	edition := h.enforced.Edition()
	must(t, findList(name).add(newTestEntry("192.0.2.1/32", 0)))
	eventually(t, "the round", func() bool { return h.enforced.Edition() > edition })
	late := begin(t, a, scope(t))
	eventually(t, "the late one", func() bool { return late.reason.Load() == session.ReasonListChanged })
}

// Provision, reload and cleanup leave nothing behind; what both configs use is loaded once, and is the last one's to end.
func TestReload(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	path := tempFile(t, one)
	p := publish(t, textAnswer(two))
	config := fmt.Sprintf(`{"rules":[{"deny":["file",%q]},{"deny":["url",%q]},{"deny":["list","reload"]},{"deny":["country","CN"]}],"country_database":%q}`,
		path, p.URL, tempFile(t, string(countryDatabase)))
	h, unload := handler(t, config)
	for range 20 {
		next, unloadNext := handler(t, config)
		for i := range next.rules.all {
			if next.rules.all[i].list != h.rules.all[i].list {
				t.Errorf("%s was loaded again", next.rules.all[i].label)
			}
		}
		unload()
		h, unload = next, unloadNext
		if try(t, h, from(one)) || try(t, h, from(two)) || !try(t, h, from("198.51.100.1")) {
			t.Fatal("the lists are not in force")
		}
	}
	unload()
	if asked := p.asked.Load(); asked > 2 {
		t.Errorf("the URL was asked %d times", asked)
	}
	if findList("reload") != nil {
		t.Error("the dynamic list is still there")
	}
	p.Close()
}

// A config that fails in the middle gives back what it had acquired before.
func TestFailedProvision(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	path := tempFile(t, one)
	for _, last := range []string{`["file","/none"]`, `["url","http://127.0.0.1:1/"]`, `["country","CN"]`} {
		config := fmt.Sprintf(`{"rules":[{"deny":["file",%q]},{"deny":["list","failed"]},{"deny":%s}]}`, path, last)
		if _, _, err := tryProvision[*Handler](t, "layer4.handlers.acl", config); err == nil {
			t.Error("want an error")
		}
	}
	if findList("failed") != nil {
		t.Error("the dynamic list is still there")
	}
	sources.Each(func(key sourceKey, _ source) bool {
		if key.location == path {
			t.Error("the file is still watched")
		}
		return true
	})
}

// A handler that was never provisioned can be cleaned up, and one twice.
func TestCleanup(t *testing.T) {
	t.Parallel()
	must(t, new(Handler).Cleanup())
	must(t, new(Matcher).Cleanup())
	h, unload := handler(t, `{"default":"deny"}`)
	unload()
	must(t, h.Cleanup())
}

// BenchmarkDeny is what the handler does with a client that is denied, the log and the socket aside.
func BenchmarkDeny(b *testing.B) {
	config, _ := json.Marshal(map[string]any{"rules": []any{map[string]any{"deny": []string{"192.0.2.0/24"}}}})
	ctx, cancel := caddy.NewContext(caddy.ActiveContext())
	defer cancel()
	module, err := ctx.LoadModuleByID("layer4.handlers.acl", config)
	must(b, err)
	h := module.(*Handler)
	conn := nothing{}
	b.ReportAllocs()
	for b.Loop() {
		h.Serve(&session.Arrival{Conn: conn, Network: "tcp", Listener: "test", Client: netip.MustParseAddrPort("192.0.2.1:1")})
	}
}

type nothing struct{ net.Conn }

func (nothing) Close() error { return nil }

// A reload that changes how often a list is fetched leaves it in the metrics.
func TestMetricsOfAListWhoseIntervalChanges(t *testing.T) {
	t.Parallel()
	p := publish(t, textAnswer(one))
	config := func(interval string) string {
		return fmt.Sprintf(`{"rules":[{"deny":["url",%q,%q]}]}`, p.URL, interval)
	}
	name := "url " + p.URL
	_, unload := handler(t, config("1h"))
	_, unloadNext := handler(t, config("2h"))
	unload()
	if entries := testutil.ToFloat64(collectors.entries.WithLabelValues(name)); entries != 1 {
		t.Errorf("%v entries after the reload, want 1", entries)
	}
	unloadNext()
	if collectors.entries.DeleteLabelValues(name) || collectors.loaded.DeleteLabelValues(name) {
		t.Error("a list that nobody uses is in the metrics")
	}
}

// A config that is rejected leaves a list in the storage of the running one.
func TestStorageOfARejectedConfig(t *testing.T) {
	t.Parallel()
	d := openList(t, store(t))
	running, rejected := store(t), store(t)
	d.storage.Use(running)
	d.storage.Use(rejected)()
	must(t, d.add(newTestEntry("192.0.2.1/32", 0)))
	if !running.Exists(t.Context(), d.journal.entriesKey()) || rejected.Exists(t.Context(), d.journal.entriesKey()) {
		t.Error("the entry is not where the running config looks for it after a restart")
	}
}
