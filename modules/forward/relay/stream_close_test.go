package relay

import (
	"context"
	"net"
	"sync"
	"testing"
)

const adminClosed Reason = "admin_closed"

func TestCloseBeforeRun(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		ln := p.listen(t)
		s := p.prepare(t, only(ln.Addr()))
		s.relay.Close(adminClosed)
		s.relay.Close(testOver)
		s.run()
		s.wantEOF(s.client)
		s.want(adminClosed)
	})
}

func TestCloseWhileNextBlocks(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		called := make(chan struct{})
		s := p.start(t, func(ctx context.Context, failed error) (net.Addr, error) {
			close(called)
			return untilClosed(ctx, failed)
		})
		<-called
		s.relay.Close(adminClosed)
		s.wantEOF(s.client)
		s.want(adminClosed)
	})
}

func TestCloseWhileConnecting(t *testing.T) {
	addr, _ := deaf(t)
	overPairs(t, func(t *testing.T, p pair) {
		var calls int
		s := p.start(t, func(ctx context.Context, _ error) (net.Addr, error) {
			calls++
			return addr, ctx.Err()
		})
		s.relay.Close(adminClosed)
		s.wantEOF(s.client)
		s.want(adminClosed)
		if calls > 2 {
			t.Errorf("%d attempts for a relay that is closed", calls)
		}
	})
}

func TestCloseIdle(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		s.exchange(10)
		s.relay.Close(adminClosed)
		s.wantEOF(s.client)
		s.wantEOF(s.upstream)
		s.want(adminClosed)
	})
}

// Close sends what the system has, and then a FIN.
func TestCloseKeepsWhatWasMoved(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		s.mustSend(s.upstream, 1, 20_000)
		eventually(t, "bytes", func() bool { return s.relay.Stats().BytesDown == 20_000 })
		s.relay.Close(adminClosed)
		s.want(adminClosed)
		s.mustReceive(s.client, 1, 20_000)
		s.wantEOF(s.client)
	})
}

func TestCloseWhileDataFlows(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		var all sync.WaitGroup
		for _, way := range [][2]stream{{s.client, s.upstream}, {s.upstream, s.client}} {
			all.Go(func() { _ = send(way[0], 1, 1<<40) })
			all.Go(func() { _ = receiver(way[1], 1).read(1 << 40) })
		}
		eventually(t, "data", func() bool {
			stats := s.relay.Stats()
			return stats.BytesUp > 1<<20 && stats.BytesDown > 1<<20
		})
		s.relay.Close(adminClosed)
		s.want(adminClosed)
		all.Wait()
	})
}

// Neither does a peer that reads nothing keep a relay from ending.
func TestCloseWhileAPeerDoesNotRead(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		var writer sync.WaitGroup
		writer.Go(func() { _ = send(s.client, 1, 1<<40) })
		eventually(t, "data", func() bool { return s.relay.Stats().BytesUp > 64<<10 })
		s.relay.Close(adminClosed)
		s.want(adminClosed)
		writer.Wait()
	})
}

func TestCloseHalfClosed(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		s.client.CloseWrite()
		s.wantEOF(s.upstream)
		s.relay.Close(adminClosed)
		s.wantEOF(s.client)
		s.want(adminClosed)
	})
}

// Close may be called by anybody at any time, and changes nothing any more after the end.
func TestCloseTwiceAndAfterTheEnd(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		s.exchange(10)
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { s.relay.Close(adminClosed) })
		}
		all.Wait()
		s.want(adminClosed)
		stats := s.relay.Stats()
		s.relay.Close(testOver)
		if s.relay.Stats() != stats {
			t.Error("stats changed after the end")
		}
	})
}

func TestCloseAfterAnOrderlyEnd(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		s.client.CloseWrite()
		s.upstream.CloseWrite()
		s.result()
		s.relay.Close(adminClosed)
	})
}

// The relay ends by itself in the moment in which it is closed.
func TestCloseRacesWithTheEnd(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		for range 50 {
			s := p.open(t)
			s.exchange(1)
			var all sync.WaitGroup
			all.Go(func() { s.relay.Close(adminClosed) })
			all.Go(func() { s.client.Close() })
			all.Go(func() { s.upstream.Close() })
			all.Wait()
			s.result()
		}
	})
}

func TestDoneMayBeNil(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		ours, theirs := p.accept(t)
		defer theirs.Close()
		New(Config{Client: ours, Unwrap: wrapped, Next: only(closedAddr(t))}).Run()
		(&session{TB: t}).wantReset(theirs)
	})
}
