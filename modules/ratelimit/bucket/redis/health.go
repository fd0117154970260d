package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

const (
	// A breaker opens after so many failures in a row. One alone may be chance.
	opensAfter = 3
	// While it is open, Redis is tried so often.
	probeEvery = 250 * time.Millisecond
	// While this node holds something, it says so often that it lives.
	heartbeat = leaseTime / 3
	// How many keys Redis is told of in one call, during which it does nothing else.
	batch = 64
)

// health has the breaker, and the goroutine that closes it, and tells Redis what this node holds.
type health struct {
	store    *Store
	open     atomic.Bool
	failures atomic.Int32 // in a row

	former []string // names under which this node may still be counted

	trouble  trouble
	suspects atomic.Pointer[[]bucket.Request] // one of them failed because of what its key holds

	awake chan struct{} // there is something to tell Redis, or to ask
	done  chan struct{}
	end   func() // closes done
}

func (h *health) init(s *Store) {
	h.store = s
	h.open.Store(true) // until Redis has answered
	h.awake = make(chan struct{}, 1)
	h.done = make(chan struct{})
	h.end = sync.OnceFunc(func() { close(h.done) })
	go h.run()
}

func (h *health) wake() {
	select {
	case h.awake <- struct{}{}:
	default:
	}
}

func (h *health) succeeded() {
	if h.failures.Load() > 0 {
		h.failures.Store(0)
	}
}

// failed notes that Redis has not answered as it should.
func (h *health) failed(err error) {
	if ofOneKey(err) || h.failures.Add(1) < opensAfter && !isBroken(err) {
		return
	}
	h.trip(err)
}

// trip opens the breaker.
func (h *health) trip(err error) {
	if h.open.CompareAndSwap(false, true) {
		h.store.counts.hush()
		h.report(err)
	}
}

// ofOneKey tells what is wrong with one key from what is wrong with the server: it holds something that Portgate
// has not put there.
func ofOneKey(err error) bool {
	answer, ok := rueidis.IsRedisErr(err)
	return ok && (strings.Contains(answer.Error(), "WRONGTYPE") || strings.Contains(answer.Error(), "attempt to "))
}

// isElsewhere reports whether the server says that another one is to be asked. Which one that is may be seen when the name is
// looked up again, or when the client asks for the nodes of a cluster.
func isElsewhere(err error) bool {
	answer, ok := rueidis.IsRedisErr(err)
	return ok && slices.Contains([]string{"READONLY", "MASTERDOWN", "MOVED"}, strings.SplitN(answer.Error(), " ", 2)[0])
}

// isBroken tells a connection that has ended from one on which an answer is late.
func isBroken(err error) bool {
	_, answered := rueidis.IsRedisErr(err)
	return !answered && !errors.Is(err, context.DeadlineExceeded)
}

// run ends with the store.
func (h *health) run() {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	probe := time.NewTicker(probeEvery)
	defer probe.Stop()
	h.probe()
	for {
		select {
		case <-h.done:
			h.store.cancelled.forget()
			h.farewell()
			h.store.client.close()
			return
		case <-probe.C:
			h.probe()
		case <-beat.C:
			if !h.open.Load() && h.store.counts.refresh() {
				h.tell()
			}
		case <-h.awake:
			h.examine()
			h.cancel()
			if !h.open.Load() {
				h.tell()
			}
		}
	}
}

// probe closes the breaker if Redis answers in time, and knows what this node holds. The node takes another
// name: what it said under the old one, and what is still on its way to Redis, counts no more.
func (h *health) probe() {
	if !h.open.Load() {
		return
	}
	client, err := h.connect()
	if err != nil {
		h.report(err)
		return
	}
	h.former = append(h.former, h.store.counts.rename())
	if n := len(h.former) - int(leaseTime/probeEvery); n > 0 {
		h.former = h.former[n:] // their leases are over
	}
	err = h.rehearse(client)
	if err == nil {
		_, err = h.publish(client, true)
	}
	if err != nil {
		h.store.counts.hush()
		h.report(err)
		if isElsewhere(err) {
			h.store.client.drop()
		}
		return
	}
	h.former = nil
	h.failures.Store(0)
	h.open.Store(false)
	h.over()
	h.tell()
}

// rehearse has Redis do all that a decision takes: what it refuses, because the user may not do it or because no writes are taken, it
// refuses here too. Then it removes the names that are no longer used.
func (h *health) rehearse(client rueidis.Client) error {
	ctx, cancel := h.store.timeout()
	defer cancel()
	var err error
	decision, statement := h.store.rehearsal(h.store.counts.nodeName())
	for _, call := range [][2][]string{decision, statement} {
		if err == nil {
			err = h.store.exec(ctx, client, call[0], call[1]).Error()
		}
	}
	foreignKey := ofOneKey(err)
	if err != nil && !foreignKey {
		return err
	}
	start := time.Now()
	err = client.Do(ctx, client.B().Zrem().Key(h.store.nodesKey()).Member(h.former...).Build()).Error()
	h.store.observe(start, err)
	switch {
	case ofOneKey(err):
		return foreign(h.store.nodesKey())
	case foreignKey:
		return foreign(decision[0][0])
	}
	return err
}

// connect returns the client, and counts an attempt that failed.
func (h *health) connect() (rueidis.Client, error) {
	start := time.Now()
	client, err := h.store.client.connect()
	if err != nil {
		h.store.observe(start, err)
	}
	return client, err
}

// tell tells Redis all the news.
func (h *health) tell() {
	client := h.store.client.get()
	for first := true; client != nil; first = false {
		known, err := h.publish(client, first)
		if err != nil {
			h.failed(err)
			return
		}
		if !known {
			h.store.counts.forgotten()
		}
		if !h.store.counts.anyNews() {
			return
		}
	}
}

// publish tells Redis a batch of news, and that this node lives, of which it may be all. It reports whether
// Redis knew this node.
func (h *health) publish(client rueidis.Client, evenNone bool) (known bool, err error) {
	node, news := h.store.counts.take(batch)
	if len(news) == 0 && !evenNone {
		return true, nil
	}
	keys, args := h.store.statement(node, news)
	ctx, cancel := h.store.timeout()
	defer cancel()
	answer, err := h.store.exec(ctx, client, keys, args).AsIntSlice()
	if err == nil && (len(answer) != 2 || answer[1] < 0 || answer[1] > int64(len(news))) {
		err = fmt.Errorf("expected 2 numbers from Redis: %v", answer)
	}
	if err != nil {
		h.store.counts.missed(news)
		return false, err
	}
	h.store.counts.told(news)
	if bad := answer[1]; bad > 0 {
		h.store.badKey(keys[bad-1])
	}
	return answer[0] == 1, nil
}

// farewell takes back what this node holds: without it, Redis would notice when the lease is over.
func (h *health) farewell() {
	client := h.store.client.get()
	if client == nil || h.open.Load() {
		return
	}
	ctx, cancel := h.store.timeout()
	defer cancel()
	client.Do(ctx, client.B().Zrem().Key(h.store.nodesKey()).Member(h.store.counts.nodeName()).Build())
}
