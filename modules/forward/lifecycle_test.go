package forward

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"weak"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
)

// Whatever a Provision that fails has done, its Cleanup can undo.
func TestProvisionFails(t *testing.T) {
	t.Parallel()
	for _, config := range []string{
		`{}`, `{"to": []}`, `{"to": ["nowhere"]}`, `{"to": ["127.0.0.1:1-2"]}`, `{"to": ["127.0.0.1:1"], "timeouts": "lax"}`,
		`{"to": ["127.0.0.1:1"], "connect_timeout": 0}`, `{"to": ["127.0.0.1:1", "127.0.0.1:0"], "drain_timeout": "1ms"}`,
	} {
		h, _, unload, err := tryProvision(t, config)
		if err == nil {
			t.Errorf("%s: no error", config)
		}
		if h != nil {
			t.Errorf("%s: a handler", config)
		}
		unload()

		failed := new(Handler) // Caddy calls its Cleanup
		if err := json.Unmarshal([]byte(config), failed); err != nil {
			t.Fatal(err)
		}
		if err := failed.Cleanup(); err != nil {
			t.Errorf("%s: Cleanup: %v", config, err)
		}
	}
}

// A connection may be accepted just before its config is replaced, and come out of a matcher after it.
func TestHandleAfterCleanup(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		h, _, unload := provision(t, fmt.Sprintf(`{"to": [%q]}`, echo(t)))
		before := k.client(t, h)
		exchange(t, before, "ping")
		unload()
		after := k.client(t, h)
		for _, client := range []*net.TCPConn{after, before} {
			exchange(t, client, "ping")
			if got := finish(t, client); got.Status != 200 || got.Reason != "client_fin" {
				t.Errorf("%+v", got)
			}
		}
	})
}

func TestDrainTimeout(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		upstream := echo(t)
		h, _, unload := provision(t, fmt.Sprintf(`{"to": [%q], "drain_timeout": "100ms"}`, upstream))
		other, _, _ := provision(t, fmt.Sprintf(`{"to": [%q], "drain_timeout": "100ms"}`, upstream))
		before, running := k.client(t, h), k.client(t, other)
		exchange(t, before, "ping")
		exchange(t, running, "ping")

		start := time.Now()
		unload()
		if _, err := io.ReadAll(before); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 100*time.Millisecond {
			t.Errorf("closed after %v", took)
		}
		if got := logged(t, before); got.Reason != "drain" || got.Status != 200 || got.BytesUp != 4 {
			t.Errorf("%+v", got)
		}
		// One that comes too late is closed at once.
		late := k.client(t, h)
		if _, err := io.ReadAll(late); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		if got := logged(t, late); got.Reason != "drain" || got.Status != 502 || got.BytesUp != 0 {
			t.Errorf("%+v", got)
		}
		exchange(t, running, "pong")
		finish(t, running)
	})
}

// A hundred reloads: connections that live go on, and there is always somebody who takes new ones.
func TestReloads(t *testing.T) {
	const reloads = 100
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			upstream, addr := echo(t), newHost()+":7000"
			servers := object{
				"a": server(to([]string{upstream}, object{"drain_timeout": "1h"}), network+"/"+addr),
				"b": server(to([]string{upstream}), network+"/"+newHost()+":7000"),
			}
			mustLoad(t, servers)
			var held []*net.TCPConn
			for i := range 20 {
				conn := dial(t, addr)
				exchange(t, conn, fmt.Sprintf("hello %d", i))
				held = append(held, conn)
			}
			for i := range reloads {
				if err := load(object{"layer4": object{"servers": servers}}); err != nil {
					t.Fatal(err)
				}
				exchange(t, held[i%len(held)], "still here")
				conn := dial(t, addr)
				exchange(t, conn, "new")
				if got := finish(t, conn); got.Status != 200 {
					t.Fatalf("%+v", got)
				}
			}
			for _, conn := range held {
				exchange(t, conn, "bye")
				if got := finish(t, conn); got.Status != 200 || got.Reason != "client_fin" || network == "detachable" && got.Listener != addr {
					t.Errorf("%+v", got)
				}
			}
		})
	}
}

// A config that is rejected leaves the running one as it is, however far it came.
func TestRejectedConfig(t *testing.T) {
	upstream, wrong, addr := named(t, "127.0.0.1:0", "right"), named(t, "127.0.0.1:0", "wrong"), newHost()+":7000"
	taken, err := net.Listen("tcp", newHost()+":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	mustLoad(t, object{"a": server(to([]string{upstream}), "tcp/"+addr)})
	held := dial(t, addr)
	read(t, held, "right")

	free := newHost() + ":7000"
	for name, c := range map[string]struct {
		servers object
		want    string
	}{
		"another handler is wrong": {object{
			"a": server(to([]string{wrong}, object{"drain_timeout": "1ms"}), "tcp/"+free),
			"b": server(to([]string{wrong}, object{"retries": 101}), "tcp/"+newHost()+":7000"),
		}, `retries: "101": expected a whole number from 0 to 100`},
		"no upstream": {object{"a": server(to(nil), "tcp/"+free)}, "to: expected at least one upstream, such as 127.0.0.1:9000"},
		"unknown option": {
			object{"a": server(to([]string{wrong}, object{"tos": 1}), "tcp/"+free)},
			`unknown option "tos": expected one of to, upstreams, `,
		},
		// Alone, because layer4 leaves the listeners of servers that have started open, where the network lets it.
		"the port is taken": {
			object{"a": server(to([]string{wrong}), "tcp/"+taken.Addr().String())},
			"address already in use",
		},
	} {
		err := load(object{"layer4": object{"servers": c.servers}})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
		exchange(t, held, name)
		conn := dial(t, addr)
		read(t, conn, "right")
		finish(t, conn)
	}
	finish(t, held)
}

// ballast is a handler that stands for whatever else a config holds in memory.
type ballast struct{ weight [1 << 20]byte }

var lastBallast weak.Pointer[ballast]

func init() { caddy.RegisterModule(new(ballast)) }

func (*ballast) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers.test_ballast", New: func() caddy.Module { return new(ballast) }}
}

func (b *ballast) Provision(caddy.Context) error {
	lastBallast = weak.Make(b)
	return nil
}

func (b *ballast) Handle(cx *layer4.Connection, next layer4.Handler) error {
	b.weight[0]++
	return next.Handle(cx)
}

// A session that was detached outlives its config, perhaps by days, without keeping it in memory.
func TestSessionsDoNotKeepTheirConfig(t *testing.T) {
	for _, upstream := range []string{echo(t), strings.Replace(echo(t), "127.0.0.1", "{l4.vars.host}127.0.0.1", 1)} {
		addr := newHost() + ":7000"
		s := server(to([]string{upstream}), "detachable/"+addr)
		s["routes"] = append([]object{{"handle": []object{{"handler": "test_ballast"}}}}, s["routes"].([]object)...)
		mustLoad(t, object{"a": s})
		held := dial(t, addr)
		exchange(t, held, "ping")
		old := lastBallast
		if old.Value() == nil {
			t.Fatal("there is no ballast")
		}
		if err := load(nil); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			runtime.GC()
			if old.Value() != nil {
				return errors.New("the config that was replaced is still in memory")
			}
			return nil
		})
		exchange(t, held, "pong")
		finish(t, held)
	}
}

// In front of an HTTP site there is no layer4 app, and the connection goes through a listener wrapper.
func TestListenerWrapper(t *testing.T) {
	t.Parallel()
	ctx, unload := caddy.NewContext(caddy.ActiveContext())
	defer unload()
	config := fmt.Sprintf(`{"routes": [{"handle": [{"handler": "forward", "to": [%q]}]}]}`, echo(t))
	module, err := ctx.LoadModuleByID("caddy.listeners.layer4", json.RawMessage(config))
	if err != nil {
		t.Fatal(err)
	}
	for _, detaches := range []bool{false, true} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := ln.Addr().String()
		if detaches {
			ln = detachableListener{ln, "wrapped:80"}
		}
		wrapped := module.(caddy.ListenerWrapper).WrapListener(ln)
		client := dial(t, addr)
		exchange(t, client, "ping")
		got := finish(t, client)
		if want := map[bool]string{true: "wrapped:80", false: addr[strings.LastIndex(addr, ":"):]}[detaches]; got.Listener != want {
			t.Errorf("listener is %s, want %s", got.Listener, want)
		}
		wrapped.Close()
		if _, err := wrapped.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a connection that was forwarded went on: %v", err)
		}
	}
	if _, err := ctx.LoadModuleByID("caddy.listeners.layer4", json.RawMessage(
		`{"routes": [{"handle": [{"handler": "forward", "to": ["127.0.0.1:7000-7010"]}]}]}`)); err == nil {
		t.Error("a range of ports without one to listen on")
	}
}

// Two handlers, of one config or of two, share metrics and nothing else.
func TestHandlersDoNotShareTheirTurn(t *testing.T) {
	t.Parallel()
	a, b := named(t, "127.0.0.1:0", "a"), named(t, "127.0.0.1:0", "b")
	first, second := forwardTo(t, a, b), forwardTo(t, a, b)
	for _, h := range []*Handler{first, second} {
		client, accepted := connect(t)
		handle(t, h, accepted)
		read(t, client, "a")
		finish(t, client)
	}
}
