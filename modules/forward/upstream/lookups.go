package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

const (
	// lookupLimit bounds a lookup. It is longer than sessions wait: the system asks a silent name server for 5 s before it asks the
	// next one, and asks all of them twice (resolv.conf(5)). Who asks anew each 3 s would never get to the second.
	lookupLimit = 30 * time.Second
	// maxLookups bounds the lookups under way: of names that configs have, and of others.
	maxLookups = 64
	// retryEvery is how often a name whose old answer is used is looked up where no session does so: it tells when that is over.
	retryEvery = 5 * time.Second
)

// query is a lookup under way. There is at most one for a name. Names.mu guards it, but for ips and err, which are set before done is
// closed.
type query struct {
	cancel  context.CancelFunc
	done    chan struct{}
	waiting int  // sessions
	begun   bool // it has one of the slots
	ips     []netip.Addr
	err     error
}

// wait waits for the answer: until ctx ends, or for up to limit.
func (q *query) wait(ctx context.Context, host string, limit time.Duration) error {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case <-q.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timeout.C:
		return &net.DNSError{Err: fmt.Sprintf("no answer within %s", limit), Name: host, IsTimeout: true, UnwrapErr: context.DeadlineExceeded}
	}
}

// leave notes that a session does not wait any more.
func (n *Names) leave(r *name, q *query) {
	if q.waiting--; r.running == q {
		n.noteWanted(r)
	}
}

// noteWanted is called when it may have changed whether somebody needs the lookup of a name. One that nobody waits for and no config has
// goes on, because a name server may take longer than a session waits; but it has a slot only as long as nobody else needs that.
func (n *Names) noteWanted(r *name) {
	switch q := r.running; {
	case q == nil || q.waiting > 0 || r.held > 0:
		delete(n.unwanted, r)
	case !q.begun || n.queued > 0:
		n.abandon(r)
	default:
		n.unwanted[r] = struct{}{}
	}
}

// abandon ends a lookup. What it finds is not noted.
func (n *Names) abandon(r *name) {
	r.running.cancel()
	r.running = nil
	delete(n.unwanted, r)
}

// queue notes that a lookup of a name that no config has begins to wait for a slot, or with -1 that it ends. A lookup that nobody needs
// makes way.
func (n *Names) queue(change int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.queued += change; change < 0 {
		return
	}
	for r := range n.unwanted {
		n.abandon(r)
		return
	}
}

// start begins to look a name up. It is called with n.mu locked.
func (n *Names) start(r *name) *query {
	ctx, cancel := context.WithTimeout(context.Background(), lookupLimit)
	q := &query{cancel: cancel, done: make(chan struct{})}
	r.running = q
	slots := n.slots[min(r.held, 1)]
	go func() {
		defer cancel()
		q.ips, q.err = n.ask(ctx, r, q, slots)
		n.mu.Lock()
		if r.running == q {
			r.running = nil
			n.noteWanted(r)
			r.answered(n, q.ips, q.err)
		}
		n.mu.Unlock()
		close(q.done)
	}()
	return q
}

// takeSlot waits for one of the slots. It reports false where ctx ends before.
func (n *Names) takeSlot(ctx context.Context, slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
	}
	if slots == n.slots[0] {
		n.queue(1)
		defer n.queue(-1)
	}
	select {
	case slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// ask makes the lookup, as soon as there is a slot.
func (n *Names) ask(ctx context.Context, r *name, q *query, slots chan struct{}) ([]netip.Addr, error) {
	if !n.takeSlot(ctx, slots) {
		return nil, errTooMany
	}
	defer func() { <-slots }()
	n.mu.Lock()
	if q.begun = true; r.running == q {
		n.noteWanted(r)
	}
	n.mu.Unlock()
	ips, err := n.cfg.Lookup(ctx, r.network, r.host)
	if isNotFound(err) && n.cfg.Confirm != nil {
		ips, err = n.cfg.Confirm(ctx, r.network, r.host)
	}
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	return ips, err
}

// answered notes what a lookup has found.
func (r *name) answered(n *Names, ips []netip.Addr, err error) {
	if n.cfg.Looked != nil {
		n.cfg.Looked(err)
	}
	r.err = err
	if err == nil {
		r.ips, r.at = ips, time.Now()
		r.over(n, nil)
		return
	}
	r.failedAt = time.Now()
	if !r.usable(holdNotFound) && isNotFound(err) {
		r.ips = nil // the name was removed: an error of its server does not bring it back
		r.over(n, err)
	}
	n.retryLater(r)
}

// over says that the old answer is not used any more, if it was.
func (r *name) over(n *Names, err error) {
	if !r.old {
		return
	}
	r.old = false
	r.retry.Stop()
	if n.cfg.Over != nil {
		n.cfg.Over(r.network, r.host, err)
	}
}

// retryLater has a name looked up, in a while, whose old answer is used.
func (n *Names) retryLater(r *name) {
	if !r.old {
		return
	}
	if r.retry != nil {
		r.retry.Reset(retryEvery)
		return
	}
	r.retry = time.AfterFunc(retryEvery, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if r.old && r.running == nil {
			n.start(r)
		}
	})
}
