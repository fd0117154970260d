package events

import (
	"maps"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

// prefix is that of the names that events have for Caddy's app.
const prefix = "portgate."

// maxWaiting bounds the events that wait for the handlers of the app.
const maxWaiting = 1000

// app is Caddy's app `events`. Its Emit returns when all handlers have.
type app interface {
	ShouldEmit(name string) bool
	Emit(ctx caddy.Context, name string, data map[string]any) caddy.Event
}

// appOf returns the app of a config, nil where it has none.
func appOf(config caddy.Context) app {
	if config.Context == nil {
		return nil
	}
	configured, err := config.AppIfConfigured("events")
	if err != nil {
		return nil
	}
	to, _ := configured.(app)
	return to
}

// toHandlers has the app `events` of the running config handle events, one after another. There is a goroutine while there is something to
// handle. One whose handler hangs is left behind when its config has ended, and another one serves the next config.
var toHandlers handling

type handling struct {
	mu      sync.Mutex
	waiting []*Event
	by      *worker // nil while nothing waits
	dropped int     // since an event was handled
}

type worker struct{ config caddy.Context }

var dropped = meter.Counter("events_dropped_total", "Events that the handlers of Caddy's app events did not get, because one of them took too long.")

// Register makes the metric part of a config's registry.
func Register(registry *prometheus.Registry) error {
	dropped.WithLabelValues()
	return meter.Register(registry, dropped)
}

// offer has an event handled soon, if a handler wants it.
func (h *handling) offer(e *Event) {
	config := caddy.ActiveContext()
	to := appOf(config)
	if to == nil || !to.ShouldEmit(prefix+e.Name) {
		return
	}
	if n := h.put(config, e); n > 0 {
		dropped.WithLabelValues().Inc()
		if n == 1 {
			logqueue.Default("portgate.events").Warn("a handler of events takes too long, further events are dropped", zap.Int("queue", maxWaiting))
		}
	}
}

// put returns the how manieth in a row it is that was dropped, 0 where it was not.
func (h *handling) put(config caddy.Context, e *Event) (droppedNow int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case len(h.waiting) >= maxWaiting:
		h.dropped++
		droppedNow = h.dropped
	default:
		h.waiting = append(h.waiting, e)
	}
	if h.by == nil || h.by.config.Err() != nil {
		h.by = &worker{config}
		go h.serve(h.by)
	}
	return droppedNow
}

// serve handles what waits, until there is no more or another worker has taken over.
func (h *handling) serve(w *worker) {
	for {
		e, config, wasFull := h.next(w)
		if e == nil {
			return
		}
		if wasFull > 0 {
			logqueue.Default("portgate.events").Info("the handlers of events go on", zap.Int("dropped", wasFull))
		}
		if to := appOf(config); to != nil {
			handle(to, config, e)
		}
	}
}

// next returns the event to be handled next, and the config that is to do it: the one that runs now.
func (h *handling) next(w *worker) (e *Event, config caddy.Context, wasFull int) {
	config = caddy.ActiveContext()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.by != w {
		return nil, config, 0
	}
	if len(h.waiting) == 0 || config.Context == nil {
		h.by, h.waiting = nil, nil
		return nil, config, 0
	}
	w.config = config
	e, h.waiting = h.waiting[0], h.waiting[1:]
	wasFull, h.dropped = h.dropped, 0
	return e, config, wasFull
}

// handle calls the handlers. One that panics does not end the process.
func handle(to app, config caddy.Context, e *Event) {
	defer func() {
		if p := recover(); p != nil {
			logqueue.Default("portgate.events").Error("a handler of events has panicked", zap.String("event", e.Name), zap.Any("panic", p), zap.Stack("stack"))
		}
	}()
	to.Emit(config, prefix+e.Name, maps.Clone(e.Data)) // handlers may add to it
}
