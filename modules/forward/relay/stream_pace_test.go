package relay

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// bucketful is a pacer that lets so many bytes pass in a second, and at first a burst.
type bucketful struct {
	rate  float64
	burst int
	mu    sync.Mutex
	empty time.Time // the bucket is, until then
	moved int64
	most  int // at once
}

func (b *bucketful) Quantum() int { return b.burst }

func (b *bucketful) Moved(n int) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.empty.Before(now) {
		b.empty = now
	}
	b.empty = b.empty.Add(time.Duration(float64(n) / b.rate * float64(time.Second)))
	b.moved += int64(n)
	b.most = max(b.most, n)
	return b.empty.Sub(now) - time.Duration(float64(b.burst)/b.rate*float64(time.Second))
}

func pacedBy(up, down Pacer) func(*Config) {
	return func(c *Config) { c.PaceUp, c.PaceDown = up, down }
}

func TestPaceOfEachDirection(t *testing.T) {
	t.Parallel()
	overPairs(t, func(t *testing.T, p pair) {
		const size = 300_000
		up := &bucketful{rate: 1e6, burst: 10_000}
		down := &bucketful{rate: 2e6, burst: 100_000}
		prefetched := bytesOf(1, size)[:20_000]
		s := p.open(t, pacedBy(up, down), func(c *Config) { c.Prefetched = prefetched })
		start := time.Now()
		var both sync.WaitGroup
		both.Go(func() {
			in := receiver(s.upstream, 1)
			s.mustRead(in, size)
			// Two bursts may have moved before the first pause, and those that were read before.
			if took := time.Since(start); took < 250*time.Millisecond {
				t.Errorf("up: took %v", took)
			}
		})
		both.Go(func() {
			s.mustReceive(s.client, 2, size)
			if took := time.Since(start); took < 45*time.Millisecond {
				t.Errorf("down: took %v", took)
			}
		})
		both.Go(func() { s.mustSend(s.upstream, 2, size) })
		if _, err := s.client.Write(bytesOf(1, size)[20_000:]); err != nil {
			t.Error(err)
		}
		both.Wait()
		for name, b := range map[string]*bucketful{"up": up, "down": down} {
			eventually(t, name+": to be told of all bytes", func() bool {
				b.mu.Lock()
				defer b.mu.Unlock()
				return b.moved == size
			})
		}
		if down.most > 100_000 {
			t.Errorf("%d bytes were moved at once, of 100,000", down.most)
		}
		_ = s.client.CloseWrite()
		s.wantEOF(s.upstream)
		_ = s.upstream.CloseWrite()
		s.want(ClientFIN)
	})
}

// stopper is a pacer that lets a number of bytes pass, and then none for an hour.
type stopper struct{ left atomic.Int64 }

func (*stopper) Quantum() int { return 1 << 20 }

func (st *stopper) Moved(n int) time.Duration {
	if st.left.Add(-int64(n)) > 0 {
		return 0
	}
	return time.Hour
}

func TestPauseIsOfOneDirection(t *testing.T) {
	t.Parallel()
	overPairs(t, func(t *testing.T, p pair) {
		up := new(stopper)
		up.left.Store(10)
		s := p.open(t, pacedBy(up, nil))
		s.mustSend(s.client, 1, 10)
		s.mustReceive(s.upstream, 1, 10)
		s.mustSend(s.client, 3, 10) // is not to arrive
		for range 10 {
			s.mustSend(s.upstream, 2, 1000)
			s.mustReceive(s.client, 2, 1000)
		}
		eventually(t, "bytes that went up", func() bool { return s.relay.Stats().BytesUp >= 10 }) // counted after they were sent
		if got := s.relay.Stats().BytesUp; got != 10 {
			t.Errorf("%d bytes went up, want 10", got)
		}
		s.relay.Close(adminClosed)
		s.want(adminClosed)
	})
}

// A session may be told to pause before anything has moved, because others have used up what there is.
func TestPauseBeforeTheFirstByte(t *testing.T) {
	t.Parallel()
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t, pacedBy(new(stopper), nil))
		s.mustSend(s.client, 1, 10)
		s.mustSend(s.upstream, 2, 1000)
		s.mustReceive(s.client, 2, 1000)
		if got := s.relay.Stats().BytesUp; got != 0 {
			t.Errorf("%d bytes went up, want none", got)
		}
		s.relay.Close(adminClosed)
		s.want(adminClosed)
	})
}

// Silence that the pacer asks for is not the peers'.
func TestPauseIsNoSilence(t *testing.T) {
	t.Parallel()
	overPairs(t, func(t *testing.T, p pair) {
		// A byte takes twice as long as the idle timeout.
		up := &bucketful{rate: 1.0 / 3, burst: 1}
		s := p.open(t, pacedBy(up, nil), limits(Limits{Idle: 1500 * time.Millisecond}))
		s.mustSend(s.client, 1, 3)
		s.mustReceive(s.upstream, 1, 3)
		s.want(IdleTimeout)
	})
}

func TestReadersOfAPacedDirectionMayBeSlow(t *testing.T) {
	t.Parallel()
	overPairs(t, func(t *testing.T, p pair) {
		down := &bucketful{rate: 100e6, burst: 1 << 20}
		s := p.open(t, pacedBy(nil, down))
		size := bulk()
		sent := make(chan error, 1)
		go func() { sent <- send(s.upstream, 2, size) }()
		in := receiver(s.client, 2)
		s.mustRead(in, 1)
		eventually(t, "a full socket", func() bool {
			before := s.relay.Stats().BytesDown
			time.Sleep(5 * time.Millisecond)
			return s.relay.Stats().BytesDown == before
		})
		s.mustRead(in, size-1)
		if err := <-sent; err != nil {
			t.Error(err)
		}
		s.relay.Close(adminClosed)
		s.want(adminClosed)
	})
}
