package forward

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// gauge returns the value of a metric of an upstream.
func failsOf(t *testing.T, h *Handler, name string) (fails, ejections, out float64) {
	t.Helper()
	_, ctx, unload := provision(t, fmt.Sprintf(`{"to": [%q]}`, name))
	defer unload()
	if h.watch.memory != nil {
		h.watch.failures().Out(func(upstream string, _ net.Addr) {
			if upstream == name {
				out++
			}
		})
	}
	return sum(t, ctx, "upstream_fails_total", name), sum(t, ctx, "upstream_ejections_total", name), out
}

// Sessions find out three times that an upstream is dead. After that they don't try it, also those of the next config.
func TestDeadUpstreamIsLeftAlone(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		dead, alive := refuses(), echo(t)
		config := fmt.Sprintf(`{"to": [%q, %q], "fail_duration": "1h"}`, dead, alive)
		h, _, unload := provision(t, config)
		session := func() entry {
			client := k.client(t, h)
			exchange(t, client, "ping")
			return finish(t, client)
		}
		failed := 0
		for range 20 {
			got := session()
			if got.Upstream != alive || got.Failed != "" && got.Failed != joined(dead) {
				t.Errorf("%+v", got)
			}
			if got.Failed != "" {
				failed++
			}
		}
		if failed != 3 {
			t.Errorf("%d of 20 sessions have tried the dead upstream", failed)
		}
		if fails, ejections, out := failsOf(t, h, dead); fails != 3 || ejections != 1 || out != 1 {
			t.Errorf("%v fails, taken out %v times, %v are out", fails, ejections, out)
		}
		if fails, ejections, out := failsOf(t, h, alive); fails != 0 || ejections != 0 || out != 0 {
			t.Errorf("of the other one: %v fails, taken out %v times, %v are out", fails, ejections, out)
		}
		former := unload
		h, _, _ = provision(t, config)
		former()
		for range 4 {
			if got := session(); got.Failed != "" {
				t.Errorf("after a reload: %+v", got)
			}
		}
	})
}

// That all upstreams are out is said once for each listener, whatever comes at others meanwhile: of one handler, they may be out for
// datagrams alone, or for one port of a range.
func TestAllOutIsSaidOnce(t *testing.T) {
	t.Parallel()
	var o outs
	for i, step := range []struct {
		network, listener string
		out, changes      bool
	}{
		{"tcp", ":1", false, false},
		{"udp", ":1", true, true},
		{"tcp", ":1", false, false},
		{"udp", ":1", true, false},
		{"udp", ":2", true, true},
		{"udp", ":2", false, true},
		{"udp", ":1", true, false},
		{"udp", ":1", false, true},
		{"udp", ":1", false, false},
		{"udp", ":1", true, true},
	} {
		if got := o.changes(&session.Session{Network: step.network, Listener: step.listener}, step.out); got != step.changes {
			t.Errorf("step %d: %t", i, got)
		}
	}
}

// The last upstreams are tried, however often they have failed.
func TestAllUpstreamsAreOut(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		address := refuses()
		h, ctx, _ := provision(t, fmt.Sprintf(`{"to": [%q], "fail_duration": "1h"}`, address))
		for range 5 {
			client := k.client(t, h)
			if n, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("got %d bytes, %v, want a reset", n, err)
			}
			if got := logged(t, client); got.Status != 502 || got.Failed != joined(address) {
				t.Errorf("%+v", got)
			}
		}
		if n := sum(t, ctx, "connect_duration_seconds", address); n != 5 {
			t.Errorf("%v attempts in connect_duration_seconds, want 5", n)
		}
		serve(t, "tcp", address, func(conn net.Conn) { _, _ = io.Copy(conn, conn) })
		client := k.client(t, h)
		exchange(t, client, "ping")
		finish(t, client)
		if _, _, out := failsOf(t, h, address); out != 0 {
			t.Error("it works and is out")
		}
	})
}

// An upstream that is tried again and works has sessions again.
func TestUpstreamComesBack(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		address := refuses()
		h, _, _ := provision(t, fmt.Sprintf(`{"to": [%q, %q], "max_fails": 1, "fail_duration": "10ms"}`, address, named(t, "127.0.0.1:0", "b")))
		client := k.client(t, h)
		read(t, client, "b")
		if got := finish(t, client); got.Failed != joined(address) {
			t.Errorf("%+v", got)
		}
		named(t, address, "a")
		eventually(t, func() error {
			client := k.client(t, h)
			defer finish(t, client)
			name := make([]byte, 1)
			if _, err := io.ReadFull(client, name); err != nil || string(name) != "a" {
				return fmt.Errorf("got %q, %v", name, err)
			}
			return nil
		})
	})
}

func TestNothingIsRemembered(t *testing.T) {
	t.Parallel()
	dead := refuses()
	h, _, _ := provision(t, fmt.Sprintf(`{"to": [%q, %q], "max_fails": 0}`, dead, echo(t)))
	failed := 0
	for range 20 {
		client, accepted := connect(t)
		handle(t, h, accepted)
		exchange(t, client, "ping")
		if finish(t, client).Failed != "" {
			failed++
		}
	}
	if failed != 10 {
		t.Errorf("%d of 20 sessions have tried the dead upstream", failed)
	}
}

// What a dead upstream took is not booked to the one that came after it.
func TestConnectDurationIsOfEachUpstream(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		dead, alive := refuses(), echo(t)
		h, ctx, _ := provision(t, fmt.Sprintf(`{"to": [%q, %q], "max_fails": 0}`, dead, alive))
		took := func(upstream string) float64 { return sum(t, ctx, "connect_duration_seconds", upstream) }
		deadBefore, aliveBefore := took(dead), took(alive) // of a test before, whose port this was
		for range 4 {
			client := k.client(t, h)
			exchange(t, client, "ping")
			finish(t, client)
		}
		if d, a := took(dead)-deadBefore, took(alive)-aliveBefore; d != 2 || a != 4 {
			t.Errorf("%v attempts of the dead upstream and %v of the other, want 2 and 4", d, a)
		}
	})
}

// What sessions count that outlive their config is in the series that are shown. These go half a minute after the last session.
// Not parallel: the timer of all metrics is one.
func TestSeriesOfSessionsThatOutliveTheirConfig(t *testing.T) {
	t.Cleanup(func() {
		if err := load(nil); err != nil {
			t.Error(err)
		}
	})
	unlogged := object{"portgate": object{}} // logs have goroutines of their own
	if err := load(unlogged); err != nil {
		t.Fatal(err)
	}
	running := caddy.ActiveContext()
	_ = running.Done() // makes the channel, which is not to be one of those of synctest
	synctest.Test(t, func(t *testing.T) {
		const name = "outlives.test:1"
		ctx, unload := caddy.NewContext(running)
		scope, err := session.NewScope(ctx, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		var w watch
		if err := w.begin(ctx, upstream.Policy{MaxFails: 2, FailDuration: 48 * time.Hour}, ""); err != nil {
			t.Fatal(err)
		}
		count := counts.Hold(name)
		w.series(name)
		begin := func() (sess *session.Session, end func()) {
			conn, peer := net.Pipe()
			sess = session.Begin(layer4.WrapConnection(conn, nil, zap.NewNop()), scope)
			return sess, func() {
				sess.End(session.End{Status: session.StatusNoUpstream})
				conn.Close()
				peer.Close()
			}
		}
		expect := func(when string, want map[string]float64) {
			t.Helper()
			synctest.Wait()
			if got := valuesOf(t, name); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: got %v, want %v", when, got, want)
			}
		}
		counted := func(fails, ejections, out float64) map[string]float64 {
			return map[string]float64{"upstream_fails_total": fails, "upstream_ejections_total": ejections, "upstream_ejected": out}
		}
		expect("before a session", counted(0, 0, 0))
		sess, end := begin()
		sess.SetUpstream(name, nil, count)
		w.unresolved(sess, name)
		expect("in the config", counted(1, 0, 0))
		kept, err := memories.Acquire(memoryKey{upstream.Policy{MaxFails: 2, FailDuration: 48 * time.Hour}, ""}, nil) // as the next config does
		if err != nil {
			t.Fatal(err)
		}
		unload()
		w.end()
		count.Release()
		time.Sleep(10 * time.Minute)
		for range 2 {
			w.attempted(sess, name, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}, errors.New("refused"))
		}
		expect("after the config", counted(3, 1, 1))
		end()
		expect("right after the session", counted(3, 1, 1))
		time.Sleep(time.Minute)
		expect("a minute after the session", map[string]float64{})
		sess, end = begin() // of a connection that has waited for a matcher since
		w.unresolved(sess, name)
		expect("in the last session", counted(1, 0, 1))
		end()
		time.Sleep(time.Minute)
		expect("a minute after the last session", map[string]float64{})
		_ = kept.Release()
	})
}

// valuesOf returns the metrics of this package for an upstream.
func valuesOf(t *testing.T, name string) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := meter.Register(registry, fails, ejections, ejected); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if metric.GetLabel()[0].GetValue() == name {
				values[strings.TrimPrefix(family.GetName(), "caddy_portgate_")] = metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
			}
		}
	}
	return values
}
