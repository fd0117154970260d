package forward

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
)

// counting is an upstream that counts its connections, and sends everything back.
type counting struct {
	addr     string
	accepted atomic.Int32
	open     atomic.Int32
}

func countConnections(t testing.TB) *counting {
	t.Helper()
	c := new(counting)
	c.addr = serve(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		c.accepted.Add(1)
		c.open.Add(1)
		_, _ = io.Copy(conn, conn)
		c.open.Add(-1)
	})
	return c
}

func preconnected(count int, more string, upstreams ...string) string {
	return fmt.Sprintf(`{"to": [%q], "preconnect": {"count": %d}%s}`, strings.Join(upstreams, `","`), count, more)
}

// kept waits until so many connections to the first upstream of a handler are ready.
func kept(t testing.TB, h *Handler, n int) {
	t.Helper()
	eventually(t, func() error {
		if ready := h.rosters.now.Load().means[0].kept.Ready(); ready != n {
			return fmt.Errorf("%d connections are ready, want %d", ready, n)
		}
		return nil
	})
}

func isOpen(t testing.TB, c *counting, n int32) {
	t.Helper()
	eventually(t, func() error {
		if open := c.open.Load(); open != n {
			return fmt.Errorf("%d connections are open, want %d", open, n)
		}
		return nil
	})
}

// Sessions use what is ready, by whichever engine, and what they use is replaced.
func TestPreconnect(t *testing.T) {
	overKinds(t, func(t *testing.T, k kind) {
		c := countConnections(t)
		h, ctx, unload := provision(t, preconnected(2, `, "proxy_protocol": "v1"`, c.addr))
		for n := range 3 {
			kept(t, h, 2)
			client := k.client(t, h)
			_, _ = io.WriteString(client, "ping")
			header := make([]byte, len("PROXY TCP4"))
			if _, err := io.ReadFull(client, header); err != nil || string(header) != "PROXY TCP4" {
				t.Errorf("the upstream got %q first, %v", header, err)
			}
			_ = client.CloseWrite()
			rest, err := io.ReadAll(client)
			if err != nil || !strings.HasSuffix(string(rest), "\r\nping") {
				t.Errorf("got %q, %v", rest, err)
			}
			if got := logged(t, client); got.Status != 200 || got.BytesUp != 4 || got.Upstream != c.addr {
				t.Errorf("%+v", got)
			}
			if used := sum(t, ctx, "upstream_kept_total", c.addr); used != float64(n+1) {
				t.Errorf("%v connections have ended as kept ones, want %d", used, n+1)
			}
		}
		kept(t, h, 2)
		if ready := sum(t, ctx, "upstream_connections_kept", c.addr); ready != 2 {
			t.Errorf("the metric says %v", ready)
		}
		unload()
		isOpen(t, c, 0)
		client := k.client(t, h) // after the end of the config
		_, _ = io.WriteString(client, "late")
		_ = client.CloseWrite()
		if got, err := io.ReadAll(client); err != nil || !strings.HasSuffix(string(got), "late") {
			t.Errorf("got %q, %v", got, err)
		}
		logged(t, client)
	})
}

// A reload with the same options keeps what is kept. Others take its place, and what nobody has any more is closed.
func TestPreconnectOverReloads(t *testing.T) {
	taken := func(n int64) {
		t.Helper()
		eventually(t, func() error { // sessions of tests before may end now
			if now := descriptors.Taken(); now != n {
				return fmt.Errorf("%d descriptors are taken, want %d", now, n)
			}
			return nil
		})
	}
	taken(0)
	c := countConnections(t)
	config := preconnected(3, "", c.addr)
	h, _, unload := provision(t, config)
	kept(t, h, 3)
	for range 100 {
		next, _, unloadNext := provision(t, config)
		unload()
		h, unload = next, unloadNext
	}
	kept(t, h, 3)
	if n := c.accepted.Load(); n != 3 {
		t.Errorf("%d connections after 100 reloads, want 3", n)
	}
	h, _, unloadNext := provision(t, preconnected(1, "", c.addr))
	unload()
	kept(t, h, 1)
	isOpen(t, c, 1)
	taken(1)
	if _, _, _, err := tryProvision(t, preconnected(1, `, "max_replies": -1`, c.addr)); err == nil {
		t.Error("a wrong config is accepted")
	}
	unloadNext()
	isOpen(t, c, 0)
	taken(0)
	keepers.Each(func(key keeperKey, _ *keeper) bool {
		if key.upstream == c.addr {
			t.Errorf("%+v is still held", key)
		}
		return true
	})
}

// Who gets no sessions is not connected to.
func TestPreconnectToThoseThatGetSessions(t *testing.T) {
	t.Parallel()
	c, drained := countConnections(t), countConnections(t)
	config, _ := json.Marshal(object{
		"to": []string{c.addr}, "upstreams": []object{{"address": drained.addr, "weight": 0}}, "preconnect": object{"count": 1},
	})
	h, _, _ := provision(t, string(config))
	kept(t, h, 1)
	if n := drained.accepted.Load(); n != 0 {
		t.Errorf("%d connections to an upstream with the weight 0", n)
	}
}

// Names are followed from the config on.
func TestPreconnectToAName(t *testing.T) {
	t.Parallel()
	c := countConnections(t)
	h, _, _ := provision(t, preconnected(2, "", "tcp4/localhost:"+portOf(c.addr)))
	kept(t, h, 2)
}

// The handshake is done ahead, unless a header comes before it.
func TestPreconnectInTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	cfg := &tls.Config{Certificates: []tls.Certificate{a.sign(2, "127.0.0.1")}}
	for _, header := range []string{"", "v1"} {
		var shaken atomic.Int32
		addr := serve(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			in := bufio.NewReader(conn)
			if header != "" {
				if _, err := in.ReadString('\n'); err != nil {
					return
				}
			}
			server := tls.Server(readBefore{conn, in}, cfg)
			if server.Handshake() != nil {
				return
			}
			shaken.Add(1)
			_, _ = io.Copy(server, server)
			_ = server.CloseWrite()
			_, _ = io.Copy(io.Discard, conn)
		})
		config, _ := json.Marshal(object{
			"to": []string{addr}, "preconnect": object{"count": 1}, "tls": object{"ca": []string{a.file}}, "proxy_protocol": header,
		})
		h, _, _ := provision(t, string(config))
		kept(t, h, 1)
		if header == "" {
			eventually(t, func() error {
				if shaken.Load() == 0 {
					return errors.New("no handshake before the first session")
				}
				return nil
			})
		} else if shaken.Load() > 0 {
			t.Error("a handshake before the header")
		}
		for range 2 {
			kept(t, h, 1)
			client, accepted := connect(t)
			handle(t, h, accepted)
			exchange(t, client, "ping")
			finish(t, client)
		}
		if used := testutil.ToFloat64(keptTotal.WithLabelValues(addr, "used")); used != 2 {
			t.Errorf("header %q: %v were used", header, used)
		}
	}
}

// A loop that leads through connections that are kept ends as any other one does, and does not go on by itself.
func TestPreconnectInALoop(t *testing.T) {
	first, second := newHost()+":7000", newHost()+":7000"
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			options := object{"preconnect": object{"count": 1}}
			mustLoad(t, object{
				"a": server(to([]string{second}, options), network+"/"+first),
				"b": server(to([]string{first}, options), network+"/"+second),
			})
			if client, err := net.Dial("tcp", first); err == nil { // else it was reset already
				_ = client.SetDeadline(time.Now().Add(time.Minute))
				_, _ = io.ReadAll(client)
				client.Close()
			}
			accessLog.wait(t, func(e entry) bool { return e.Status == 508 || e.Reason == "loop" })
			began := time.Now()
			sessions := 0
			for time.Since(began) < 3*time.Second {
				if _, ok, next := accessLog.take(func(e entry) bool { return e.Upstream == first || e.Upstream == second }); ok {
					sessions++
				} else {
					select {
					case <-next:
					case <-time.After(100 * time.Millisecond):
					}
				}
			}
			t.Logf("%d sessions", sessions)
			if sessions > 500 {
				t.Errorf("%d sessions within %s, and no client", sessions, time.Since(began))
			}
		})
	}
}
