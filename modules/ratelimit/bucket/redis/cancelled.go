package redis

import (
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// cancelled are reservations that were given back and that Redis has not been told of.
type cancelled struct {
	mu     sync.Mutex
	all    []cancellation
	closed bool // nobody tells Redis any more
}

// cancellation is one call of Cancel.
type cancellation struct {
	requests []bucket.Request
	done     func(kept []bucket.Request)
}

// Cancel implements [bucket.Store]. Redis is told soon.
func (s *Store) Cancel(now time.Duration, requests []bucket.Request, done func(kept []bucket.Request)) {
	var local, shared []bucket.Request
	for i := range requests {
		if requests[i].Reserved.Shared {
			shared = append(shared, requests[i])
		} else {
			local = append(local, requests[i])
		}
	}
	var kept []bucket.Request
	if len(local) > 0 {
		s.memory.Cancel(now, local, func(those []bucket.Request) { kept = those })
	}
	if len(shared) == 0 || !s.cancelled.add(cancellation{shared, func(those []bucket.Request) { done(append(kept, those...)) }}) {
		done(kept)
		return
	}
	s.health.wake()
}

// add reports false where nobody tells Redis any more.
func (c *cancelled) add(one cancellation) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.all = append(c.all, one)
	}
	return !c.closed
}

// take returns all of them.
func (c *cancelled) take() (all []cancellation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all, c.all = c.all, nil
	return all
}

// forget gives up what there is, and what comes from now on.
func (c *cancelled) forget() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	for _, one := range c.take() {
		one.done(nil)
	}
}

// cancel tells Redis of the reservations that were given back. Where Redis can't be told they are lost, and whoever comes next
// waits longer.
func (h *health) cancel() {
	for _, one := range h.store.cancelled.take() {
		client := h.store.client.get()
		if client == nil || h.open.Load() {
			one.done(nil)
			continue
		}
		one.done(h.withdraw(client, one.requests))
	}
}

// withdraw returns what could not be given back.
func (h *health) withdraw(client rueidis.Client, requests []bucket.Request) (kept []bucket.Request) {
	for len(requests) > 0 {
		some := requests[:min(batch, len(requests))]
		requests = requests[len(some):]
		keys, args := h.store.withdrawal(h.store.counts.nodeName(), some)
		ctx, cancel := h.store.timeout()
		answer, err := h.store.exec(ctx, client, keys, args).AsIntSlice()
		cancel()
		if err != nil { // it may have been done: they must not be given back twice
			h.suspect(err, some)
			h.failed(err)
			return nil
		}
		for _, i := range answer {
			if i >= 1 && i <= int64(len(some)) {
				kept = append(kept, some[i-1])
			}
		}
		if len(kept) > 0 { // something else was admitted after those that follow, too
			return append(kept, requests...)
		}
	}
	return nil
}
