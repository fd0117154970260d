package relay

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// bulk is how much a test moves that wants much.
func bulk() int64 {
	if raceDetector {
		return 8 << 20
	}
	return 64 << 20
}

func TestEngineThatServes(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		s.exchange(1)
		s.relay.mu.Lock()
		got := fmt.Sprintf("%T", s.relay.engine)
		s.relay.mu.Unlock()
		want := "*relay.goroutineStream"
		if p.loop {
			want = "*relay.loopStream"
		}
		if got != want {
			t.Errorf("engine: got %s, want %s", got, want)
		}
	})
}

func TestSmallMessages(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		for i := range int64(500) {
			s.exchange(1 + i*i%1000)
		}
	})
}

func TestMessagesOfAllSizes(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		for size := int64(1); size <= 1<<20; size *= 2 {
			for _, n := range []int64{size - 1, size, size + 1} {
				var both sync.WaitGroup
				both.Go(func() { s.mustSend(s.client, 1, n) })
				s.mustReceive(s.upstream, 1, n)
				both.Wait()
			}
		}
	})
}

func TestBulkBothWays(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s, n := p.open(t), bulk()
		var all sync.WaitGroup
		for seed, way := range map[byte][2]stream{1: {s.client, s.upstream}, 2: {s.upstream, s.client}} {
			all.Go(func() {
				s.mustSend(way[0], seed, n)
				way[0].CloseWrite()
			})
			all.Go(func() {
				s.mustReceive(way[1], seed, n)
				s.wantEOF(way[1])
			})
		}
		all.Wait()
		r := s.result()
		if r.BytesUp != n || r.BytesDown != n {
			t.Errorf("moved %d up and %d down, want %d", r.BytesUp, r.BytesDown, n)
		}
	})
}

func TestPrefetchedComesFirstAndOnce(t *testing.T) {
	for _, n := range []int{1, bufferSize, 1 << 20, 8 << 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			overPairs(t, func(t *testing.T, p pair) {
				stream := bytesOf(1, n+1000)
				s := p.open(t, func(c *Config) { c.Prefetched = stream[:n] })
				if _, err := s.client.Write(stream[n:]); err != nil {
					t.Fatal(err)
				}
				s.client.CloseWrite()
				s.mustReceive(s.upstream, 1, int64(len(stream)))
				s.wantEOF(s.upstream)
				s.upstream.CloseWrite()
				if r := s.want(ClientFIN); r.BytesUp != int64(len(stream)) {
					t.Errorf("moved %d up, want %d", r.BytesUp, len(stream))
				}
			})
		})
	}
}

// The client may have finished before it is forwarded.
func TestPrefetchedOfAClientThatHasFinished(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t, func(c *Config) { c.Prefetched = bytesOf(1, 100) })
		s.client.CloseWrite()
		s.mustReceive(s.upstream, 1, 100)
		s.wantEOF(s.upstream)
		s.mustSend(s.upstream, 2, 100)
		s.mustReceive(s.client, 2, 100)
	})
}

func TestServerSpeaksFirst(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		s.mustSend(s.upstream, 2, 100)
		s.mustReceive(s.client, 2, 100)
		s.exchange(10)
	})
}

func TestFINPassesWhileDataFlowsTheOtherWay(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		const n = 24 << 20 // more than the sockets hold
		for _, first := range []Reason{ClientFIN, UpstreamFIN} {
			s := p.open(t)
			from, to := s.client, s.upstream
			if first == UpstreamFIN {
				from, to = to, from
			}
			var writer sync.WaitGroup
			passed := make(chan struct{})
			writer.Go(func() {
				s.mustSend(to, 2, n)
				<-passed
				to.CloseWrite()
			})
			in := receiver(from, 2)
			s.mustRead(in, n/2)
			s.mustSend(from, 1, 100)
			from.CloseWrite()
			s.mustReceive(to, 1, 100)
			s.wantEOF(to)
			close(passed)
			s.mustRead(in, n/2)
			s.wantEOF(from)
			writer.Wait()
			s.want(first)
		}
	})
}

func TestHalfCloseThenDataThenFIN(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		s.client.CloseWrite()
		s.wantEOF(s.upstream)
		for range 3 {
			s.mustSend(s.upstream, 2, 1000)
			s.mustReceive(s.client, 2, 1000)
		}
		select {
		case r := <-s.ended:
			t.Fatalf("ended with one side open: %s", r.Reason)
		default:
		}
		s.upstream.CloseWrite()
		s.wantEOF(s.client)
		s.want(ClientFIN)
	})
}

// A server that answers and closes, as HTTP/1.0's does.
func TestUpstreamAnswersAndCloses(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		s.mustSend(s.client, 1, 100)
		s.mustReceive(s.upstream, 1, 100)
		s.mustSend(s.upstream, 2, 300<<10)
		s.upstream.Close()
		s.mustReceive(s.client, 2, 300<<10)
		s.wantEOF(s.client)
		s.client.Close()
		s.want(UpstreamFIN)
	})
}

// Of a reader that pauses the relay gets to know: it stops reading the writer. And it holds nothing
// back when the reader goes on.
func TestReaderThatPausesGetsAll(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		const n = 24 << 20 // more than the sockets hold
		for _, up := range []bool{true, false} {
			s := p.open(t)
			from, to, moved := s.upstream, s.client, &s.relay.down
			if up {
				from, to, moved = to, from, &s.relay.up
			}
			var all sync.WaitGroup
			all.Go(func() { s.mustSend(from, 1, n); from.CloseWrite() })
			eventually(t, "standstill", func() bool {
				before := moved.Load()
				time.Sleep(20 * time.Millisecond)
				return before > 0 && moved.Load() == before
			})
			s.mustSend(to, 2, 100) // the other way is free
			s.mustReceive(from, 2, 100)
			s.mustReceive(to, 1, n)
			s.wantEOF(to)
			all.Wait()
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		var all sync.WaitGroup
		for range 50 {
			s := p.open(t)
			all.Go(func() {
				for range 20 {
					s.exchange(2000)
				}
				s.client.CloseWrite()
				s.upstream.CloseWrite()
			})
		}
		all.Wait()
	})
}

func TestStatsOfALivingRelay(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		before := time.Now()
		s := p.open(t)
		s.exchange(1000)
		s.mustSend(s.upstream, 2, 500)
		s.mustReceive(s.client, 2, 500)
		eventually(t, "counts", func() bool {
			stats := s.relay.Stats()
			return stats.BytesUp == 1000 && stats.BytesDown == 1500
		})
		first := s.relay.Stats().LastActive
		if first.Before(before) || first.After(time.Now()) {
			t.Errorf("last active at %s, in a test that began at %s", first, before)
		}
		time.Sleep(time.Millisecond) // to be seen on any clock
		s.exchange(1)
		if last := s.relay.Stats().LastActive; !last.After(first) {
			t.Errorf("last active at %s, and after another byte at %s", first, last)
		}
		s.client.Close()
		s.upstream.Close()
		r := s.result()
		if r.BytesUp != 1001 || r.BytesDown != 1501 || r.Err != nil {
			t.Errorf("result %+v", r)
		}
		if r.Connect <= 0 || r.Connect > time.Since(before) {
			t.Errorf("connected after %s", r.Connect)
		}
	})
}
