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

// leave notes that a session does not wait any more. A query that nobody waits for, and that has no slot, is of no use to others.
func (q *query) leave(r *name) {
	if q.waiting--; q.waiting == 0 && !q.begun && r.held == 0 && r.running == q {
		r.abandon()
	}
}

// abandon ends a lookup that nobody waits for. What it finds is not noted.
func (r *name) abandon() {
	r.running.cancel()
	r.running = nil
}

// start begins to look a name up. It is called with n.mu locked.
func (n *Names) start(r *name) *query {
	ctx, cancel := context.WithTimeout(context.Background(), lookupLimit)
	q := &query{cancel: cancel, done: make(chan struct{})}
	r.running = q
	slots := n.slots[min(r.held, 1)]
	go func() {
		defer cancel()
		q.ips, q.err = n.ask(ctx, r.nameKey, q, slots)
		n.mu.Lock()
		if r.running == q {
			r.running = nil
			r.answered(n, q.ips, q.err)
		}
		n.mu.Unlock()
		close(q.done)
	}()
	return q
}

// ask makes the lookup, as soon as there is a slot.
func (n *Names) ask(ctx context.Context, k nameKey, q *query, slots chan struct{}) ([]netip.Addr, error) {
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return nil, errTooMany
	}
	n.mu.Lock()
	q.begun = true
	n.mu.Unlock()
	ips, err := n.cfg.Lookup(ctx, k.network, k.host)
	if isNotFound(err) && n.cfg.Confirm != nil {
		ips, err = n.cfg.Confirm(ctx, k.network, k.host)
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
