package relay

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// soon is how late a limit may end a relay, on a machine that is not busy with something else.
const soon = time.Second

// TestLimits runs apart from what keeps the machine busy, because it is about times.
func TestLimits(t *testing.T) {
	t.Cleanup(measureLag())
	for name, test := range map[string]func(*testing.T, pair){
		"idle":                          idleTimeout,
		"data resets idle":              dataResetsIdle,
		"half-close":                    halfCloseTimeout,
		"half-close longer than idle":   halfCloseLongerThanIdle,
		"half-close falls back to idle": halfCloseFallsBack,
		"lifetime":                      maxLifetime,
		"lifetime while connecting":     lifetimeWhileConnecting,
		"lifetime while Next blocks":    lifetimeWhileNextBlocks,
		"peer that never reads":         idleWithoutReader,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			overPairs(t, test)
		})
	}
}

// lag is how late a goroutine was that slept, at worst. A busy machine is not the relay's fault, which
// needs a few of them in turn.
var lag atomic.Int64

func measureLag() (stop func()) {
	const pause = 10 * time.Millisecond
	over, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			before := time.Now()
			select {
			case <-time.After(pause):
				lag.Store(max(lag.Load(), int64(time.Since(before)-pause)))
			case <-over:
				return
			}
		}
	}()
	return func() {
		close(over)
		<-stopped
	}
}

// wantAfter checks that the relay ends between limit and soon after it, counted from start.
func (s *session) wantAfter(start time.Time, limit time.Duration, reason Reason) {
	s.Helper()
	s.want(reason)
	if took := time.Since(start); took < limit || took > limit+soon+time.Duration(5*lag.Load()) {
		s.Errorf("%s after %s, want %s", reason, took, limit)
	}
}

func idleTimeout(t *testing.T, p pair) {
	const limit = 300 * time.Millisecond
	s := p.open(t, limits(Limits{Idle: limit}))
	last := time.Now()
	s.exchange(10)
	s.wantAfter(last, limit, IdleTimeout)
	s.wantEOF(s.client)
	s.wantEOF(s.upstream)
}

func dataResetsIdle(t *testing.T, p pair) {
	const limit = 1500 * time.Millisecond
	s := p.open(t, limits(Limits{Idle: limit}))
	start := time.Now()
	from, to := s.client, s.upstream
	for time.Since(start) < limit*3/2 {
		s.mustSend(from, 1, 10)
		s.mustReceive(to, 1, 10)
		from, to = to, from
		time.Sleep(limit / 10)
	}
	last := time.Now()
	s.exchange(10)
	s.wantAfter(last, limit, IdleTimeout)
}

func halfCloseTimeout(t *testing.T, p pair) {
	const limit = 300 * time.Millisecond
	for _, up := range []bool{true, false} {
		s := p.open(t, limits(Limits{Idle: time.Hour, HalfClose: limit}))
		from, to := s.upstream, s.client
		if up {
			from, to = to, from
		}
		s.exchange(10)
		start := time.Now()
		from.CloseWrite()
		s.wantEOF(to)
		s.wantAfter(start, limit, IdleTimeout)
		s.wantEOF(from)
	}
}

func halfCloseLongerThanIdle(t *testing.T, p pair) {
	const limit = 1200 * time.Millisecond
	s := p.open(t, limits(Limits{Idle: 600 * time.Millisecond, HalfClose: limit}))
	start := time.Now()
	s.client.CloseWrite()
	s.wantAfter(start, limit, IdleTimeout)
}

func halfCloseFallsBack(t *testing.T, p pair) {
	const limit = 300 * time.Millisecond
	s := p.open(t, limits(Limits{Idle: limit}))
	start := time.Now()
	s.client.CloseWrite()
	s.wantAfter(start, limit, IdleTimeout)
}

func maxLifetime(t *testing.T, p pair) {
	const limit = 500 * time.Millisecond
	start := time.Now()
	s := p.open(t, limits(Limits{Lifetime: limit, Idle: time.Hour}))
	var all sync.WaitGroup
	all.Go(func() { _ = send(s.client, 1, 1<<40) })
	all.Go(func() { _ = receiver(s.upstream, 1).read(1 << 40) })
	s.wantAfter(start, limit, MaxLifetime)
	all.Wait()
}

func lifetimeWhileConnecting(t *testing.T, p pair) {
	const limit = 300 * time.Millisecond
	addr, _ := deaf(t)
	start := time.Now()
	s := p.start(t, func(ctx context.Context, _ error) (net.Addr, error) { return addr, ctx.Err() },
		limits(Limits{Lifetime: limit, Connect: time.Hour}))
	s.wantAfter(start, limit, MaxLifetime)
}

func lifetimeWhileNextBlocks(t *testing.T, p pair) {
	const limit = 300 * time.Millisecond
	start := time.Now()
	s := p.start(t, untilClosed, limits(Limits{Lifetime: limit}))
	s.wantAfter(start, limit, MaxLifetime)
	s.wantEOF(s.client)
}

func idleWithoutReader(t *testing.T, p pair) {
	const limit = 500 * time.Millisecond
	s := p.open(t, limits(Limits{Idle: limit}))
	_ = s.upstream.SetWriteDeadline(time.Now().Add(limit / 10))
	_ = send(s.upstream, 1, 1<<40) // until the relay is stuck
	s.wantAfter(s.relay.Stats().LastActive, limit, IdleTimeout)
}

// Without limits a relay stays.
func TestNoLimits(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		s.exchange(1)
		s.client.CloseWrite()
		s.wantEOF(s.upstream)
		select {
		case r := <-s.ended:
			t.Errorf("ended: %s", r.Reason)
		case <-time.After(200 * time.Millisecond):
		}
		s.mustSend(s.upstream, 2, 1)
		s.mustReceive(s.client, 2, 1)
	})
}
