package ratelimit

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mholt/caddy-l4/layer4"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// door accepts connections and has the handler serve them.
type door struct {
	net.Listener
	served chan result
	all    sync.WaitGroup
}

// result is what has become of a connection: what the next handler has read, where it was called.
type result struct {
	admitted bool
	read     string
}

func openDoor(t *testing.T, network string, h *Handler) *door {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	d := &door{Listener: ln, served: make(chan result, 1000)}
	d.all.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			d.all.Go(func() {
				defer conn.Close()
				r := result{}
				serve(t, h, conn, func(cx *layer4.Connection) error {
					r.admitted = true
					_ = cx.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
					read, _ := io.ReadAll(cx)
					r.read = string(read)
					return nil
				})
				d.served <- r
			})
		}
	})
	t.Cleanup(func() { ln.Close(); d.all.Wait() })
	return d
}

// waits dials, and returns when the connection waits for its turn.
func (d *door) waits(t *testing.T, h *Handler) net.Conn {
	t.Helper()
	q := h.buckets.Value().queue
	before := q.len()
	conn, err := net.Dial(d.Addr().Network(), d.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	eventually(t, func() error {
		if q.len() == before {
			return errors.New("it does not wait")
		}
		return nil
	})
	return conn
}

const forAges = `{"connections": [{"rate": "1/h", "burst": 1, "per": "all"}], "algorithm": "leaky_bucket", "max_delay": "1m"}`

// hourly is a handler at which whoever comes second waits, for longer than the test lasts.
func hourly(t *testing.T) *Handler {
	t.Helper()
	h, _ := provision(t, strings.Replace(forAges, "1/h", "2/m", 1))
	if !visit(t, h, "192.0.2.1:1") {
		t.Fatal("refused")
	}
	return h
}

// A client that goes is noticed at once, and its connection closed; one that may wait for an answer keeps its turn.
func TestClientsThatLeave(t *testing.T) {
	for name, c := range map[string]struct {
		leave func(net.Conn)
		stays bool
	}{
		"closes":                  {leave: func(c net.Conn) { c.Close() }},
		"resets":                  {leave: func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0); c.Close() }},
		"sends and resets":        {leave: func(c net.Conn) { io.WriteString(c, "x"); _ = c.(*net.TCPConn).SetLinger(0); c.Close() }},
		"sends no more":           {leave: func(c net.Conn) { _ = c.(*net.TCPConn).CloseWrite() }},
		"sends, and then no more": {leave: func(c net.Conn) { io.WriteString(c, "x"); _ = c.(*net.TCPConn).CloseWrite() }, stays: true},
		"sends":                   {leave: func(c net.Conn) { io.WriteString(c, "x") }, stays: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := hourly(t)
			d := openDoor(t, "tcp", h)
			conn := d.waits(t, h)
			c.leave(conn)
			if c.stays {
				select {
				case r := <-d.served:
					t.Errorf("it does not wait any more: %+v", r)
				case <-time.After(300 * time.Millisecond):
				}
				_ = conn.(*net.TCPConn).SetLinger(0)
				conn.Close()
			}
			if r := <-d.served; r.admitted {
				t.Errorf("%+v", r)
			}
			if n := testutil.ToFloat64(collectors.decisions.WithLabelValues(listenerOf(d), h.limits.arrivals[0].name, "gone")); n != 1 {
				t.Errorf("%v clients are counted as gone", n)
			}
			if d := h.buckets.Value().memory.Len(now()); d != 1 {
				t.Errorf("%d buckets", d)
			}
			if w, _, _ := h.decide(&visitor{Arrival: arrivalFrom(t, "192.0.2.1:1")}); w.Delay > 30*time.Second {
				t.Errorf("the next one waits %v", w.Delay)
			}
		})
	}
	t.Run("unix", func(t *testing.T) {
		t.Parallel()
		h := hourly(t)
		d := openDoor(t, "unix", h)
		d.waits(t, h).Close()
		if r := <-d.served; r.admitted {
			t.Errorf("%+v", r)
		}
	})
}

// What a client sends while it waits is there when its turn has come.
func TestNothingIsLostWhileWaiting(t *testing.T) {
	t.Parallel()
	h, _ := provision(t, `{"connections": [{"rate": "5/s", "per": "all"}], "algorithm": "leaky_bucket", "max_delay": "30s"}`)
	d := openDoor(t, "tcp", h)
	visit(t, h, "192.0.2.1:1")
	conn := d.waits(t, h)
	io.WriteString(conn, "what was sent ")
	io.WriteString(conn, "while it waited")
	_ = conn.(*net.TCPConn).CloseWrite()
	if r := <-d.served; !r.admitted || r.read != "what was sent while it waited" {
		t.Errorf("%+v", r)
	}
}

// 400 clients that leave cost the one that comes next nothing, whether they leave at the same time or one after another,
// with Redis too.
func TestManyThatLeave(t *testing.T) {
	redis, _ := startRedis(t)
	for name, store := range map[string]string{"memory": "", "redis": `, "store": {"type": "redis", "url": "` + redis + `", "timeout": "5s"}`} {
		t.Run(name, func(t *testing.T) {
			h, _ := provision(t, `{"connections": [{"rate": "10/s", "per": "all"}], "algorithm": "leaky_bucket", "max_delay": "1m"`+store+`}`)
			if b := h.buckets.Value(); b.redis != nil {
				eventually(t, func() error {
					if b.redis.Open() {
						return errors.New("the breaker is open")
					}
					return nil
				})
			}
			d := openDoor(t, "tcp", h)
			var all []net.Conn
			for range 400 {
				conn, err := net.Dial("tcp", d.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, conn)
			}
			q, start := h.buckets.Value().queue, time.Now()
			eventually(t, func() error {
				if n := q.len() + len(d.served); n < 400 {
					return errors.New("not all have come")
				}
				return nil
			})
			t.Logf("%d wait after %v", q.len(), time.Since(start))
			left := time.Now()
			for _, conn := range all {
				conn.Close()
			}
			eventually(t, func() error {
				if n := q.len(); n > 0 {
					return errors.New("some wait still")
				}
				return nil
			})
			t.Logf("noticed after %v", time.Since(left))
			eventually(t, func() error { // Redis is told soon
				decision, _, w := h.decide(&visitor{Arrival: arrivalFrom(t, "192.0.2.1:1")})
				if w != nil {
					w.leave()
				}
				if decision.Refused || decision.Delay > 200*time.Millisecond {
					return errors.New("the next one waits for " + decision.Delay.String())
				}
				return nil
			})
			if took := time.Since(left); took > 20*time.Second {
				t.Errorf("the next one had to wait %v", took)
			}
		})
	}
}

// A reload ends no waiting, and does not wait for it: who waits goes on as its own config says.
func TestReloadWhileWaiting(t *testing.T) {
	t.Parallel()
	const config = `{"name": "reloaded while waiting", "connections": [{"rate": "2/s", "per": "all"}], "algorithm": "leaky_bucket", "max_delay": "30s"}`
	h, unload := provision(t, config)
	d := openDoor(t, "tcp", h)
	visit(t, h, "192.0.2.1:1")
	io.WriteString(d.waits(t, h), "x")
	start := time.Now()
	next, unloadNext := provision(t, config)
	unload()
	if took := time.Since(start); took > 400*time.Millisecond {
		t.Logf("the reload took %v", took)
	}
	if n := next.buckets.Value().queue.len(); n != 1 && len(d.served) == 0 {
		t.Errorf("%d wait", n)
	}
	unloadNext() // now no config has these buckets
	if r := <-d.served; !r.admitted || r.read != "x" {
		t.Errorf("%+v", r)
	}
}

// When the process stops, who waits is closed.
func TestStopWhileWaiting(t *testing.T) {
	h, running := hourly(t), stopping
	stopping = make(chan struct{})
	d := openDoor(t, "tcp", h)
	d.waits(t, h)
	close(stopping)
	if r := <-d.served; r.admitted {
		t.Errorf("%+v", r)
	}
	stopping = running
}

// dry_run makes nobody wait.
func TestDryRunOfLeakyBucket(t *testing.T) {
	t.Parallel()
	h, _ := provision(t, strings.Replace(forAges, "{", `{"dry_run": true, `, 1))
	for range 3 {
		if !visit(t, h, "192.0.2.1:1") {
			t.Fatal("refused")
		}
	}
}

// listenerOf is what metrics call the listener of a door.
func listenerOf(d *door) string { return ":" + strings.Split(d.Addr().String(), ":")[1] }

func arrivalFrom(t *testing.T, remote string) *session.Arrival {
	t.Helper()
	conn, _ := from(t, remote)
	return &session.Arrival{Conn: conn, Network: "tcp", Listener: ":8080", Client: netip.MustParseAddrPort(remote)}
}
