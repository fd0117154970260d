package relay

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

// TestPacketLimits runs apart from what keeps the machine busy, because it is about times.
func TestPacketLimits(t *testing.T) {
	t.Cleanup(measureLag())
	for name, test := range map[string]func(*testing.T, packetPair){
		"idle":                       packetIdle,
		"either way resets idle":     packetResetsIdle,
		"refused is not idle":        packetRefusedIsNotIdle,
		"lifetime":                   packetLifetime,
		"lifetime while Next blocks": packetLifetimeWhileNextBlocks,
		"idle while Next blocks":     packetConnectTimeIsNotIdle,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			overPackets(t, packetEngines, test)
		})
	}
}

// wantAfter checks that the relay ends between limit and soon after it, counted from start.
func (s *packetSession) wantAfter(start time.Time, limit time.Duration, reason Reason) {
	s.Helper()
	s.want(reason)
	if took := time.Since(start); took < limit || took > limit+soon+time.Duration(5*lag.Load()) {
		s.Errorf("%s after %s, want %s", reason, took, limit)
	}
}

func packetIdle(t *testing.T, p packetPair) {
	const limit = 300 * time.Millisecond
	s := p.open(t, packetLimits(Limits{Idle: limit}))
	last := time.Now()
	s.exchange(nil)
	s.wantAfter(last, limit, IdleTimeout)
}

func packetResetsIdle(t *testing.T, p packetPair) {
	const limit = 1500 * time.Millisecond
	for _, way := range []func(*packetSession, []byte){(*packetSession).up, (*packetSession).down} {
		s := p.open(t, packetLimits(Limits{Idle: limit}))
		for start := time.Now(); time.Since(start) < limit*3/2; time.Sleep(limit / 10) {
			way(s, nil)
		}
		last := time.Now()
		way(s, nil)
		s.wantAfter(last, limit, IdleTimeout)
	}
}

func packetRefusedIsNotIdle(t *testing.T, p packetPair) {
	const limit = 1500 * time.Millisecond
	s := p.start(t, always(p.newPort(t).addr), packetLimits(Limits{Idle: limit}))
	for start := time.Now(); time.Since(start) < limit*3/2; time.Sleep(limit / 10) {
		s.knock()
	}
	last := time.Now()
	s.sendUp(nil)
	s.wantAfter(last, limit, IdleTimeout)
}

func packetLifetime(t *testing.T, p packetPair) {
	const limit = 500 * time.Millisecond
	start := time.Now()
	s := p.open(t, packetLimits(Limits{Lifetime: limit, Idle: time.Hour}))
	for ; time.Since(start) < limit/2; time.Sleep(time.Millisecond) {
		s.sendUp(nil) // unanswered, because on a busy machine the session may end first
	}
	s.wantAfter(start, limit, MaxLifetime)
}

func packetLifetimeWhileNextBlocks(t *testing.T, p packetPair) {
	const limit = 300 * time.Millisecond
	start := time.Now()
	s := p.start(t, untilClosed, packetLimits(Limits{Lifetime: limit}))
	s.wantAfter(start, limit, MaxLifetime)
}

func packetConnectTimeIsNotIdle(t *testing.T, p packetPair) {
	s := p.start(t, func(ctx context.Context, _ error) (net.Addr, error) {
		select {
		case <-time.After(400 * time.Millisecond):
		case <-ctx.Done():
		}
		return nil, errNoMore
	}, packetLimits(Limits{Idle: 50 * time.Millisecond}))
	s.want(ConnectFailed)
}

// Without limits a relay stays.
func TestPacketNoLimits(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		s := p.open(t)
		select {
		case r := <-s.ended:
			t.Errorf("ended: %s", r.Reason)
		case <-time.After(200 * time.Millisecond):
		}
		s.exchange([]byte("still there"))
	})
}

func TestPacketCloseBeforeRun(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		sock := p.listen(t)
		s := p.prepare(t, always(sock.LocalAddr()))
		s.relay.Close(adminClosed)
		s.relay.Close("later")
		s.run()
		if r := s.want(adminClosed); r.Err == nil && r.Connect != 0 {
			t.Errorf("connected: %+v", r)
		}
	})
}

func TestPacketCloseWhileNextBlocks(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		asked := make(chan struct{})
		s := p.start(t, func(ctx context.Context, failed error) (net.Addr, error) {
			close(asked)
			return untilClosed(ctx, failed)
		})
		<-asked
		s.relay.Close(adminClosed)
		s.relay.Close("later")
		s.want(adminClosed)
	})
}

// The upstream refuses, and the name server does not answer.
func TestPacketCloseWhileAskedAgain(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		addr, asked := p.newPort(t).addr, make(chan struct{})
		s := p.start(t, func(ctx context.Context, failed error) (net.Addr, error) {
			if failed == nil {
				return addr, nil
			}
			if !errors.Is(failed, context.Canceled) {
				close(asked)
			}
			return untilClosed(ctx, failed)
		})
		s.knock()
		<-asked
		s.knock() // goes on meanwhile
		s.relay.Close(adminClosed)
		s.want(adminClosed)
	})
}

func TestPacketCloseWhileDatagramsCome(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		for range 20 {
			s := p.open(t)
			for range 50 {
				s.sendUp(numbered(1))
				s.sendDown(numbered(2))
			}
			go s.relay.Close(adminClosed)
			for range 50 {
				s.sendUp(numbered(1))
				s.sendDown(numbered(2))
			}
			s.want(adminClosed)
			s.sendUp(numbered(3)) // for nobody
		}
	})
}

func TestPacketCloseAfterTheEnd(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		s := p.open(t)
		s.relay.Close(adminClosed)
		s.want(adminClosed)
		s.relay.Close("later")
		if stats := s.relay.Stats(); stats.DatagramsUp != 1 || stats.DatagramsDown != 1 {
			t.Errorf("stats: %+v", stats)
		}
	})
}

// The network needs the room for others.
func TestPacketEviction(t *testing.T) {
	overPackets(t, loopPacketPairs, func(t *testing.T, p packetPair) {
		sock := p.listen(t)
		t.Run("before Run", func(t *testing.T) {
			s := p.prepare(t, func(context.Context, error) (net.Addr, error) {
				t.Error("an upstream was asked for")
				return nil, errNoMore
			})
			s.network.evict()
			s.run()
			if r := s.want(Evicted); r.Err != nil || r.Connect != 0 {
				t.Errorf("result: %+v", r)
			}
		})
		t.Run("while Next blocks", func(t *testing.T) {
			asked := make(chan struct{})
			s := p.start(t, func(ctx context.Context, failed error) (net.Addr, error) {
				close(asked)
				return untilClosed(ctx, failed)
			})
			<-asked
			s.network.evict()
			s.want(Evicted)
		})
		t.Run("open", func(t *testing.T) {
			s := p.start(t, always(sock.LocalAddr()))
			s.upstream = sock
			s.exchange([]byte("hello"))
			s.network.evict()
			s.want(Evicted)
		})
	})
}

// A network whose sessions end by themselves says so when it is read.
func TestPacketClientThatEnds(t *testing.T) {
	overPackets(t, goroutinePacketPairs, func(t *testing.T, p packetPair) {
		s := p.open(t)
		s.network.evict()
		s.want(IdleTimeout)
	})
}
