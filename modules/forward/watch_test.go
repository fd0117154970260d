package forward

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
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
		for range 4 {
			client := k.client(t, h)
			exchange(t, client, "ping")
			finish(t, client)
		}
		if d, a := sum(t, ctx, "connect_duration_seconds", dead), sum(t, ctx, "connect_duration_seconds", alive); d != 2 || a != 4 {
			t.Errorf("%v attempts of the dead upstream and %v of the other, want 2 and 4", d, a)
		}
	})
}
