package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A generator's phase only ever goes forward.
const (
	opening   = iota // connections are opened, each makes one exchange and then waits
	running          // all of them work
	recording        // the same, and durations are noted
	stopping
)

// generator drives one workload through one address, in loops that share nothing but the phase.
type generator struct {
	work    workload
	address *syscall.RawSockaddrInet4
	message []byte // the first of a connection, and each of its exchanges
	epoch   time.Time
	phase   atomic.Int32
	loops   []loop
	ended   sync.WaitGroup
}

// loop is one thread of the generator.
type loop interface {
	run()
	counts() *tally
	close()
}

// tally is what a loop has done so far.
type tally struct {
	operations, bytes, opened, failures, lost, sent, noted atomic.Int64

	// The rest is the loop's own until it has ended.
	durations histogram
	phase     int32 // as the loop has seen it
}

func (t *tally) counts() *tally { return t }

// note counts one finished operation.
func (t *tally) note(d time.Duration) {
	t.operations.Add(1)
	if t.phase == recording {
		t.durations.record(d)
		t.noted.Add(1)
	}
}

// unfinished notes an operation that is still on its way with the time that it has taken so far, if that is longer than any that
// finished: a proxy must not look fast because it leaves somebody out.
func (t *tally) unfinished(age time.Duration) {
	if t.phase == recording && age > t.durations.max {
		t.durations.record(age)
	}
}

// totals is what has been done so far.
type totals struct {
	operations int64 // exchanges or connections
	bytes      int64 // of bulk transfers
	opened     int64 // connections that have made their first exchange
	failures   int64 // connections that could not be opened or broke
	lost       int64 // datagrams that had no answer
	sent       int64 // datagrams that get none
	durations  int64 // that have been noted
}

// newGenerator spreads the workload's connections over the loops and begins to open them.
func newGenerator(work workload, address netip.AddrPort, loops int) (*generator, error) {
	g := &generator{work: work, address: rawAddress(address), epoch: time.Now()}
	g.message = bytes.Repeat([]byte{work.mode()}, work.messageBytes())
	for i := range min(loops, work.connections) {
		p, err := newPoller()
		if err != nil {
			return nil, err
		}
		share := (work.connections + i) / min(loops, work.connections)
		if work.network == udp {
			g.loops = append(g.loops, newDatagramLoop(p, g, share))
		} else {
			g.loops = append(g.loops, newLoadLoop(p, g, share))
		}
	}
	for _, l := range g.loops {
		g.ended.Go(l.run)
	}
	return g, nil
}

// awaitOpen waits until every connection has made its first exchange.
func (g *generator) awaitOpen(ctx context.Context) error {
	deadline := time.After(openTimeout)
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for {
		done := g.totals()
		switch {
		case done.failures > 0:
			return fmt.Errorf("%d of %d connections failed while they were opened", done.failures, g.work.connections)
		case done.opened >= int64(g.work.connections):
			return nil
		}
		select {
		case <-poll.C:
		case <-deadline:
			return fmt.Errorf("%d of %d connections are open after %v", done.opened, g.work.connections, openTimeout)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// openTimeout is enough for thousands of connections through a proxy that is slow at it.
const openTimeout = 30 * time.Second

func (g *generator) totals() totals {
	var sum totals
	for _, l := range g.loops {
		t := l.counts()
		sum.operations += t.operations.Load()
		sum.bytes += t.bytes.Load()
		sum.opened += t.opened.Load()
		sum.failures += t.failures.Load()
		sum.lost += t.lost.Load()
		sum.sent += t.sent.Load()
		sum.durations += t.noted.Load()
	}
	return sum
}

// stop closes all connections and returns the durations.
func (g *generator) stop() *histogram {
	g.phase.Store(stopping)
	g.ended.Wait()
	all := new(histogram)
	for _, l := range g.loops {
		all.add(&l.counts().durations)
		l.close()
	}
	return all
}
