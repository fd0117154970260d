package ratelimit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

// A config runs throughout, as in a process that is not being stopped.
func TestMain(m *testing.M) {
	err := caddy.Load([]byte(`{"admin": {"disabled": true, "config": {"persist": false}},
		"logging": {"logs": {"default": {"level": "PANIC"}}}}`), true)
	if err != nil {
		panic(err)
	}
	code := m.Run()
	lateRefresh := goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*call).DelayDo.func1") // of a client that was closed, which it finds
	if err := goleak.Find(lateRefresh); err != nil && code == 0 {
		println(err.Error())
		code = 1
	}
	os.Exit(code)
}

// provision provisions a handler for the rest of the test, or until it is unloaded.
func provision(t testing.TB, config string) (h *Handler, unload func()) {
	t.Helper()
	h, unload, err := tryProvision(t, config)
	if err != nil {
		t.Fatal(err)
	}
	return h, unload
}

func tryProvision(t testing.TB, config string) (h *Handler, unload func(), err error) {
	t.Helper()
	if !strings.Contains(config, `"name"`) { // else it would share with those of other tests that are written alike
		config = fmt.Sprintf(`{"name": %q, %s`, t.Name(), strings.TrimPrefix(config, "{"))
	}
	ctx, cancel := caddy.NewContext(caddy.ActiveContext())
	unload = sync.OnceFunc(cancel)
	t.Cleanup(unload)
	module, err := ctx.LoadModuleByID("layer4.handlers.rate_limit", json.RawMessage(config))
	if err != nil {
		return nil, unload, err
	}
	return module.(*Handler), unload, nil
}

// pipe has another name than Conn, so that nothing looks through a client to it.
type pipe interface{ net.Conn }

// client is a connection from an address.
type client struct {
	pipe
	remote string

	mu     sync.Mutex
	closed bool
}

func (c *client) RemoteAddr() net.Addr {
	addr, _ := net.ResolveTCPAddr("tcp", c.remote)
	return addr
}

func (c *client) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080} }

func (c *client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return c.pipe.Close()
}

func (c *client) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// from returns a connection from an address, and its other end.
func from(t testing.TB, remote string) (accepted *client, other net.Conn) {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	_ = b.SetDeadline(time.Now().Add(time.Minute))
	return &client{pipe: a, remote: remote}, b
}

// visit has the handler serve a connection from an address, and the next handler return at once. It reports whether that
// was called.
func visit(t testing.TB, h *Handler, remote string) (admitted bool) {
	t.Helper()
	conn, _ := from(t, remote)
	serve(t, h, conn, func(*layer4.Connection) error { admitted = true; return nil })
	return admitted
}

// visits returns how many of n visits are admitted.
func visits(t testing.TB, h *Handler, n int, remote string) (admitted int) {
	t.Helper()
	for range n {
		if visit(t, h, remote) {
			admitted++
		}
	}
	return admitted
}

func serve(t testing.TB, h *Handler, conn net.Conn, next func(*layer4.Connection) error) {
	t.Helper()
	cx := layer4.WrapConnection(conn, nil, zap.NewNop())
	if err := h.Handle(cx, layer4.HandlerFunc(next)); err != nil && !errors.Is(err, io.EOF) {
		t.Errorf("Handle: %v", err)
	}
}

// stay has the handler serve a connection that stays until it is told to leave. It reports whether it was admitted.
func stay(t testing.TB, h *Handler, remote string) (admitted bool, leave func()) {
	t.Helper()
	conn, _ := from(t, remote)
	inside, over := make(chan struct{}), make(chan struct{})
	var visit sync.WaitGroup
	refused := make(chan struct{})
	visit.Go(func() {
		defer close(refused)
		serve(t, h, conn, func(*layer4.Connection) error {
			close(inside)
			<-over
			return nil
		})
	})
	leave = sync.OnceFunc(func() { close(over); visit.Wait() })
	t.Cleanup(leave)
	select {
	case <-inside:
		return true, leave
	case <-refused:
		return false, leave
	}
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	var err error
	for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatal(err)
}
