package forward

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// waiting is how a session waits for an upstream, where its handler has it wait: in a queue while all are full (queue), and until it
// tries them again (lb_try_duration).
type waiting struct {
	*way
	notice func()    // has the relay notice a client that leaves; nil for datagrams, whose clients say nothing when they leave
	until  time.Time // when lb_try_duration is over; zero before the first upstream is tried

	place   atomic.Pointer[upstream.Place] // in the queue; whoever takes it leaves it
	refused error                          // by the queue

	// What ready has found for the first next.
	found    bool
	addr     net.Addr
	notFound error
}

// find is Next of a walk, waits for a first upstream where there is none at all, and waits where the handler says so.
func (w *way) find(ctx context.Context, failed error) (net.Addr, error) {
	if w.awaits != nil {
		if err := w.await(ctx); err != nil {
			return nil, err
		}
	}
	if w.wait == nil {
		return w.Next(ctx, failed)
	}
	return w.wait.next(ctx, failed)
}

// ready reports whether the first find will not wait. Whoever has to wait in the queue has its place then: the caller calls find.
func (w *way) ready() bool {
	if w.wait == nil {
		return w.Ready()
	}
	return w.wait.ready()
}

func (w *waiting) ready() bool {
	q := w.h.queue
	if q != nil && q.Waiting() > 0 {
		return !w.enter()
	}
	if !w.Ready() {
		return false
	}
	if q != nil && w.Full() {
		return !w.enter()
	}
	w.found = true
	w.addr, w.notFound = w.Next(context.Background(), nil)
	return w.notFound == nil || w.h.tryDuration == 0
}

// enter puts the session into the queue. It reports false where it is refused.
func (w *waiting) enter() bool {
	place, err := w.h.queue.Enter()
	w.place.Store(place)
	w.refused = err
	return err == nil
}

// next returns the next upstream, and begins again with all of them where there is none and lb_try_duration is not over.
func (w *waiting) next(ctx context.Context, failed error) (net.Addr, error) {
	if w.until.IsZero() {
		w.until = time.Now().Add(w.h.tryDuration)
	}
	addr, err := w.inTurn(ctx, failed)
	for err != nil && w.pause(ctx, err) {
		w.follow(w.h.latest().rosters.now.Load())
		addr, err = w.inTurn(ctx, nil)
	}
	return addr, err
}

// inTurn returns the next upstream. Where all are full it waits for its turn, and where others wait already, too, unless it goes on after a
// failure.
func (w *waiting) inTurn(ctx context.Context, failed error) (net.Addr, error) {
	q := w.h.queue
	if q != nil && q.Waiting() > 0 && failed == nil && w.place.Load() == nil && w.refused == nil && !w.found {
		w.enter()
	}
	for {
		if w.refused != nil {
			return nil, w.refused
		}
		if place := w.place.Swap(nil); place != nil {
			if err := w.stand(ctx, place); err != nil {
				return nil, err
			}
		}
		addr, err := w.goOn(ctx, failed)
		if q == nil || !errors.Is(err, upstream.ErrFull) {
			return addr, err
		}
		failed = nil
		w.enter()
	}
}

// goOn is Next, or what ready has found.
func (w *waiting) goOn(ctx context.Context, failed error) (net.Addr, error) {
	if w.found {
		w.found = false
		return w.addr, w.notFound
	}
	return w.Next(ctx, failed)
}

// stand waits in the queue until the session has a place at an upstream.
func (w *waiting) stand(ctx context.Context, place *upstream.Place) error {
	w.leaveUpstream()
	waiting := queued.WithLabelValues(w.sess.Listener)
	waiting.Inc()
	defer waiting.Dec()
	defer w.h.queue.left()
	return place.Wait(ctx, func() bool {
		if now := w.h.latest().rosters.now.Load(); now != w.roster {
			w.follow(now)
		}
		return w.Claim()
	})
}

// pause waits until upstreams are to be tried again. It reports false where they are not.
func (w *waiting) pause(ctx context.Context, err error) bool {
	interval := w.h.tryInterval
	if w.h.tryDuration == 0 || ctx.Err() != nil || w.refused != nil || errors.Is(err, upstream.ErrQueueTimeout) ||
		time.Now().Add(interval).After(w.until) {
		return false
	}
	w.leaveUpstream()
	again := time.NewTimer(interval)
	defer again.Stop()
	select {
	case <-again.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// leaveUpstream gives the session's place up at the upstream that it has tried last, and has a client noticed that leaves.
func (w *waiting) leaveUpstream() {
	w.sess.Uncount()
	if w.notice != nil {
		w.notice()
	}
}

// over gives up a place in the queue for which find was not called, or did not get as far as that. It is called at the end of the session.
func (w *waiting) over() {
	if w == nil {
		return
	}
	if place := w.place.Swap(nil); place != nil {
		place.Leave()
		w.h.queue.left()
	}
}
