package session

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
)

// registry holds the living sessions, in parts with a lock each: whoever looks at all of them holds up a few sessions that
// begin or end meanwhile, and not all. It is bounded by the descriptors that they hold. The zero registry is empty.
type registry struct {
	shards   [64]shard
	awaiting atomic.Int64
}

type shard struct {
	mu       sync.Mutex
	sessions map[*Session]struct{}
	clients  clientIndex
}

var living registry

func (r *registry) shardOf(s *Session) *shard { return &r.shards[uint64(s.ID)%uint64(len(r.shards))] }

func (r *registry) add(s *Session) {
	sh := r.shardOf(s)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.sessions == nil {
		sh.sessions = make(map[*Session]struct{})
	}
	sh.sessions[s] = struct{}{}
}

func (r *registry) remove(s *Session) {
	sh := r.shardOf(s)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	delete(sh.sessions, s)
	sh.clients.remove(s)
}

// index adds a living session to the index by clients.
func (r *registry) index(s *Session) {
	sh := r.shardOf(s)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if _, ok := sh.sessions[s]; ok {
		sh.clients.add(s)
	}
}

// each calls f with every living session, without a lock.
func (r *registry) each(f func(*Session)) {
	var some []*Session
	for i := range r.shards {
		sh := &r.shards[i]
		some = some[:0]
		sh.mu.Lock()
		for s := range sh.sessions {
			some = append(some, s)
		}
		sh.mu.Unlock()
		for _, s := range some {
			f(s)
		}
	}
}

// of calls f with the sessions in the index whose client is in the prefix, without a lock.
func (r *registry) of(clients netip.Prefix, f func(*Session)) {
	var some []*Session
	for i := range r.shards {
		sh := &r.shards[i]
		sh.mu.Lock()
		some = sh.clients.appendTo(some[:0], clients)
		sh.mu.Unlock()
		for _, s := range some {
			f(s)
		}
	}
}

func (r *registry) list() (all []*Session) {
	r.each(func(s *Session) { all = append(all, s) })
	return all
}

// find returns the living session with an ID, nil where there is none.
func (r *registry) find(id ID) *Session {
	sh := &r.shards[uint64(id)%uint64(len(r.shards))]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for s := range sh.sessions {
		if s.ID == id {
			return s
		}
	}
	return nil
}

// Living returns the session with an ID that has begun and not ended, nil where there is none.
func Living(id ID) *Session { return living.find(id) }

// EachLiving calls f with the sessions that have begun and not ended.
func EachLiving(f func(*Session)) { living.each(f) }

// EachLivingOf calls f with the living sessions whose client is in the prefix, as far as an admission is concerned with
// them: those that have passed one, those that have begun after their config was replaced, and those of which
// [Session.Index] was called.
func EachLivingOf(clients netip.Prefix, f func(*Session)) { living.of(clients, f) }

// Index has the session found by [EachLivingOf]. Sessions that no admission is concerned with do without, so that they
// cost nothing for it.
func (s *Session) Index() { living.index(s) }

// count brings what is counted of living sessions up to date.
func (r *registry) count() {
	r.each((*Session).count)
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

// Await is for a connection that has no session yet, and that [OnStop] ends: the process that stops waits for its session, so that
// there is an access log entry. done is called when the session has begun, or has ended, or nobody waits for it any more.
func Await() (done func()) { return living.await() }

func (r *registry) await() (done func()) {
	r.awaiting.Add(1)
	return func() { r.awaiting.Add(-1) }
}

// shutdown closes idle sessions at once and the others as they become idle, at the latest after
// their grace period. It returns when none is left, or could be closed.
func (r *registry) shutdown() {
	start := time.Now()
	for {
		var longest time.Duration
		awaiting := r.awaiting.Load() // before the list, in which they are then
		left := r.list()
		if len(left) == 0 && awaiting == 0 {
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
