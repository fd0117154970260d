package forward

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portgate/caddy-portgate/modules/forward/relay"
	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// overEntrances runs a test over all kinds of connections, and over the fast path.
func overEntrances(t *testing.T, test func(t *testing.T, client func(*Handler) *net.TCPConn)) {
	overKinds(t, func(t *testing.T, k kind) {
		test(t, func(h *Handler) *net.TCPConn { return k.client(t, h) })
	})
	for name, wrap := range map[string]func(*net.TCPConn) net.Conn{
		"serve":            func(c *net.TCPConn) net.Conn { return c },
		"serve/detachable": detachable,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, func(h *Handler) *net.TCPConn {
				client, accepted := connect(t)
				h.Serve(&session.Arrival{
					Conn: wrap(accepted), Network: "tcp", Listener: "test:serve", Client: client.LocalAddr().(*net.TCPAddr).AddrPort(),
				})
				return client
			})
		})
	}
}

// crowd is an echo that knows how many sessions it has, and had at most.
type crowd struct {
	mu        sync.Mutex
	now, most int
}

func (c *crowd) serve(conn net.Conn) {
	c.mu.Lock()
	c.now++
	c.most = max(c.most, c.now)
	c.mu.Unlock()
	_, _ = io.Copy(conn, conn)
	c.mu.Lock()
	c.now--
	c.mu.Unlock()
}

// highest is how many sessions there were at once.
func (c *crowd) highest() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.most
}

// queueing is the config of a handler with one upstream and a queue.
func queueing(upstream string, limit, count int, longest string) string {
	config, _ := json.Marshal(object{
		"upstreams": []object{{"address": upstream, "max_connections": limit}},
		"queue":     object{"count": count, "duration": longest},
	})
	return string(config)
}

// expectWaiting waits until so many wait.
func expectWaiting(t *testing.T, h *Handler, n int64) {
	t.Helper()
	eventually(t, func() error {
		if got := h.queue.Waiting(); got != n {
			return fmt.Errorf("%d wait, want %d", got, n)
		}
		return nil
	})
}

// expectRefused requires that a client is reset.
func expectRefused(t *testing.T, client *net.TCPConn) {
	t.Helper()
	if n, err := client.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("got %d bytes, %v", n, err)
	}
}

func expectEnd(t *testing.T, client *net.TCPConn, status int, reason string) {
	t.Helper()
	if got := logged(t, client); got.Status != status || got.Reason != reason {
		t.Errorf("got %+v, want %d %s", got, status, reason)
	}
}

// Sessions wait while the upstream is full, in order of arrival, and those beyond are refused. One that leaves gives its place up.
func TestQueue(t *testing.T) {
	t.Parallel()
	overEntrances(t, func(t *testing.T, client func(*Handler) *net.TCPConn) {
		all := new(crowd)
		upstream := serve(t, "tcp", "127.0.0.1:0", all.serve)
		h, _, _ := provision(t, queueing(upstream, 2, 3, "1h"))
		first, second := client(h), client(h)
		exchange(t, first, "first")
		exchange(t, second, "second")
		var waiting []*net.TCPConn
		for i := range 3 {
			waiting = append(waiting, client(h))
			expectWaiting(t, h, int64(i+1))
		}
		late := client(h)
		expectRefused(t, late)
		expectEnd(t, late, 503, "queue_full")

		_ = waiting[1].SetLinger(0)
		waiting[1].Close()
		left := int64(2)
		if !noticesLeaving(t) {
			left = 3
		}
		expectWaiting(t, h, left)
		finish(t, first)
		exchange(t, waiting[0], "third")
		finish(t, second)
		exchange(t, waiting[2], "fourth")
		if left == 2 {
			expectEnd(t, waiting[1], 499, "client_reset")
		}
		expectWaiting(t, h, 0)
		finish(t, waiting[0])
		finish(t, waiting[2])
		if all.highest() > 2 {
			t.Errorf("%d sessions at once", all.highest())
		}
		expectLiving(t, "after all", []string{upstream}, 0)
	})
}

// One that waits too long is refused, and the next one goes on waiting.
func TestQueueTimeout(t *testing.T) {
	t.Parallel()
	overEntrances(t, func(t *testing.T, client func(*Handler) *net.TCPConn) {
		upstream := echo(t)
		h, _, _ := provision(t, queueing(upstream, 1, 10, "300ms"))
		first := client(h)
		exchange(t, first, "first")
		start, late := time.Now(), client(h)
		expectRefused(t, late)
		if took := time.Since(start); took < 300*time.Millisecond {
			t.Errorf("refused after %v", took)
		}
		expectEnd(t, late, 503, "queue_timeout")
		finish(t, first)
		next := client(h)
		exchange(t, next, "next")
		finish(t, next)
	})
}

// Without a queue, nobody waits: not for one that is full, and not for others that are.
func TestFullWithoutQueue(t *testing.T) {
	t.Parallel()
	overEntrances(t, func(t *testing.T, client func(*Handler) *net.TCPConn) {
		names := []string{echo(t), echo(t)}
		h, _, _ := provision(t, fmt.Sprintf(
			`{"upstreams": [{"address": %q, "max_connections": 1}, {"address": %q, "max_connections": 2, "backup": true}]}`, names[0], names[1]))
		var all []*net.TCPConn
		for range 3 {
			all = append(all, client(h))
			exchange(t, all[len(all)-1], "hello")
		}
		expectLiving(t, "three sessions", names, 1, 2)
		late := client(h)
		expectRefused(t, late)
		expectEnd(t, late, 503, "no_upstream")
		for _, c := range all {
			finish(t, c)
		}
		expectLiving(t, "after all", names, 0, 0)
	})
}

// Each handler keeps to its own limit, and all count the same sessions.
func TestLimitsOfSeveralHandlers(t *testing.T) {
	t.Parallel()
	overEntrances(t, func(t *testing.T, client func(*Handler) *net.TCPConn) {
		upstream := echo(t)
		narrow, _, _ := provision(t, queueing(upstream, 1, 10, "1h"))
		wide, _, _ := provision(t, queueing(upstream, 2, 10, "1h"))
		one := client(narrow)
		exchange(t, one, "one")
		waits := client(narrow)
		expectWaiting(t, narrow, 1)
		two := client(wide)
		exchange(t, two, "two")
		alsoWaits := client(wide)
		expectWaiting(t, wide, 1)
		finish(t, one)
		exchange(t, alsoWaits, "three") // there is one left, as many as the first handler may have
		expectWaiting(t, narrow, 1)
		finish(t, two)
		finish(t, alsoWaits)
		exchange(t, waits, "four")
		finish(t, waits)
	})
}

// A reload loses nobody who waits: neither one with the same handler, after which all keep their order, nor one with another or without.
func TestReloadWhileManyWait(t *testing.T) {
	const limit, many = 10, 100
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			all := new(crowd)
			upstream, addr := serve(t, "tcp", "127.0.0.1:0", all.serve), newHost()+":7000"
			var handler object
			if err := json.Unmarshal([]byte(queueing(upstream, limit, many, "1h")), &handler); err != nil {
				t.Fatal(err)
			}
			handler["handler"] = "forward"
			reload := func(handler object) {
				t.Helper()
				if err := load(object{"layer4": object{"servers": object{"s": server(handler, network+"/"+addr)}}}); err != nil {
					t.Fatal(err)
				}
			}
			mustLoad(t, object{"s": server(handler, network+"/"+addr)})
			waiting := func() (n int64) {
				queues.Each(func(_ string, q *queue) bool { n += q.Waiting(); return true })
				return n
			}
			expect := func(n int64) {
				t.Helper()
				eventually(t, func() error {
					if got := waiting(); got != n {
						return fmt.Errorf("%d wait, want %d", got, n)
					}
					return nil
				})
			}
			var served, wait []*net.TCPConn
			for i := range limit {
				served = append(served, dial(t, addr))
				exchange(t, served[i], "hello")
			}
			for i := range many {
				wait = append(wait, dial(t, addr))
				expect(int64(i + 1))
				if i == many/2 {
					reload(handler)
				}
			}
			for range 3 {
				reload(handler)
			}
			if refused, err := net.Dial("tcp", addr); err == nil { // else it was reset before it knew that it is connected
				expectRefused(t, refused.(*net.TCPConn))
				refused.Close()
			}
			accessLog.wait(t, func(e entry) bool { return e.Reason == "queue_full" && e.Status == 503 })
			for i, c := range wait[:many/2] {
				finish(t, served[i])
				exchange(t, c, "next")
				served = append(served, c)
			}
			expect(many / 2)
			changed := object{"handler": "forward", "upstreams": handler["upstreams"], "queue": object{"count": 5, "duration": "1h"}}
			reload(changed)
			expect(0) // of the new handler; the others go on
			for i, c := range wait[many/2:] {
				if i == many/4 {
					reload(to([]string{echo(t)}))
				}
				finish(t, served[many/2+i])
				exchange(t, c, "last")
				served = append(served, c)
			}
			for _, c := range served[many:] {
				finish(t, c)
			}
			if all.highest() > limit {
				t.Errorf("%d sessions at once", all.highest())
			}
			expectLiving(t, "after all", []string{upstream}, -1)
		})
	}
}

// Reloads at the same time count nothing twice.
func TestLimitWhileHandlersComeAndGo(t *testing.T) {
	t.Parallel()
	all := new(crowd)
	upstream := serve(t, "tcp", "127.0.0.1:0", all.serve)
	config := queueing(upstream, 3, 1000, "1h")
	lasting, _, _ := provision(t, config)
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for range 25 {
				h, _, unload := provision(t, config)
				client, accepted := connect(t)
				handle(t, h, detachable(accepted))
				unload()
				exchange(t, client, "hello")
				finish(t, client)
			}
		})
	}
	clients.Wait()
	if all.highest() > 3 || lasting.queue.Waiting() != 0 {
		t.Errorf("%d sessions at once, %d wait", all.highest(), lasting.queue.Waiting())
	}
	expectLiving(t, "after all", []string{upstream}, 0)
}

// A session goes on trying upstreams, those that it has tried as well.
func TestTryDuration(t *testing.T) {
	t.Parallel()
	overEntrances(t, func(t *testing.T, client func(*Handler) *net.TCPConn) {
		refuses, later := refuses(), newHost()+":7000"
		h, _, _ := provision(t, fmt.Sprintf(
			`{"to": [%q, %q], "max_fails": 0, "lb_try_duration": "1h", "lb_try_interval": "20ms"}`, refuses, later))
		c := client(h)
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		leaves := client(h)
		eventually(t, func() error {
			if got := livingOf(refuses, later); !slices.Equal(got, []int64{0, 0}) {
				return fmt.Errorf("counted at %v while they wait", got)
			}
			return nil
		})
		if noticesLeaving(t) {
			_ = leaves.SetLinger(0)
			leaves.Close()
			expectEnd(t, leaves, 499, "client_reset")
		}
		named(t, later, "welcome ")
		if !noticesLeaving(t) {
			read(t, leaves, "welcome ")
			finish(t, leaves)
		}
		read(t, c, "welcome hello")
		if got := finish(t, c); got.Status != 200 || got.Upstream != later || len(got.Failed) == 0 {
			t.Errorf("%+v", got)
		}
	})
}

func TestTryDurationIsOver(t *testing.T) {
	t.Parallel()
	overEntrances(t, func(t *testing.T, client func(*Handler) *net.TCPConn) {
		h, _, _ := provision(t, fmt.Sprintf(`{"to": [%q], "max_fails": 0, "lb_try_duration": "300ms", "lb_try_interval": "100ms"}`, refuses()))
		start, c := time.Now(), client(h)
		expectRefused(t, c)
		if took := time.Since(start); took < 200*time.Millisecond {
			t.Errorf("gave up after %v", took)
		}
		if got := logged(t, c); got.Status != 502 || got.Reason != "connect_failed" || got.Error == "" {
			t.Errorf("%+v", got)
		}
	})
}

// Whoever waits keeps its handler, until drain_timeout ends it.
func TestWaitingSessionsAreDrained(t *testing.T) {
	t.Parallel()
	overEntrances(t, func(t *testing.T, client func(*Handler) *net.TCPConn) {
		upstream := echo(t)
		for _, config := range []string{
			fmt.Sprintf(`{"to": [%q], "max_fails": 0, "lb_try_duration": "1h", "drain_timeout": "100ms"}`, refuses()),
			fmt.Sprintf(`{"upstreams": [{"address": %q, "max_connections": 1}], "queue": {"count": 9, "duration": "1h"}, "drain_timeout": "100ms"}`, upstream),
		} {
			h, _, unload := provision(t, config)
			holds := client(h)
			if h.queue != nil {
				exchange(t, holds, "hello")
			}
			waits := client(h)
			if h.queue != nil {
				expectWaiting(t, h, 1)
			}
			unload()
			for _, c := range []*net.TCPConn{holds, waits} {
				if _, err := io.ReadAll(c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
					t.Fatal(err)
				}
				if got := logged(t, c); got.Reason != "drain" {
					t.Errorf("%+v", got)
				}
			}
		}
	})
}

// A session of datagrams that keeps its upstream is counted there, though a place was reserved for it at another one that can't be used.
func TestSessionThatKeepsItsUpstreamIsCountedThere(t *testing.T) {
	t.Parallel()
	names := []string{"udp/" + refuses(), "tcp/" + refuses()} // datagrams can't be sent to the second one
	h, _, _ := provision(t, fmt.Sprintf(
		`{"upstreams": [{"address": %q, "max_connections": 1}, {"address": %q, "max_connections": 1}], "lb_policy": "first"}`, names[0], names[1]))
	sess := (&session.Arrival{Network: "udp", Listener: "test:keeps"}).Begin(h.scope)
	begin := func(r *roster) *way { return h.way(sess, nil, r) }
	u := &datagramUpstreams{h: h, sess: sess, begin: begin, way: begin(h.rosters.now.Load()), roster: h.rosters.now.Load()}
	if addr, err := u.next(t.Context(), nil); err != nil || addr == nil {
		t.Fatal(addr, err)
	}
	held := counts.Hold(names[0])
	other := held.Begin() // a session of a handler without a limit: there is no other place
	for range 3 {
		if addr, err := u.next(t.Context(), &relay.Lost{Err: syscall.ECONNREFUSED, Refused: true}); err == nil && addr.String() != names[0][4:] {
			t.Fatalf("got %v", addr)
		}
		expectLiving(t, "with its upstream", names, 2, 0)
	}
	other.End()
	held.Release()
	sess.End(session.End{})
	expectLiving(t, "after all", names, 0, 0)
}

// A queue looks for room as soon as a session of an upstream ends that it watches, and lets go of those that it need not watch any more.
func TestQueueWatches(t *testing.T) {
	t.Parallel()
	const first, second = "queue-watches.example:1", "queue-watches.example:2"
	one, two := counts.Hold(first), counts.Hold(second) // the metrics of upstreams go by the clock of the system
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(9, time.Hour)
		q.watch([]upstream.Upstream{{Name: first, MaxSessions: 1}})
		q.watch([]upstream.Upstream{{Name: second, MaxSessions: 2}, {Name: "queue-watches.example:3"}})
		if len(q.rooms) != 1 || q.rooms[room{second, 2}] == nil {
			t.Errorf("watches %v", q.rooms)
		}
		session := two.Begin()
		place, err := q.Enter()
		if err != nil {
			t.Fatal(err)
		}
		start, looked := time.Now(), 0
		served := make(chan time.Duration, 1)
		go func() {
			if err := place.Wait(t.Context(), func() bool { looked++; return looked > 1 }); err != nil {
				t.Error(err)
			}
			q.left()
			served <- time.Since(start)
		}()
		synctest.Wait() // it has looked once
		if err := q.Destruct(); err != nil {
			t.Fatal(err)
		}
		session.End()
		if took := <-served; took != 0 {
			t.Errorf("looked after %v", took)
		}
		q.watch([]upstream.Upstream{{Name: first, MaxSessions: 1}})
		if len(q.rooms) > 0 {
			t.Errorf("watches %v when nobody waits any more", q.rooms)
		}
	})
	one.Release()
	two.Release()
	if counts.Held(first) || counts.Held(second) {
		t.Error("counts are held when nobody waits any more")
	}
}

// A queue watches the upstreams that are discovered, too, with the limits that they have now.
func TestQueueWatchesDiscovered(t *testing.T) {
	t.Parallel()
	a, b, fixed := refuses(), refuses(), refuses()
	source, config := dynamicTo(t, fmt.Sprintf(`, "upstreams": [{"address": %q, "max_connections": 7}], "queue": {"count": 9, "duration": "1h"}`, fixed))
	h, _, unload := provision(t, config)
	expect := func(want ...room) {
		t.Helper()
		eventually(t, func() error {
			h.queue.mu.Lock()
			defer h.queue.mu.Unlock()
			for _, r := range want {
				if h.queue.rooms[r] == nil {
					return fmt.Errorf("%v is not watched", r)
				}
			}
			if len(h.queue.rooms) != len(want) {
				return fmt.Errorf("%d are watched, want %d", len(h.queue.rooms), len(want))
			}
			return nil
		})
	}
	expect(room{fixed, 7})
	source.says(lists(t, a+" max_connections=1", b))
	expect(room{fixed, 7}, room{a, 1})
	source.says(lists(t, a+" max_connections=2", b+" max_connections=3"))
	expect(room{fixed, 7}, room{a, 2}, room{b, 3})
	source.says(lists(t, b+" max_connections=3"))
	expect(room{fixed, 7}, room{b, 3})
	unload()
	expect()
	if counts.Held(b) {
		t.Error("a count is held without a config")
	}
}
