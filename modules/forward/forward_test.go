package forward

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/forward/relay"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

func TestForward(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		upstream := echo(t)
		client := k.client(t, forwardTo(t, upstream))
		exchange(t, client, "ping")
		exchange(t, client, "pong")
		got := finish(t, client)
		if got.ConnectDuration <= 0 {
			t.Errorf("connect_duration is %v", got.ConnectDuration)
		}
		local := client.LocalAddr().(*net.TCPAddr)
		want := entry{
			Network: "tcp", Listener: got.Listener, ClientIP: "127.0.0.1", ClientPort: local.Port, Upstream: upstream,
			BytesUp: 8, BytesDown: 8, Duration: got.Duration, ConnectDuration: got.ConnectDuration, Status: 200, Reason: "client_fin",
		}
		if got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	})
}

// What matchers have read arrives first and once.
func TestPrefetchedBytesArriveFirst(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		h := forwardTo(t, echo(t))
		client, accepted := connect(t)
		cx := layer4.WrapConnection(k.wrap(accepted), []byte("matched "), zap.NewNop())
		go func() {
			_ = h.Handle(cx, nil)
			_ = cx.Close()
		}()
		if _, err := io.WriteString(client, "and more"); err != nil {
			t.Fatal(err)
		}
		read(t, client, "matched and more")
		if got := finish(t, client); got.BytesUp != 16 || got.BytesDown != 16 {
			t.Errorf("%+v", got)
		}
	})
}

func TestUpstreamsInTurn(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		h := forwardTo(t, named(t, "127.0.0.1:0", "a"), named(t, "127.0.0.1:0", "b"), named(t, "127.0.0.1:0", "c"))
		for i := range 6 {
			client := k.client(t, h)
			read(t, client, string("abc"[i%3]))
			finish(t, client)
		}
	})
}

func TestNextUpstreamWhereOneRefuses(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		good := echo(t)
		h := forwardTo(t, refuses(), refuses(), good)
		client := k.client(t, h)
		exchange(t, client, "ping")
		if got := finish(t, client); got.Upstream != good || got.Status != 200 || got.Error != "" {
			t.Errorf("%+v", got)
		}
	})
}

func TestNothingReachable(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		first, last, never := refuses(), refuses(), echo(t)
		h, _, _ := provision(t, fmt.Sprintf(`{"to": [%q, %q, %q], "retries": 1}`, first, last, never))
		client := k.client(t, h)
		if n, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %d bytes, %v, want a reset", n, err)
		}
		got := logged(t, client)
		if got.Status != 502 || got.Reason != "connect_failed" || got.Upstream != last {
			t.Errorf("%+v", got)
		}
		if !strings.Contains(got.Error, first) || !strings.Contains(got.Error, last) || strings.Contains(got.Error, never) {
			t.Errorf("the error does not name what was tried: %s", got.Error)
		}
	})
}

// A name is looked up within the time of a connection attempt.
func TestNames(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		_, port, _ := net.SplitHostPort(echo(t))
		for _, upstream := range []string{"tcp4/localhost:" + port, "tcp4/:" + port} {
			client := k.client(t, forwardTo(t, upstream))
			exchange(t, client, "ping")
			if got := finish(t, client); got.Upstream != "127.0.0.1:"+port {
				t.Errorf("%s: %+v", upstream, got)
			}
		}
	})
}

// The limits are the relay's to keep; here is shown that it has them.
func TestLimits(t *testing.T) {
	t.Parallel()
	for option, reason := range map[string]string{
		"idle_timeout": "idle_timeout", "half_close_timeout": "idle_timeout", "max_lifetime": "max_lifetime",
	} {
		t.Run(option, func(t *testing.T) {
			t.Parallel()
			overKinds(t, func(t *testing.T, k kind) {
				silent := serve(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
					_, _ = conn.Write([]byte("hello"))
					<-t.Context().Done() // which is before the test's cleanup
				})
				h, _, _ := provision(t, fmt.Sprintf(`{"to": [%q], %q: "2s"}`, silent, option)) // a busy machine takes a part of it until the first byte
				client := k.client(t, h)
				read(t, client, "hello")
				if option == "half_close_timeout" {
					_ = client.CloseWrite()
				}
				_, _ = io.Copy(io.Discard, client)
				if got := logged(t, client); got.Reason != reason || got.Status != 200 || got.Duration < 2 {
					t.Errorf("%+v", got)
				}
			})
		})
	}
}

// A client on a unix socket is forwarded as a socket.
func TestUnixSockets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	upstream := serve(t, "unix", filepath.Join(dir, "up"), func(conn net.Conn) { _, _ = io.Copy(conn, conn) })
	h := forwardTo(t, "unix/"+upstream)
	ln, err := net.Listen("unix", filepath.Join(dir, "down"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	returned := handle(t, h, accepted)
	exchange(t, client, "ping")
	_ = client.(*net.UnixConn).CloseWrite()
	if rest, err := io.ReadAll(client); err != nil || len(rest) > 0 {
		t.Errorf("got %q, %v", rest, err)
	}
	<-returned
	got := accessLog.wait(t, func(e entry) bool { return e.Listener == ln.Addr().String() })
	if want := (entry{
		Network: "unix", Listener: ln.Addr().String(), Upstream: upstream, BytesUp: 4, BytesDown: 4,
		Duration: got.Duration, ConnectDuration: got.ConnectDuration, Status: 200, Reason: "client_fin",
	}); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Nothing hangs on Handle's return where the connection can be detached, and all where it can't.
func TestHandleReturns(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		client, accepted := connect(t)
		conn := k.wrap(accepted)
		_, detaches := conn.(relay.Detacher)
		returned := handle(t, forwardTo(t, echo(t)), conn)
		exchange(t, client, "ping")
		if detaches {
			<-returned
		}
		select {
		case <-returned:
			if !detaches {
				t.Error("Handle has returned from a session that needs its goroutine")
			}
		default:
		}
		exchange(t, client, "pong")
		finish(t, client)
		<-returned
	})
}

func TestPlaceholdersOfTheEnvironment(t *testing.T) {
	t.Parallel()
	h := forwardTo(t, strings.Replace(echo(t), "127.0.0.1", "{env.PORTGATE_TEST_HOST}", 1))
	if h.rosters.now.Load().pool.Dynamic() {
		t.Error("what is known when the config is loaded is looked at for each session")
	}
	overKinds(t, func(t *testing.T, k kind) {
		client := k.client(t, h)
		exchange(t, client, "ping")
		finish(t, client)
	})
}

// Each session has the upstreams that its connection says, also when Handle has returned.
func TestPlaceholdersOfTheConnection(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		h := forwardTo(t, "{l4.vars.first}:9", "{env.PORTGATE_TEST_HOST}:{l4.vars.second}")
		for _, name := range []string{"a", "b"} {
			upstream := named(t, "127.0.0.1:0", name)
			_, port, _ := net.SplitHostPort(upstream)
			host, _, _ := net.SplitHostPort(refuses())
			client, accepted := connect(t)
			handle(t, h, k.wrap(accepted), func(cx *layer4.Connection) {
				cx.SetVar("first", host)
				cx.SetVar("second", port)
			})
			read(t, client, name)
			if got := finish(t, client); got.Upstream != upstream {
				t.Errorf("%+v", got)
			}
		}
	})
}

func TestPlaceholdersThatExpandToNothing(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		client := k.client(t, forwardTo(t, "127.0.0.1:{l4.vars.nothing}"))
		if n, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %d bytes, %v, want a reset", n, err)
		}
		got := logged(t, client)
		want := entry{
			Network: "tcp", Listener: got.Listener, ClientIP: "127.0.0.1", ClientPort: got.ClientPort,
			Upstream: "127.0.0.1:{l4.vars.nothing}", Duration: got.Duration, ConnectDuration: got.ConnectDuration, Status: 502, Reason: "connect_failed",
			Error:  `upstream "127.0.0.1:{l4.vars.nothing}": "127.0.0.1:": port "": expected a number from 1 to 65535`,
			Failed: "127.0.0.1:{l4.vars.nothing}",
		}
		if got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	})
}

// sum adds up the samples of a counter that have this upstream.
func sum(t *testing.T, ctx caddy.Context, name, upstream string) (total float64) {
	t.Helper()
	families, err := ctx.GetMetricsRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "caddy_portgate_"+name {
			continue
		}
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "upstream" && label.GetValue() == upstream {
					total += metric.GetCounter().GetValue() + metric.GetGauge().GetValue() + float64(metric.GetHistogram().GetSampleCount())
				}
			}
		}
	}
	return total
}

// The counters show a session while it lasts. Its upstream's label is what the config has, not what a client
// makes of it.
func TestBytesAreCountedWhileTheSessionLasts(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		_, port, _ := net.SplitHostPort(echo(t))
		label := "127.0.0.1:{l4.vars." + k.name + "}"
		h, ctx, _ := provision(t, fmt.Sprintf(`{"to": [%q]}`, label))
		before := sum(t, ctx, "bytes_total", label)
		client, accepted := connect(t)
		handle(t, h, k.wrap(accepted), func(cx *layer4.Connection) { cx.SetVar(k.name, port) })
		for i := range 3 {
			exchange(t, client, "ping")
			eventually(t, func() error {
				if got, want := sum(t, ctx, "bytes_total", label)-before, float64(8*(i+1)); got != want {
					return fmt.Errorf("%v bytes after %d exchanges, want %v", got, i+1, want)
				}
				return nil
			})
		}
		if n := sum(t, ctx, "connect_duration_seconds", label); n != sum(t, ctx, "sessions_total", label) {
			t.Errorf("%v connects of sessions that have ended", n)
		}
		finish(t, client)
		if got := sum(t, ctx, "bytes_total", label) - before; got != 24 {
			t.Errorf("%v bytes in the end", got)
		}
	})
}

// A session that is closed before it has an upstream has not been served.
func TestCloseWhileItConnects(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		label := "127.0.0.1:{test." + k.name + "}"
		h, ctx, _ := provision(t, fmt.Sprintf(`{"to": [%q]}`, label))
		_, port, _ := net.SplitHostPort(echo(t))
		client, accepted := connect(t)
		asked, answer := make(chan struct{}), make(chan struct{})
		var sess *session.Session
		handle(t, h, k.wrap(accepted), func(cx *layer4.Connection) {
			cx.Replacer().Map(func(string) (any, bool) {
				close(asked)
				<-answer
				return port, true
			})
			sess = session.Begin(cx, h.scope)
		})
		connects := sum(t, ctx, "connect_duration_seconds", label)
		<-asked
		sess.Close("admin_closed")
		close(answer)
		got := logged(t, client)
		if got.Status != 502 || got.Reason != "admin_closed" || got.BytesUp != 0 {
			t.Errorf("%+v", got)
		}
		if n := sum(t, ctx, "connect_duration_seconds", label); n != connects {
			t.Errorf("%v connects", n-connects)
		}
		if n, err := client.Read(make([]byte, 1)); err == nil {
			t.Errorf("got %d bytes", n)
		}
	})
}

func TestEnded(t *testing.T) {
	t.Parallel()
	failed := errors.New("failed")
	for _, c := range []struct {
		result relay.Result
		want   session.End
	}{
		{relay.Result{Reason: relay.ClientFIN, Connect: 1}, session.End{Status: 200, Reason: "client_fin", Connect: 1, Connected: true}},
		{relay.Result{Reason: relay.UpstreamFIN, Connect: 1}, session.End{Status: 200, Reason: "upstream_fin", Connect: 1, Connected: true}},
		{relay.Result{Reason: relay.ClientReset, Connect: 1}, session.End{Status: 200, Reason: "client_reset", Connect: 1, Connected: true}},
		{relay.Result{Reason: relay.UpstreamReset, Connect: 1}, session.End{Status: 200, Reason: "upstream_reset", Connect: 1, Connected: true}},
		{relay.Result{Reason: relay.IdleTimeout, Connect: 1}, session.End{Status: 200, Reason: "idle_timeout", Connect: 1, Connected: true}},
		{relay.Result{Reason: relay.MaxLifetime, Connect: 1}, session.End{Status: 200, Reason: "max_lifetime", Connect: 1, Connected: true}},
		{relay.Result{Reason: "drain", Connect: 1}, session.End{Status: 200, Reason: "drain", Connect: 1, Connected: true}},
		{relay.Result{Reason: "drain"}, session.End{Status: 502, Reason: "drain"}},
		{relay.Result{Reason: relay.MaxLifetime, Err: failed, Connect: 1}, session.End{Status: 502, Reason: "max_lifetime", Connect: 1, Err: failed}},
		{relay.Result{Reason: relay.ConnectFailed, Err: failed, Connect: 1}, session.End{Status: 502, Reason: "connect_failed", Connect: 1, Err: failed}},
		{relay.Result{Reason: relay.ConnectTimeout, Err: failed, Connect: 1}, session.End{Status: 504, Reason: "connect_timeout", Connect: 1, Err: failed}},
	} {
		if got := ended(c.result.Reason, c.result.Connect, c.result.Err); got != c.want {
			t.Errorf("%+v:\ngot  %+v\nwant %+v", c.result, got, c.want)
		}
	}
}

func TestUnwrap(t *testing.T) {
	t.Parallel()
	tcp, unix := new(net.TCPConn), new(net.UnixConn)
	hidden := struct{ net.Conn }{tcp}
	gate := configured{socket{tcp}, ""}
	for name, c := range map[string]struct {
		conn   net.Conn
		bufs   []string // of nested layer4 connections, from the inside
		socket net.Conn // nil where it can't be unwrapped
		want   string
	}{
		"socket":                  {tcp, []string{""}, tcp, ""},
		"socket with bytes":       {tcp, []string{"abc"}, tcp, "abc"},
		"unix socket":             {unix, []string{"abc"}, unix, "abc"},
		"gate":                    {gate, []string{"abc"}, gate, "abc"},
		"nested":                  {gate, []string{"", ""}, gate, ""},
		"nested, inner bytes":     {gate, []string{"inner", ""}, gate, "inner"},
		"nested, outer bytes":     {tcp, []string{"", "outer"}, tcp, "outer"},
		"nested, both have bytes": {tcp, []string{"second", "first "}, tcp, "first second"},
		"wrapped":                 {hidden, []string{"abc"}, nil, ""},
		"wrapped, nested":         {hidden, []string{"abc", "def"}, nil, ""},
	} {
		conn := c.conn
		var cx *layer4.Connection
		for _, buf := range c.bufs {
			cx = layer4.WrapConnection(addressed{conn}, []byte(buf), zap.NewNop())
			cx.Conn = conn
			conn = cx
		}
		got, prefetched := unwrap(cx)
		if want := c.socket; want == nil && got != cx || want != nil && got != want || string(prefetched) != c.want {
			t.Errorf("%s: got %T with %q", name, got, prefetched)
		}
	}
}

// The buffer of the matchers belongs to layer4, which has another use for it when Handle has returned.
func TestUnwrapCopies(t *testing.T) {
	t.Parallel()
	buf := []byte("matched")
	cx := layer4.WrapConnection(addressed{}, buf, zap.NewNop())
	cx.Conn = new(net.TCPConn)
	_, prefetched := unwrap(cx)
	copy(buf, "XXXXXXX")
	if !bytes.Equal(prefetched, []byte("matched")) {
		t.Errorf("got %q", prefetched)
	}
}

// lazy is a wrapper whose inner connection is behind an embedded pointer that is not set yet.
type lazy struct {
	*inner
	socket *net.TCPConn
}

type inner struct{ net.Conn }

func (l lazy) Read(b []byte) (int, error)         { return l.socket.Read(b) }
func (l lazy) Write(b []byte) (int, error)        { return l.socket.Write(b) }
func (l lazy) Close() error                       { return l.socket.Close() }
func (l lazy) LocalAddr() net.Addr                { return l.socket.LocalAddr() }
func (l lazy) RemoteAddr() net.Addr               { return l.socket.RemoteAddr() }
func (l lazy) SetDeadline(t time.Time) error      { return l.socket.SetDeadline(t) }
func (l lazy) SetReadDeadline(t time.Time) error  { return l.socket.SetReadDeadline(t) }
func (l lazy) SetWriteDeadline(t time.Time) error { return l.socket.SetWriteDeadline(t) }

// What a wrapper wraps may be behind a nil pointer: it is served through the wrapper itself.
func TestWrapperWithANilEmbeddedPointer(t *testing.T) {
	t.Parallel()
	h := forwardTo(t, echo(t))
	client, accepted := connect(t)
	handle(t, h, lazy{socket: accepted})
	exchange(t, client, "ping")
	if got := finish(t, client); got.Status != 200 || got.BytesUp != 4 {
		t.Errorf("%+v", got)
	}
}

func TestLastActive(t *testing.T) {
	t.Parallel()
	before := time.Now()
	m := mover{relay.New(relay.Config{})}
	if at := m.LastActive(); at.Before(before) || at.After(time.Now()) {
		t.Errorf("got %v", at)
	}
	if up, down := m.Moved(); up != 0 || down != 0 {
		t.Errorf("got %d, %d", up, down)
	}
}
