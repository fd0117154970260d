package session

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/listeners"
)

// scopeOf is newScope for a test whose time is its own.
func scopeOf(t *testing.T) (*Scope, context.CancelFunc) {
	t.Helper()
	ctx, unload := caddy.NewContext(caddy.Context{Context: context.Background()})
	sc, err := NewScope(ctx, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	sc.log = zap.NewNop()
	return sc, unload
}

// serve has a session on the listener, with this upstream, and returns how to end it.
func serve(t *testing.T, sc *Scope, listener, upstream string) (end func()) {
	t.Helper()
	s := Begin(wrap(gateConn{conn{nil, tcpAddr("127.0.0.1:80"), tcpAddr("192.0.2.1:1")}, listener}), sc)
	s.SetMover(newMover())
	s.SetUpstream(upstream, nil, nil)
	listeners.DatagramsOf(listener).Up.Add(1)
	return func() { s.End(End{Status: StatusDone, Connected: true, Connect: time.Millisecond}) }
}

// seriesOf returns how many series there are of a listener and of an upstream.
func seriesOf(t *testing.T, listener, upstream string) (n int) {
	t.Helper()
	families, err := newRegistry(t).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "listener" && label.GetValue() == listener || label.GetName() == "upstream" && label.GetValue() == upstream {
					n++
					break
				}
			}
		}
	}
	return n
}

// A thousand configs with another listener and another upstream each leave no series a minute later but those of the one that runs.
// Not parallel: the timer of all metrics is one.
func TestSeriesOfConfigsThatAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const reloads = 1000
		name := func(i int) (listener, upstream string) {
			return fmt.Sprintf("gone:%d", i), fmt.Sprintf("gone-up:%d", i)
		}
		var unload context.CancelFunc
		for i := range reloads {
			sc, next := scopeOf(t)
			listener, upstream := name(i)
			serve(t, sc, listener, upstream)()
			if unload != nil {
				unload()
			}
			unload = next
		}
		if seriesOf(t, "gone:0", "gone-up:0") == 0 {
			t.Error("a series went at once")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		last := reloads - 1
		for i := range reloads {
			listener, upstream := name(i)
			if i%100 == 0 || i == last {
				if n := seriesOf(t, listener, upstream); (n > 0) != (i == last) {
					t.Errorf("config %d of %d: %d series", i, reloads, n)
				}
			}
		}
		unload()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := seriesOf(t, "gone:999", "gone-up:999"); n != 0 {
			t.Errorf("%d series of the last one", n)
		}
	})
}

// A series stays while a session has its listener or its upstream, and where the next config has them it goes on counting.
func TestSeriesThatStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, unload := scopeOf(t)
		end := serve(t, old, "stays:1", "stays-up:1")
		for range 3 {
			serve(t, old, "stays:2", "stays-up:2")()
		}
		next, unloadNext := scopeOf(t)
		next.Hold("listener", "stays:2")
		next.Hold("upstream", "stays-up:2")
		unload()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if seriesOf(t, "stays:1", "stays-up:1") == 0 {
			t.Error("the series of a living session went")
		}
		serve(t, next, "stays:2", "stays-up:2")()
		if n, _ := value(t, newRegistry(t), "caddy_portgate_sessions_total", map[string]string{"listener": "stays:2", "upstream": "stays-up:2"}); n != 4 {
			t.Errorf("%v sessions in the config that has the listener too, want 4", n)
		}
		end()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := seriesOf(t, "stays:1", "stays-up:1"); n != 0 {
			t.Errorf("%d series after the last session", n)
		}
		// A connection that has waited for a matcher since.
		serve(t, old, "stays:3", "stays-up:3")()
		old.Hold("listener", "stays:4")
		unloadNext()
		time.Sleep(time.Minute)
		synctest.Wait()
		for i := 2; i <= 4; i++ {
			if n := seriesOf(t, fmt.Sprintf("stays:%d", i), fmt.Sprintf("stays-up:%d", i)); n != 0 {
				t.Errorf("%d series of stays:%d", n, i)
			}
		}
	})
}
