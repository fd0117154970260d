package admin

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/adminapi"
	"github.com/portgate/caddy-portgate/modules/internal/configs"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

func init() {
	caddy.RegisterModule(new(stateAPI))
}

// stateAPI serves what is known of the process as a whole:
//
//	GET /portgate/status    how it fares now
//	GET /portgate/history   how it has fared in the last 15 minutes
//	GET /portgate/clients   who moves most: ?sort=rate, bytes or sessions, ?limit=
//	GET /portgate/mappings  what is forwarded where
//	GET /portgate/events    what happens, as server-sent events; ?status=1s adds how it fares
type stateAPI struct{ serving *serving }

// CaddyModule returns the Caddy module information.
func (*stateAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.portgate_state",
		New: func() caddy.Module { return new(stateAPI) },
	}
}

// Provision has the process look at its sessions from time to time, until the config ends.
func (a *stateAPI) Provision(ctx caddy.Context) error {
	configs.Watch(ctx)
	recorder, err := recorders.Acquire(struct{}{}, func() (*recorder, error) { return newRecorder(ofSessions), nil })
	if err != nil {
		return err
	}
	context.AfterFunc(ctx.Context, func() { _ = recorder.Release() }) // Caddy calls no Cleanup of an admin module
	a.serving = endpoints.add(ctx.Context)
	return session.Register(ctx)
}

// Routes returns what the admin endpoint serves.
func (a *stateAPI) Routes() []caddy.AdminRoute { return stateRoutes(a.serving.until) }

// stateRoutes has streams of events end with what until returns when one begins.
func stateRoutes(until func() <-chan struct{}) []caddy.AdminRoute {
	stream := func(w http.ResponseWriter, r *http.Request) error {
		if err := adminapi.Method(r, http.MethodGet); err != nil {
			return err
		}
		return serveEvents(w, r, until())
	}
	return []caddy.AdminRoute{
		{Pattern: statusPath, Handler: caddy.AdminHandlerFunc(serveStatus)},
		{Pattern: historyPath, Handler: caddy.AdminHandlerFunc(serveHistory)},
		{Pattern: clientsPath, Handler: caddy.AdminHandlerFunc(serveClients)},
		{Pattern: mappingsPath, Handler: caddy.AdminHandlerFunc(serveMappings)},
		{Pattern: eventsPath, Handler: caddy.AdminHandlerFunc(stream)},
	}
}

// serving is an admin endpoint of Caddy as far as streams are concerned, which have to end when another one takes its place: Caddy waits for them.
type serving struct {
	config   context.Context
	replaced chan struct{} // closed when another one takes its place, or nothing runs any more
	once     sync.Once
}

func (s *serving) end() { s.once.Do(func() { close(s.replaced) }) }

// lateFor is how long a stream lasts that begins on an endpoint which another one was to replace. It may be on its way out, and Caddy waits 10
// seconds for it; or the other one could not be started, and this one goes on.
const lateFor = 5 * time.Second

func (s *serving) until() <-chan struct{} {
	select {
	case <-s.replaced:
	default:
		return s.replaced
	}
	late := make(chan struct{})
	time.AfterFunc(lateFor, func() { close(late) })
	return late
}

// endpoints has the admin endpoint that was made last. Caddy makes one before the apps of a config, and leaves it where it is when
// the config is rejected: that of the config which goes on has gone by then.
var endpoints newest

type newest struct {
	mu  sync.Mutex
	now *serving
}

func (n *newest) add(config context.Context) *serving {
	s := &serving{config: config, replaced: make(chan struct{})}
	n.mu.Lock()
	before := n.now
	n.now = s
	n.mu.Unlock()
	if before != nil {
		before.end()
	}
	context.AfterFunc(config, func() {
		if configs.Rejected(config) == nil {
			n.stopped(s)
		}
	})
	return s
}

// stopped is called when a config has ended that has run.
func (n *newest) stopped(s *serving) {
	s.end()
	n.mu.Lock()
	now := n.now
	n.mu.Unlock()
	if now.config.Err() != nil { // the endpoint of a config that was rejected
		now.end()
	}
}

// Interface guards
var (
	_ caddy.Module      = (*stateAPI)(nil)
	_ caddy.AdminRouter = (*stateAPI)(nil)
	_ caddy.Provisioner = (*stateAPI)(nil)
)
