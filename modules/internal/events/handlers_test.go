package events

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/degraded"
)

const timeout = 30 * time.Second

func TestMain(m *testing.M) {
	caddy.RegisterModule(new(handler))
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Println(err)
		code = 1
	}
	os.Exit(code)
}

// handler is an event handler of which the test says what it does.
type handler struct {
	Name string `json:"name"`
}

// calls are what handlers were called with, by their names.
var calls sync.Map

func callsOf(name string) chan caddy.Event {
	c, _ := calls.LoadOrStore(name, make(chan caddy.Event, 10*maxWaiting))
	return c.(chan caddy.Event)
}

// hangs is closed when handlers that hang are to return.
var hangs = make(chan struct{})

func (*handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.test", New: func() caddy.Module { return new(handler) }}
}

func (h *handler) Handle(_ context.Context, e caddy.Event) error {
	callsOf(h.Name) <- e
	switch {
	case strings.HasPrefix(h.Name, "hang"):
		<-hangs
	case strings.HasPrefix(h.Name, "panic"):
		panic("as the test wants")
	}
	return nil
}

// load loads a config with a handler for events, none where the name is "".
func load(t *testing.T, name, events string) {
	t.Helper()
	apps := ""
	if name != "" {
		apps = fmt.Sprintf(`"events": {"subscriptions": [{"events": [%s], "handlers": [{"handler": "test", "name": %q}]}]}`, events, name)
	}
	config := `{"admin": {"disabled": true, "config": {"persist": false}}, "logging": {"logs": {"default": {"writer": {"output": "discard"}}}}, "apps": {` + apps + `}}`
	if err := caddy.Load([]byte(config), true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = caddy.Stop() })
}

func next(t *testing.T, name string) caddy.Event {
	t.Helper()
	select {
	case e := <-callsOf(name):
		return e
	case <-time.After(timeout):
		t.Fatalf("%s: no event", name)
		return caddy.Event{}
	}
}

func TestHandlersOfTheRunningConfig(t *testing.T) {
	load(t, "first", `"portgate.ban", "portgate.degraded", "portgate.restored"`)
	Emit(Unban, Info, "nobody wants it")
	for i := range 100 {
		Emit(Ban, Warn, "banned", zap.Int("n", i), zap.String("list", "bad"))
	}
	for i := range 100 {
		e := next(t, "first")
		if e.Name() != "portgate.ban" || e.Data["n"] != int64(i) || e.Data["list"] != "bad" || e.Data["message"] != "banned" || e.Data["level"] != Warn {
			t.Fatalf("%d: %s %v", i, e.Name(), e.Data)
		}
	}
	part := degraded.New("test")
	part.Begin(zap.NewNop(), "it does not work", zap.String("host", "a"))
	part.End(zap.NewNop(), "it works")
	part.Close()
	if e := next(t, "first"); e.Name() != "portgate.degraded" || e.Data["degraded"] != "test" || e.Data["host"] != "a" || e.Data["message"] != "it does not work" {
		t.Errorf("%s %v", e.Name(), e.Data)
	}
	if e := next(t, "first"); e.Name() != "portgate.restored" || e.Data["message"] != "it works" {
		t.Errorf("%s %v", e.Name(), e.Data)
	}
	load(t, "second", `"portgate.ban"`)
	Emit(Ban, Info, "for the second")
	if e := next(t, "second"); e.Data["message"] != "for the second" {
		t.Errorf("%v", e.Data)
	}
	load(t, "", "")
	Emit(Ban, Info, "for nobody")
	if n := len(callsOf("first")) + len(callsOf("second")); n > 0 {
		t.Errorf("%d events too many", n)
	}
}

// Whoever reports an event does not wait for a handler that hangs. Handlers of the next config do not, either.
func TestHandlerThatHangs(t *testing.T) {
	load(t, "hang", `"portgate.ban"`)
	before := toHandlers.droppedNow()
	Emit(Ban, Info, "it hangs with this one")
	next(t, "hang")
	for range maxWaiting + 10 {
		Emit(Ban, Info, "too many")
	}
	if n := toHandlers.droppedNow() - before; n != 10 {
		t.Errorf("%d dropped, want 10", n)
	}
	load(t, "works", `"portgate.ban"`)
	Emit(Ban, Info, "it has no room, but a worker")
	for range maxWaiting {
		if e := next(t, "works"); e.Data["message"] != "too many" {
			t.Fatalf("%v", e.Data)
		}
	}
	Emit(Ban, Info, "for the second")
	if e := next(t, "works"); e.Data["message"] != "for the second" {
		t.Errorf("%v", e.Data)
	}
	close(hangs)
}

func (h *handling) droppedNow() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dropped
}

// A handler that panics ends neither the process nor the others.
func TestHandlerThatPanics(t *testing.T) {
	load(t, "panic", `"portgate.ban"`)
	for range 2 {
		Emit(Ban, Info, "it panics")
		next(t, "panic")
	}
}

// What this package calls is what Caddy has.
var (
	_ app                 = (*caddyevents.App)(nil)
	_ caddyevents.Handler = (*handler)(nil)
)
