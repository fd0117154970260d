package forward

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// resets is an upstream that resets each connection when the client has sent something, as long as bad says so. Else it is an echo.
func resets(t *testing.T, bad func() bool) string {
	t.Helper()
	return serve(t, "tcp", newHost()+":9", func(conn net.Conn) {
		first := make([]byte, 1)
		if _, err := io.ReadFull(conn, first); err != nil {
			return
		}
		if bad() {
			_ = conn.(*net.TCPConn).SetLinger(0)
			return
		}
		_, _ = conn.Write(first)
		_, _ = io.Copy(conn, conn)
	})
}

// ask sends something and waits for an answer. The system reports a reset once: to the write, or to the read.
func ask(client net.Conn) error {
	if _, err := io.WriteString(client, "x"); err != nil {
		return err
	}
	_, err := client.Read(make([]byte, 1))
	return err
}

// wantReset requires that a client is reset, before or after it sends something.
func wantReset(t *testing.T, client net.Conn) {
	t.Helper()
	if err := ask(client); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("got %v, want a reset", err)
	}
}

// breakerStatesOf are the addresses of an upstream whose breaker is open and half open, as the metric has it.
func breakerStatesOf(t *testing.T, ctx caddy.Context, name string) string {
	t.Helper()
	families, err := ctx.GetMetricsRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, family := range families {
		if !strings.HasSuffix(family.GetName(), "upstream_breaker_state") {
			continue
		}
		for _, m := range family.GetMetric() {
			labels := make(prometheus.Labels)
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["upstream"] == name && m.GetGauge().GetValue() > 0 {
				states = append(states, fmt.Sprintf("%s %v", labels["state"], m.GetGauge().GetValue()))
			}
		}
	}
	return strings.Join(states, ", ")
}

// breakOpen has sessions be reset until the breaker of an upstream that resets is open.
func breakOpen(t *testing.T, k kind, h *Handler) {
	t.Helper()
	for range 2 {
		client := k.client(t, h)
		wantReset(t, client)
		if got := logged(t, client); got.Reason != "upstream_reset" {
			t.Errorf("%+v", got)
		}
	}
}

// Sessions that are reset open the breaker. Then none is tried, over a reload, too, and a handler with other terms knows nothing of it.
func TestBreakerOfFailures(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		var good atomic.Bool
		address := resets(t, func() bool { return !good.Load() })
		config := fmt.Sprintf(`{"to": [%q], "breaker": {"when": "failures 1", "min_sessions": 2, "open": "1h"}}`, address)
		h, ctx, unload := provision(t, config)
		refused := func(h *Handler) {
			t.Helper()
			client := k.client(t, h)
			wantReset(t, client)
			if got := logged(t, client); got.Status != 502 || got.Reason != "breaker_open" || got.Upstream != "" ||
				got.Error != upstream.ErrBreakerOpen.Error() {
				t.Errorf("%+v", got)
			}
		}
		breakOpen(t, k, h)
		if got := breakerStatesOf(t, ctx, address); got != "open 1" {
			t.Errorf("the metric says %q", got)
		}
		refused(h)
		next, _, _ := provision(t, config)
		unload()
		refused(next)
		other, _, _ := provision(t, strings.Replace(config, "failures 1", "failures 2", 1))
		good.Store(true)
		client := k.client(t, other)
		exchange(t, client, "ping")
		finish(t, client)
		refused(next)
	})
}

// A probe that goes well closes the breaker.
func TestBreakerCloses(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		var good atomic.Bool
		address := resets(t, func() bool { return !good.Load() })
		h, ctx, _ := provision(t, fmt.Sprintf(`{"to": [%q], "breaker": {"when": "failures 1", "min_sessions": 2, "open": "500ms"}}`, address))
		breakOpen(t, k, h)
		good.Store(true)
		eventually(t, func() error {
			client := k.client(t, h)
			err := ask(client)
			if err == nil {
				finish(t, client)
			} else {
				logged(t, client)                 // of few: entries of more would be sampled
				time.Sleep(50 * time.Millisecond) // until the next look
			}
			return err
		})
		if got := breakerStatesOf(t, ctx, address); got != "" {
			t.Errorf("the metric says %q when it is closed", got)
		}
		for range 3 {
			client := k.client(t, h)
			exchange(t, client, "ping")
			finish(t, client)
		}
	})
}

// A session that waits for its first byte opens the breaker when the byte is late, while it goes on.
func TestBreakerOfSlowSessions(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		answer := make(chan struct{})
		slow := serve(t, "tcp", newHost()+":9", func(conn net.Conn) {
			<-answer
			_, _ = io.Copy(conn, conn)
		})
		reply := sync.OnceFunc(func() { close(answer) })
		t.Cleanup(reply)
		h, _, _ := provision(t, fmt.Sprintf(`{"to": [%q], "breaker": {"when": "slow 0 50ms", "min_sessions": 1, "open": "1h"}}`, slow))
		waits := k.client(t, h)
		_, _ = io.WriteString(waits, "ping")
		eventually(t, func() error {
			client := k.client(t, h)
			defer client.Close()
			_ = client.SetDeadline(time.Now().Add(10 * time.Millisecond))
			if err := ask(client); !errors.Is(err, syscall.ECONNRESET) {
				return fmt.Errorf("got %v, want a reset", err)
			}
			return nil
		})
		reply()
		read(t, waits, "ping")
		if got := finish(t, waits); got.Status != 200 {
			t.Errorf("%+v", got)
		}
	})
}

// Others get the sessions of an upstream whose breaker is open, and what they count is their own.
func TestBreakerLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		broken, works := resets(t, func() bool { return true }), echo(t)
		h, _, _ := provision(t, fmt.Sprintf(
			`{"to": [%q, %q], "breaker": {"when": "errors 0.5", "min_sessions": 2, "open": "1h"}}`, broken, works))
		failed := 0
		for range 20 {
			client := k.client(t, h)
			if err := ask(client); err != nil {
				failed++
				logged(t, client)
				continue
			}
			finish(t, client)
		}
		if failed != 2 {
			t.Errorf("%d sessions were reset, want 2", failed)
		}
	})
}

// An upstream that was ejected gets few sessions when it is back. Nothing of that begins with a config.
func TestSlowStartAfterEjection(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		gone := refuses()
		config := fmt.Sprintf(`{"to": [%q, %q], "max_fails": 1, "fail_duration": "10ms", "slow_start": "1h"}`, gone, named(t, "127.0.0.1:0", "b"))
		h, _, _ := provision(t, config)
		visit := func() string {
			client := k.client(t, h)
			defer finish(t, client)
			name := make([]byte, 1)
			if _, err := io.ReadFull(client, name); err != nil {
				t.Fatal(err)
			}
			return string(name)
		}
		for range 2 {
			visit()
		}
		named(t, gone, "a")
		eventually(t, func() error {
			if visit() != "a" {
				return errors.New("it is not back")
			}
			return nil
		})
		count := func() (of int) {
			for range 40 {
				if visit() == "a" {
					of++
				}
			}
			return of
		}
		if n := count(); n < 2 || n > 6 {
			t.Errorf("it has %d of 40 sessions, want a tenth of the other one's", n)
		}
		h, _, _ = provision(t, config)
		if n := count(); n < 2 || n > 6 {
			t.Errorf("after a reload it has %d of 40 sessions, want a tenth of the other one's", n)
		}
	})
}

// What a handler holds goes with it, also where its config is refused.
func TestGuardIsReleased(t *testing.T) {
	t.Parallel()
	terms := upstream.Terms{
		Cause: upstream.CauseFailures, Count: 123456, Window: defaultWindow, MinSessions: defaultMinSessions, Open: defaultOpen, HalfOpen: defaultHalfOpen,
	}
	held := func() (held bool) {
		breakers.Each(func(key guardKey, _ guarded) bool {
			held = held || key.Terms == terms
			return true
		})
		return held
	}
	const config = `{"to": ["127.0.0.1:9"%s], "breaker": {"when": "failures 123456"}, "slow_start": "1s"}`
	_, _, unload := provision(t, fmt.Sprintf(config, ""))
	_, _, again := provision(t, fmt.Sprintf(config, ""))
	for _, unload := range []func(){unload, again} {
		if !held() {
			t.Error("nobody holds the breakers")
		}
		unload()
	}
	_, _, unload, err := tryProvision(t, fmt.Sprintf(config, `, "127.0.0.1:9"`))
	if err == nil {
		t.Error("a config with an upstream that is given twice is taken")
	}
	unload()
	if held() {
		t.Error("the breakers are held, and no handler is there")
	}
}

// Without a breaker nobody wants to know of the first byte, and nothing is watched.
func TestNoGuard(t *testing.T) {
	t.Parallel()
	h := forwardTo(t, "127.0.0.1:9")
	if h.guard.watched() != nil || h.guard.firstOf(h.guard.watched().Begin(0)) != nil {
		t.Error("there is a breaker")
	}
	if h.rosters.now.Load().pool.MaxEjected != 0.5 {
		t.Errorf("max_ejected is %v by default", h.rosters.now.Load().pool.MaxEjected)
	}
}
