package forward

import (
	"net"
	"sync"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// tenants are the sessions that are closed when a check takes out the upstream that they have. They outlive their handler, whose config may have
// been replaced. There are as many as there are sessions. The zero value is ready to use.
type tenants struct {
	mu  sync.Mutex
	at  map[*session.Session]upstream.CheckKey
	all map[upstream.CheckKey]map[*session.Session]struct{}
}

// move says which address a session has now.
func (t *tenants) move(sess *session.Session, to upstream.CheckKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.at == nil {
		t.at, t.all = make(map[*session.Session]upstream.CheckKey), make(map[upstream.CheckKey]map[*session.Session]struct{})
	}
	t.removeLocked(sess)
	t.at[sess] = to
	if t.all[to] == nil {
		t.all[to] = make(map[*session.Session]struct{})
	}
	t.all[to][sess] = struct{}{}
}

// leave says that it has none any more.
func (t *tenants) leave(sess *session.Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeLocked(sess)
}

func (t *tenants) removeLocked(sess *session.Session) {
	key, is := t.at[sess]
	if !is {
		return
	}
	delete(t.at, sess)
	delete(t.all[key], sess)
	if len(t.all[key]) == 0 {
		delete(t.all, key)
	}
}

// close closes the sessions of an address. It does not block.
func (t *tenants) close(key upstream.CheckKey) (closed int) {
	t.mu.Lock()
	sessions := make([]*session.Session, 0, len(t.all[key]))
	for sess := range t.all[key] {
		sessions = append(sessions, sess)
	}
	t.mu.Unlock()
	for _, sess := range sessions {
		sess.Close(session.ReasonUnhealthy)
	}
	return len(sessions)
}

// closesFor returns where the sessions of a roster are known that are closed with their upstream, nil where none is.
func (r *roster) closesFor(h *Handler) *checked {
	if !h.checking.closes {
		return nil
	}
	return r.checks
}

// has says which address a session has. A nil c does not care.
func (c *checked) has(sess *session.Session, addr net.Addr) {
	if c != nil && addr != nil {
		c.sessions.move(sess, c.Health().KeyOf(addr))
	}
}
