package forward

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

// livingOf returns how many sessions of each upstream live, and those of which none is remembered as -1.
func livingOf(names ...string) (all []int64) {
	now := make(map[string]int64)
	counts.Each(func(name string, n int64) { now[name] = n })
	for _, name := range names {
		n, known := now[name]
		if !known {
			n = -1
		}
		all = append(all, n)
	}
	return all
}

func expectLiving(t *testing.T, when string, names []string, want ...int64) {
	t.Helper()
	eventually(t, func() error {
		if got := livingOf(names...); fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("%s: %v live, want %v", when, got, want)
		}
		return nil
	})
}

// A session is counted at the upstream that has it, and nowhere once it has ended: also one that tried another upstream before, that found
// none, that outlives its config, and that begins after it.
func TestSessionsAreCountedOnce(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		names := []string{refuses(), echo(t)}
		config := fmt.Sprintf(`{"to": [%q], "upstreams": [{"address": %q, "weight": 3}], "max_fails": 0}`, names[0], names[1])
		h, _, unload := provision(t, config)
		expectLiving(t, "before a session", names, 0, 0)
		clients := []*net.TCPConn{k.client(t, h), k.client(t, h), k.client(t, h)}
		for _, client := range clients {
			exchange(t, client, "ping")
		}
		expectLiving(t, "three sessions", names, 0, 3)
		finish(t, clients[0])
		expectLiving(t, "two sessions", names, 0, 2)
		_, _, unloadNext := provision(t, config)
		unload()
		expectLiving(t, "after a reload", names, 0, 2)
		unloadNext()
		expectLiving(t, "without a config", names, -1, 2)
		late := k.client(t, h)
		exchange(t, late, "ping")
		expectLiving(t, "a late session", names, -1, 3)
		finish(t, late)
		finish(t, clients[1])
		finish(t, clients[2])
		expectLiving(t, "after all", names, -1, -1)
	})
}

func TestSessionsWithoutUpstreamAreNotCounted(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		names := []string{refuses(), refuses()}
		h, _, unload := provision(t, fmt.Sprintf(`{"to": [%q, %q]}`, names[0], names[1]))
		for range 5 {
			client := k.client(t, h)
			if n, err := client.Read(make([]byte, 1)); err == nil {
				t.Errorf("read %d bytes", n)
			}
			logged(t, client)
		}
		expectLiving(t, "after all", names, 0, 0)
		unload()
		expectLiving(t, "without a config", names, -1, -1)
	})
}

// Two handlers that forward to the same upstreams know of each other's sessions.
func TestHandlersShareCounts(t *testing.T) {
	t.Parallel()
	a, b := named(t, "127.0.0.1:0", "A"), named(t, "127.0.0.1:0", "B")
	config := fmt.Sprintf(`{"to": [%q, %q], "lb_policy": "least_conn"}`, a, b)
	one, _, _ := provision(t, fmt.Sprintf(`{"to": [%q]}`, a))
	two, _, _ := provision(t, config)
	k := kind{"detachable", detachable}
	var clients []*net.TCPConn
	begin := func(h *Handler, want string) {
		t.Helper()
		client := k.client(t, h)
		read(t, client, want)
		clients = append(clients, client)
	}
	for range 3 {
		begin(one, "A")
	}
	for range 3 {
		begin(two, "B")
	}
	two, _, _ = provision(t, config) // a reload forgets nothing
	begin(one, "A")
	begin(two, "B")
	for _, client := range clients {
		finish(t, client)
	}
	expectLiving(t, "after all", []string{a, b}, 0, 0)
}

// Configs that are loaded at the same time count no session twice.
func TestConcurrentReloadsCountOnce(t *testing.T) {
	upstream, addr := echo(t), newHost()+":7000"
	servers := object{"a": server(to([]string{upstream}, object{"lb_policy": "least_conn"}), "detachable/"+addr)}
	mustLoad(t, servers)
	var held []*net.TCPConn
	for range 5 {
		client := dial(t, addr)
		exchange(t, client, "ping")
		held = append(held, client)
	}
	var loading sync.WaitGroup
	for range 2 {
		loading.Go(func() {
			for range 20 {
				if err := load(object{"layer4": object{"servers": servers}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	loading.Wait()
	for range 5 {
		client := dial(t, addr)
		exchange(t, client, "ping")
		finish(t, client)
	}
	expectLiving(t, "after the reloads", []string{upstream}, 5)
	registry := prometheus.NewPedanticRegistry()
	if err := meter.Register(registry, living); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	shownNow := make(map[string]float64)
	for _, metric := range families[0].GetMetric() {
		shownNow[metric.GetLabel()[0].GetValue()] = metric.GetGauge().GetValue()
	}
	if shownNow[upstream] != 5 {
		t.Errorf("the metric shows %v", shownNow[upstream])
	}
	for _, client := range held {
		exchange(t, client, "pong")
		finish(t, client)
	}
	expectLiving(t, "after all", []string{upstream}, 0)
}

// The series of an upstream that a handler does not have any more go, though its config goes on: when the last of its sessions has ended, and half
// a minute is over. Those of an upstream that stays go on.
func TestSeriesOfUpstreamsThatGo(t *testing.T) {
	t.Parallel()
	stays, goes := named(t, "127.0.0.1:0", "S"), named(t, "127.0.0.1:0", "G")
	h := forwardTo(t, stays, goes)
	k := kind{"detachable", detachable}
	var clients []*net.TCPConn
	for range 2 {
		client := k.client(t, h)
		_, _ = io.ReadFull(client, make([]byte, 1))
		clients = append(clients, client)
	}
	upstreams, now := h.rosters.now.Load().given(), valuesOf(t, goes)
	if len(now) == 0 || upstreams[0].Name != stays {
		t.Fatalf("series %v of %s", now, upstreams[0].Name)
	}
	if err := h.give(upstreams[:1]); err != nil {
		t.Fatal(err)
	}
	expectLiving(t, "without the upstream", []string{stays, goes}, 1, 1)
	for _, client := range clients {
		finish(t, client)
	}
	expectLiving(t, "after the sessions", []string{stays, goes}, 0, -1)
	eventually(t, func() error {
		if left := valuesOf(t, goes); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	if len(valuesOf(t, stays)) == 0 {
		t.Error("the series of the upstream that stays have gone")
	}
	client := k.client(t, h)
	read(t, client, "S")
	finish(t, client)
}
