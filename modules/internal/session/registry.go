package session

import (
	"context"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
)

// registry holds the living sessions. It is bounded by the descriptors that they hold.
type registry struct {
	mu       sync.Mutex
	sessions map[*Session]struct{}
}

var living = registry{sessions: make(map[*Session]struct{})}

func (r *registry) add(s *Session) {
	r.mu.Lock()
	r.sessions[s] = struct{}{}
	r.mu.Unlock()
}

func (r *registry) remove(s *Session) {
	r.mu.Lock()
	delete(r.sessions, s)
	r.mu.Unlock()
}

func (r *registry) list() []*Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*Session, 0, len(r.sessions))
	for s := range r.sessions {
		all = append(all, s)
	}
	return all
}

// Living returns the sessions that have begun and not ended.
func Living() []*Session { return living.list() }

// count brings what is counted of living sessions up to date.
func (r *registry) count() {
	for _, s := range r.list() {
		s.count()
	}
}

// idleAtStop is how long a session must have been silent to be closed at once when the process stops.
const idleAtStop = time.Second

// stopPoll is how often a stopping process looks for sessions that have become idle.
const stopPoll = 50 * time.Millisecond

// logTimeout is how long a process that stops waits for a log to take the entries that it has queued.
const logTimeout = time.Second

// Caddy calls this when every app has stopped, so that no listener accepts any more.
func init() {
	caddy.OnExit(func(context.Context) {
		for _, f := range onStop {
			f()
		}
		living.shutdown()
		logqueue.Flush(logTimeout)
	})
}

// onStop does not change once the process has begun.
var onStop []func()

// OnStop has f called when the process stops, before its sessions are waited for. It is for connections that have no session
// yet. It is to be called by an init function; f must not block.
func OnStop(f func()) { onStop = append(onStop, f) }

// shutdown closes idle sessions at once and the others as they become idle, at the latest after
// their grace period. It returns when none is left, or could be closed.
func (r *registry) shutdown() {
	start := time.Now()
	for {
		var longest time.Duration
		left := r.list()
		if len(left) == 0 {
			return
		}
		for _, s := range left {
			longest = max(longest, s.scope.GracePeriod)
			if time.Since(start) >= s.scope.GracePeriod || time.Since(s.LastActive()) >= idleAtStop {
				s.Close(ReasonShutdown)
			}
		}
		if time.Since(start)-idleAtStop > longest { // which may be the longest duration there is
			return
		}
		time.Sleep(stopPoll)
	}
}
