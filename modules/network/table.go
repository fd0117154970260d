package network

import (
	"maps"
	"slices"

	"github.com/portgate/caddy-portgate/modules/internal/listeners"
)

// tier is how far a session has come. It says what the session is worth when others want its place: the
// source address of a datagram is easily forged, and only a client that speaks after a reply may have
// received it.
type tier int

const (
	unanswered  tier = iota // no reply has gone out
	answered                // a reply has, and the client has not spoken since
	established             // the client has spoken after a reply: it is never evicted
)

// sessionLimits bound the sessions of one listen address.
type sessionLimits struct{ total, perClient int }

// table has the sessions of a socket. What it does for a datagram takes the same time however many there are.
type table struct {
	sessions map[fiveTuple]*PacketSession
	proxied  map[proxiedKey]*PacketSession // those that load balancers pass on; nil until there is one
	clients  map[clientKey]*client
	waiting  [established]list
	queue    list // of sessions that have no place yet, in the order of their arrival
	queued   int
}

// client has the sessions of one client.
type client struct {
	key     clientKey
	count   int
	waiting [established]list
}

// entry is what a table notes about a session.
type entry struct {
	tier         tier
	client       *client // nil once it is out of the table
	link         link    // in the table's list of the tier, as long as there is one
	linkInClient link    // in the client's
	linkInQueue  link    // in the table's queue, until the session has a place
}

func newTable() *table {
	t := &table{sessions: make(map[fiveTuple]*PacketSession), clients: make(map[clientKey]*client)}
	initialize(&t.waiting)
	t.queue.initialize()
	return t
}

// count is how many sessions there are.
func (t *table) count() int { return len(t.sessions) + len(t.proxied) }

// all returns all sessions.
func (t *table) all() []*PacketSession {
	return slices.AppendSeq(slices.Collect(maps.Values(t.sessions)), maps.Values(t.proxied))
}

// room finds a place for a new session of the client. It returns the session that has to leave for it, if
// one has to, which is out of the table then; or that there is no place, and why.
func (t *table) room(key clientKey, limits sessionLimits) (leaves *PacketSession, why listeners.DropReason, ok bool) {
	if cl := t.clients[key]; cl != nil && cl.count >= limits.perClient {
		leaves, why = oldest(&cl.waiting), listeners.DropClientLimit
	} else if t.count() >= limits.total {
		leaves, why = oldest(&t.waiting), listeners.DropSessionLimit
	} else {
		return nil, 0, true
	}
	if leaves == nil {
		return nil, why, false
	}
	t.remove(leaves)
	return leaves, 0, true
}

// add makes c the youngest session, and the last in the queue.
func (t *table) add(c *PacketSession) {
	key := c.clientKey()
	cl := t.clients[key]
	if cl == nil {
		cl = &client{key: key}
		initialize(&cl.waiting)
		t.clients[key] = cl
	}
	cl.count++
	if c.proxied == nil {
		t.sessions[c.tuple] = c
	} else {
		if t.proxied == nil {
			t.proxied = make(map[proxiedKey]*PacketSession)
		}
		t.proxied[c.proxied.key] = c
	}
	c.entry.client = cl
	c.entry.link.session, c.entry.linkInClient.session, c.entry.linkInQueue.session = c, c, c
	t.enter(c, unanswered)
	t.queue.append(&c.entry.linkInQueue)
	t.queued++
}

// next takes the first session out of the queue, which must have one.
func (t *table) next() *PacketSession {
	c := t.queue.next.session
	t.dequeue(c)
	return c
}

// dequeue takes c out of the queue, if it is in.
func (t *table) dequeue(c *PacketSession) {
	if c.entry.linkInQueue.next != nil {
		c.entry.linkInQueue.unlink()
		t.queued--
	}
}

// remove takes c out, if it is in.
func (t *table) remove(c *PacketSession) {
	cl := c.entry.client
	if cl == nil {
		return
	}
	t.leave(c)
	t.dequeue(c)
	c.entry.client = nil
	if c.proxied == nil {
		delete(t.sessions, c.tuple)
	} else {
		delete(t.proxied, c.proxied.key)
	}
	if cl.count--; cl.count == 0 {
		delete(t.clients, cl.key)
	}
}

// promote moves c from one tier to the next. It does nothing where c is in another one.
func (t *table) promote(c *PacketSession, from tier) {
	if c.entry.client != nil && c.entry.tier == from {
		t.leave(c)
		t.enter(c, from+1)
	}
}

func (t *table) enter(c *PacketSession, to tier) {
	c.entry.tier = to
	if to < established {
		t.waiting[to].append(&c.entry.link)
		c.entry.client.waiting[to].append(&c.entry.linkInClient)
	}
}

func (t *table) leave(c *PacketSession) {
	if c.entry.tier < established {
		c.entry.link.unlink()
		c.entry.linkInClient.unlink()
	}
}

// oldest returns the session that is worth least, nil if there are only established ones.
func oldest(waiting *[established]list) *PacketSession {
	if c := waiting[unanswered].next.session; c != nil {
		return c
	}
	return waiting[answered].next.session
}

// oldestBut returns the oldest session of a tier that has a place, c aside; nil if there is none.
func (t *table) oldestBut(of tier, c *PacketSession) *PacketSession {
	first := t.waiting[of].next
	if first.session == c && c != nil {
		first = first.next
	}
	if oldest := first.session; oldest != nil && oldest.entry.linkInQueue.next == nil {
		return oldest
	}
	return nil
}

// list is a ring of links, in which the list itself is the one without a session.
type list struct{ link }

type link struct {
	prev, next *link
	session    *PacketSession
}

func initialize(lists *[established]list) {
	for i := range lists {
		lists[i].initialize()
	}
}

func (l *list) initialize() { l.prev, l.next = &l.link, &l.link }

func (l *list) append(k *link) {
	k.prev, k.next = l.prev, &l.link
	k.prev.next, k.next.prev = k, k
}

func (k *link) unlink() {
	k.prev.next, k.next.prev = k.next, k.prev
	k.prev, k.next = nil, nil
}
