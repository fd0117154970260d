package ratelimit

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/hangup"
	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// maxWaiting bounds the connections that wait for their turn, of all handlers together: each has a descriptor
// that another client may need.
var maxWaiting = min(10_000, int64(descriptors.Limit()/4))

var waitingNow atomic.Int64

// queue has the connections that wait for their turn at one handler's buckets (leaky_bucket).
//
// Each bucket that delays has a line of its own: waiters in the order in which they came, and reservations in the order in
// which they fall due. The first waiter has the first reservation, and so on. A waiter that leaves takes no reservation
// along: all behind it move up by one. What then is left over is given back to the store, the last one first. Where that
// can't be, because another machine has admitted somebody since, it is kept for who comes next. A waiter in several
// lines goes when it has come to the end of each.
type queue struct {
	now   func() time.Duration
	mu    sync.Mutex
	lines map[bucket.Key]*line
	count int // of waiters
	watch hangup.Watch
}

// line is what waits for one bucket.
type line struct {
	key      bucket.Key
	store    bucket.Store
	waiters  []*waiter
	reserved []reservation // of the waiters, and those that are left over
	giving   bool          // some are being given back
	timer    *time.Timer   // of the first
}

// reservation is one place in a line.
type reservation struct {
	due     time.Duration
	request bucket.Request
}

// waiter is a connection that waits.
type waiter struct {
	queue *queue
	lines []*line       // in which it is
	ready chan struct{} // closed when it may go
	gone  chan struct{} // closed when the client has gone
	why   string        // it has gone; valid from then on
	left  sync.Once     // closes gone
}

func newQueue(now func() time.Duration) *queue {
	return &queue{now: now, lines: make(map[bucket.Key]*line)}
}

// join has a connection wait for what the store has reserved for it. It returns nil, and gives the reservations back,
// where too many wait.
//
// No more may wait for a bucket than pass within max_delay, which the store sees to unless its contents were lost. All handlers
// together may have maxWaiting; one of them may have as many as it leaves to the others.
func (q *queue) join(store bucket.Store, requests []bucket.Request) *waiter {
	w := &waiter{queue: q, ready: make(chan struct{}), gone: make(chan struct{})}
	q.mu.Lock()
	room := q.hasRoom(requests)
	var joined []*line
	for i := range requests {
		if delay := requests[i].Reserved.Delay; delay > 0 {
			l := q.line(store, requests[i].Key)
			at := l.insert(q, reservation{q.now() + delay, requests[i]})
			joined = append(joined, l)
			if room {
				l.waiters = slices.Insert(l.waiters, min(at, len(l.waiters)), w)
			}
		}
	}
	if room {
		w.lines = slices.Clone(joined) // advance takes lines out of it while joined is read below
		q.count++
		waitingNow.Add(1)
	}
	q.mu.Unlock()
	for _, l := range joined {
		q.giveBack(l)
	}
	if !room {
		return nil
	}
	return w
}

func (q *queue) hasRoom(requests []bucket.Request) bool {
	if int64(q.count) >= maxWaiting-waitingNow.Load() {
		return false
	}
	for i := range requests {
		if l := q.lines[requests[i].Key]; l != nil && len(l.waiters) >= requests[i].Limit.MaxWaiting() {
			return false
		}
	}
	return true
}

func (q *queue) line(store bucket.Store, key bucket.Key) *line {
	l := q.lines[key]
	if l == nil {
		l = &line{key: key, store: store}
		q.lines[key] = l
	}
	return l
}

// insert adds a reservation, and returns its place. Those that were decided about at the same time may come in another order
// than they have.
func (l *line) insert(q *queue, r reservation) (at int) {
	at = len(l.reserved)
	for at > 0 && r.before(&l.reserved[at-1]) {
		at--
	}
	l.reserved = slices.Insert(l.reserved, at, r)
	if at == 0 {
		l.arm(q)
	}
	return at
}

// before compares by the clock of the store, where it is the same.
func (r *reservation) before(other *reservation) bool {
	a, b := r.request.Reserved, other.request.Reserved
	if a.Shared != b.Shared {
		return r.due < other.due
	}
	return a.Mark < b.Mark
}

// arm has the line advance when its first reservation is due.
func (l *line) arm(q *queue) {
	pause := l.reserved[0].due - q.now()
	if l.timer == nil {
		l.timer = time.AfterFunc(pause, func() { q.advance(l) })
		return
	}
	l.timer.Reset(pause)
}

// advance lets those go whose turn it is. A reservation that is due and that nobody has is lost.
func (q *queue) advance(l *line) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	for len(l.reserved) > 0 && l.reserved[0].due <= now {
		l.reserved = l.reserved[1:]
		if len(l.waiters) == 0 {
			continue
		}
		w := l.waiters[0]
		l.waiters[0] = nil
		l.waiters = l.waiters[1:]
		w.lines = slices.DeleteFunc(w.lines, func(in *line) bool { return in == l })
		if len(w.lines) == 0 {
			q.count--
			waitingNow.Add(-1)
			close(w.ready)
		}
	}
	q.tidy(l)
}

// tidy goes on with a line, or forgets it.
func (q *queue) tidy(l *line) {
	switch {
	case len(l.reserved) > 0:
		l.arm(q)
	case !l.giving:
		l.timer.Stop()
		if q.lines[l.key] == l {
			delete(q.lines, l.key)
		}
	}
}

// giveBack gives back what is left over. It is called when that may have changed.
func (q *queue) giveBack(l *line) {
	q.mu.Lock()
	n := len(l.waiters)
	if l.giving || len(l.reserved) == n {
		q.mu.Unlock()
		return
	}
	given := slices.Clone(l.reserved[n:])
	clear(l.reserved[n:])
	l.reserved = l.reserved[:n]
	l.giving = true
	q.mu.Unlock()

	slices.Reverse(given) // the last one first
	requests := make([]bucket.Request, len(given))
	for i := range given {
		requests[i] = given[i].request
	}
	l.store.Cancel(q.now(), requests, func(kept []bucket.Request) {
		if q.keep(l, given, kept) {
			q.giveBack(l)
		}
	})
}

// keep takes back what could not be given back. It reports whether it is worth trying again: where the last one is another.
func (q *queue) keep(l *line, given []reservation, kept []bucket.Request) (again bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l.giving = false
	for i := range kept {
		at := slices.IndexFunc(given, func(r reservation) bool { return r.request.Reserved == kept[i].Reserved })
		l.insert(q, given[at])
	}
	q.tidy(l)
	if len(l.reserved) == len(l.waiters) {
		return false
	}
	last := l.reserved[len(l.reserved)-1].request.Reserved
	return len(kept) == 0 || last != kept[0].Reserved
}

// leave takes a waiter out that does not wait for its turn.
func (w *waiter) leave() {
	q := w.queue
	q.mu.Lock()
	lines := w.lines
	if len(lines) > 0 { // else its turn has come
		for _, l := range lines {
			i := slices.Index(l.waiters, w)
			l.waiters = slices.Delete(l.waiters, i, i+1)
		}
		w.lines = nil
		q.count--
		waitingNow.Add(-1)
	}
	q.mu.Unlock()
	for _, l := range lines {
		q.giveBack(l)
	}
}

// hasGone notes that the client has gone, or why its listener has ended the connection. It may be called from anywhere, more than once.
func (w *waiter) hasGone(reason string) {
	w.left.Do(func() {
		w.why = cmp.Or(reason, reasonGone)
		close(w.gone)
	})
}

// len returns how many wait.
func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.count
}
