package forward

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// setUpstream sets an upstream for the rest of the test.
func setUpstream(t *testing.T, name string, state runState, weight int) {
	t.Helper()
	if err := atRunTime.set(name, func(order) order { return order{state: state, weight: weight} }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = atRunTime.set(name, func(order) order { return order{weight: noWeight} }) })
}

// A drained upstream keeps its sessions and gets no others, also after a reload and one that fails.
func TestDrainedUpstream(t *testing.T) {
	t.Parallel()
	for _, state := range []runState{drain, maint} {
		overKinds(t, func(t *testing.T, k kind) {
			a, b := named(t, "127.0.0.1:0", "A"), named(t, "127.0.0.1:0", "B")
			config := fmt.Sprintf(`{"to": [%q, %q], "lb_policy": "first"}`, a, b)
			h, _, unload := provision(t, config)
			begin := func(want string) net.Conn {
				t.Helper()
				client := k.client(t, h)
				read(t, client, want)
				return client
			}
			living := begin("A")
			setUpstream(t, a, state, noWeight)
			begin("B")
			exchange(t, living, "goes on")
			if u := h.rosters.now.Load().pool.At(0); !u.Drained || u.Maint != (state == maint) {
				t.Errorf("drained %v, maint %v", u.Drained, u.Maint)
			}
			if _, _, _, err := tryProvision(t, fmt.Sprintf(`{"to": [%q], "source": ["192.0.2.1", "x"]}`, a)); err == nil {
				t.Error("the config is not refused")
			}
			h, _, _ = provision(t, config)
			unload()
			begin("B")
			exchange(t, living, "goes on")
			setUpstream(t, a, ready, noWeight)
			begin("A")
		})
	}
}

// Where all upstreams are drained, sessions end at once, with a reason of their own.
func TestAllUpstreamsAreDrained(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		a, b := echo(t), echo(t)
		h, _, _ := provision(t, fmt.Sprintf(`{"to": [%q, %q]}`, a, b))
		setUpstream(t, a, drain, noWeight)
		setUpstream(t, b, ready, 0)
		client := k.client(t, h)
		if n, err := client.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("read %d bytes, %v", n, err)
		}
		if e := logged(t, client); e.Status != session.StatusNoUpstream || e.Reason != "no_upstream" || e.Upstream != "" || e.Error == "" {
			t.Errorf("the entry is %+v", e)
		}
	})
}

// Weights of the run time hold for all handlers that name the upstream, over reloads with other ones, and are given back.
func TestWeightAtRunTime(t *testing.T) {
	t.Parallel()
	a, b := refuses(), refuses()
	config := func(weight int) string {
		return fmt.Sprintf(`{"to": [%q], "upstreams": [{"address": %q, "weight": %d}]}`, a, b, weight)
	}
	one, _, _ := provision(t, config(5))
	two, _, _ := provision(t, config(0))
	none, _, _ := provision(t, fmt.Sprintf(`{"to": [%q]}`, b+"0"))
	before := none.rosters.now.Load()
	expect := func(h *Handler, weight int, drained bool) {
		t.Helper()
		if u := h.rosters.now.Load().pool.At(1); u.Weight != weight || u.Drained != drained {
			t.Errorf("weight %d, drained %v, want %d, %v", u.Weight, u.Drained, weight, drained)
		}
	}
	setUpstream(t, b, ready, 3)
	expect(one, 3, false)
	expect(two, 3, false)
	three, _, _ := provision(t, config(7))
	expect(three, 3, false)
	setUpstream(t, b, drain, 0)
	expect(one, 0, true)
	setUpstream(t, b, drain, noWeight)
	expect(one, 5, true)
	setUpstream(t, b, ready, noWeight)
	expect(one, 5, false)
	expect(two, 0, true)
	expect(three, 7, false)
	if none.rosters.now.Load() != before {
		t.Error("a handler without the upstream got another roster")
	}
}

// What is set reaches all handlers, and files of TLS that are no good now keep none from it.
func TestSetReachesAllHandlers(t *testing.T) {
	t.Parallel()
	a, ca := refuses(), newAuthority(t)
	first, _, _ := provision(t, fmt.Sprintf(`{"to": [%q]}`, a))
	second, _, _ := provision(t, fmt.Sprintf(`{"to": [%q], "tls": {"ca": [%q], "server_name": "a.example"}}`, a, ca.file))
	third, _, _ := provision(t, fmt.Sprintf(`{"to": [%q, %q]}`, a, refuses()))
	before := second.rosters.now.Load().means[0].tls
	write(t, ca.file, []byte("damaged"))
	setUpstream(t, a, drain, noWeight)
	for i, h := range []*Handler{first, second, third} {
		if !h.rosters.now.Load().pool.At(0).Drained {
			t.Errorf("handler %d does not go by it", i+1)
		}
	}
	if second.rosters.now.Load().means[0].tls != before {
		t.Error("sessions of TLS can't be resumed any more")
	}
}

// Whatever is set while configs come and go: in the end all of them go by it, and everything is released.
func TestSetWhileConfigsCome(t *testing.T) {
	t.Parallel()
	a, b := refuses(), refuses()
	config := fmt.Sprintf(`{"to": [%q, %q]}`, a, b)
	var wg sync.WaitGroup
	for _, name := range []string{a, b} {
		wg.Go(func() {
			for i := range 200 {
				if err := atRunTime.set(name, func(order) order { return order{state: runState(i % 3), weight: i % 5} }); err != nil {
					t.Error(err)
				}
			}
			setUpstream(t, name, drain, 9)
		})
	}
	handlers := make([]*Handler, 4)
	for i := range handlers {
		wg.Go(func() {
			for range 50 {
				h, _, unload := provision(t, config)
				if handlers[i] = h; t.Failed() {
					return
				}
				unload()
			}
			handlers[i], _, _ = provision(t, config)
		})
	}
	wg.Wait()
	for _, h := range handlers {
		for i := range 2 {
			if u := h.rosters.now.Load().pool.At(i); u.Weight != 9 || !u.Drained || u.Maint {
				t.Errorf("weight %d, drained %v, maint %v", u.Weight, u.Drained, u.Maint)
			}
		}
	}
}

// What is set outlives the configs that have the upstream, and is bounded where none has it.
func TestOrdersOfAbsentUpstreams(t *testing.T) {
	t.Parallel()
	orders, now := new(allOrders), refuses()
	forwardTo(t, now)
	take := func(name string) {
		orders.change(name, func(order) order { return order{state: drain, weight: noWeight} })
	}
	take(now)
	for i := range maxAbsent + 10 {
		take(fmt.Sprintf("absent.example:%d", i))
	}
	got := *orders.now.Load()
	if len(got) != maxAbsent+1 || got.of(now).state != drain {
		t.Errorf("%d orders are left", len(got))
	}
	for i := range maxAbsent + 10 {
		if want := i >= 10; got.of(fmt.Sprintf("absent.example:%d", i)).shut() != want {
			t.Errorf("upstream %d, kept: want %v", i, want)
		}
	}
}

// An upstream that a handler is given while something is said of it is as it was said.
func TestSetWhileUpstreamsAreGiven(t *testing.T) {
	t.Parallel()
	stays, comes := refuses(), refuses()
	both := forwardTo(t, stays, comes).rosters.now.Load().given()
	h := forwardTo(t, stays)
	made, goOn := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.rosters.change(func(*roster) (*roster, error) {
			next, err := h.newRoster(h.rosters.now.Load(), slices.Clone(both)) // does not know yet what is said
			close(made)
			<-goOn
			return next, err
		}); err != nil {
			t.Error(err)
		}
	})
	<-made
	wg.Go(func() { setUpstream(t, comes, ready, 7) })
	eventually(t, func() error {
		if weight := atRunTime.now.Load().of(comes).weight; weight != 7 {
			return fmt.Errorf("the weight is %d", weight)
		}
		return nil
	})
	for range 1000 {
		runtime.Gosched() // who does not wait for the change would be done by then
	}
	close(goOn)
	wg.Wait()
	if u := h.rosters.now.Load().pool.At(1); u.Weight != 7 {
		t.Errorf("the weight is %d", u.Weight)
	}
}
