package session

import (
	"context"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/listeners"
)

func TestDatagramMetrics(t *testing.T) {
	t.Parallel()
	registry := newRegistry(t)
	label := newLabel()
	d := listeners.DatagramsOf(label)
	if listeners.DatagramsOf(label) != d || listeners.DatagramsOf(newLabel()) == d {
		t.Error("counts are not one per listener")
	}
	d.Up.Add(5)
	d.Down.Add(3)
	d.Evicted.Add(2)
	for reason := range listeners.DropReasons {
		d.Dropped[reason].Add(10 + int64(reason))
	}
	check := func(name string, want float64, labels map[string]string) {
		t.Helper()
		labels["listener"] = label
		if got, samples := value(t, registry, "caddy_portgate_"+name, labels); got != want || samples != 1 {
			t.Errorf("%s%v is %v in %d samples, want %v", name, labels, got, samples, want)
		}
	}
	check("datagrams_total", 5, map[string]string{"direction": "up"})
	check("datagrams_total", 3, map[string]string{"direction": "down"})
	check("udp_sessions_evicted_total", 2, map[string]string{})
	for i, reason := range []string{
		"queue_full", "accept_queue", "session_limit", "client_limit", "truncated", "proxy_header",
		"upstream_full", "upstream_refused", "limited", "reply_ratio", "send_failed",
	} {
		check("datagrams_dropped_total", 10+float64(i), map[string]string{"reason": reason})
	}
}

// A config in which nothing has a scope shows its datagrams too.
func TestRegister(t *testing.T) {
	t.Parallel()
	ctx, unload := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(unload)
	for range 2 { // each listener does so
		if err := Register(ctx); err != nil {
			t.Fatal(err)
		}
	}
	label := newLabel()
	listeners.DatagramsOf(label).Up.Add(1)
	if n, _ := value(t, ctx.GetMetricsRegistry(), "caddy_portgate_datagrams_total", map[string]string{"listener": label}); n != 1 {
		t.Errorf("%v datagrams", n)
	}
}
