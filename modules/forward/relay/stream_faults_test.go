package relay

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestClientResets(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		s.exchange(10)
		s.reset(s.client)
		s.wantReset(s.upstream)
		s.want(ClientReset)
	})
}

func TestUpstreamResets(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t)
		s.exchange(10)
		s.reset(s.upstream)
		s.wantReset(s.client)
		s.want(UpstreamReset)
	})
}

// A reset discards what was not sent yet, so what came before it has to be waited for.
func TestWhatWasReceivedBeforeAResetArrives(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		n := int64(1 << 20)
		if p.unix {
			n = 128 << 10 // what fits into its buffer
		}
		for _, reason := range []Reason{UpstreamReset, ClientReset} {
			s := p.open(t)
			from, to := s.upstream, s.client
			if reason == ClientReset {
				from, to = to, from
			}
			s.mustSend(from, 1, n)
			s.sent(from)
			s.reset(from)
			in := receiver(to, 1)
			for range n / (64 << 10) {
				s.mustRead(in, 64<<10)
				time.Sleep(100 * time.Microsecond) // reads slowly
			}
			s.wantReset(to)
			s.want(reason)
		}
	})
}

// The other side is busy writing, so the relay learns of the reset from a write.
func TestResetWhileDataFlowsTheOtherWay(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		for _, reason := range []Reason{UpstreamReset, ClientReset} {
			s := p.open(t)
			from, to := s.upstream, s.client
			if reason == ClientReset {
				from, to = to, from
			}
			var writer sync.WaitGroup
			writer.Go(func() {
				if err := send(to, 1, 1<<40); !isBroken(err) {
					t.Errorf("%s: send: got %v, want a reset", reason, err)
				}
			})
			s.mustReceive(from, 1, 4<<20)
			if conn, ok := from.(*net.UnixConn); ok {
				eventually(t, "more", func() bool { return unread(t, conn) > 0 })
			}
			s.reset(from)
			writer.Wait()
			s.want(reason)
		}
	})
}

// Which of the relay's reads and writes finds the reset makes no difference: the error is given to one of
// them only, and another then reads an end.
func TestResetIsNoFIN(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		if p.unix {
			t.Skip("a unix socket has no reset")
		}
		for range 20 {
			s := p.open(t)
			_ = s.upstream.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
			_ = send(s.upstream, 1, 1<<40) // until the relay is stuck
			s.reset(s.client)
			s.wantReset(s.upstream)
			s.want(ClientReset)
		}
	})
}

// What a client had sent before it reset is delivered although a write has found the reset first.
func TestResetFoundByAWriteKeepsWhatWasReceived(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		if p.unix {
			t.Skip("a unix socket has no reset") // and so no write that finds one
		}
		s := p.open(t)
		var writer sync.WaitGroup
		writer.Go(func() { _ = send(s.upstream, 2, 1<<40) })
		s.mustReceive(s.client, 2, 1<<20)
		s.mustSend(s.client, 1, 500<<10)
		s.sent(s.client)
		s.reset(s.client)
		in := receiver(s.upstream, 1)
		s.mustRead(in, 500<<10)
		s.wantResetAfterWrite(s.upstream)
		writer.Wait()
		s.want(ClientReset)
	})
}

// wantResetAfterWrite allows for a write that has learned of the reset already.
func (s *session) wantResetAfterWrite(conn stream) {
	s.Helper()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		s.Errorf("read: got %d bytes and %v, want a reset", n, err)
	}
	eventually(s, "a reset", func() bool {
		_, err := conn.Write([]byte{0})
		return isBroken(err)
	})
}

func isBroken(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// A peer that has finished sending can still go away. Nobody reads it any more: an event loop hears of
// it all the same, goroutines when they write.
func TestResetAfterFIN(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		for _, reason := range []Reason{ClientReset, UpstreamReset} {
			if p.unix && reason == UpstreamReset {
				continue
			}
			s := p.open(t)
			from, to := s.client, s.upstream
			if reason == UpstreamReset {
				from, to = to, from
			}
			from.CloseWrite()
			s.wantEOF(to)
			s.reset(from)
			if p.loop {
				s.want(reason)
			}
			s.wantResetAfterWrite(to)
			if !p.loop {
				s.want(reason)
			}
		}
	})
}

// A reset right behind a FIN is all the same a reset, even where the relay hears of both at once.
func TestResetHeardWithTheFIN(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		ln := p.listen(t)
		finished := make(chan struct{})
		s := p.start(t, func(ctx context.Context, failed error) (net.Addr, error) {
			select {
			case <-finished:
			case <-ctx.Done():
			}
			return ln.Addr(), ctx.Err()
		})
		s.client.CloseWrite()
		s.sent(s.client)
		s.reset(s.client)
		close(finished)
		s.acceptFrom(ln)
		s.want(ClientReset)
		s.wantResetAfterWrite(s.upstream)
	})
}

func TestBothReset(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		if p.unix {
			t.Skip("a unix socket has no reset")
		}
		s := p.open(t)
		s.exchange(10)
		s.reset(s.client)
		s.reset(s.upstream)
		if r := s.result(); r.Reason != ClientReset && r.Reason != UpstreamReset {
			t.Errorf("reason: got %s, want a reset", r.Reason)
		}
	})
}

// A client that reads nothing at all keeps the upstream's reset for itself, but not longer than a limit says.
func TestResetForAPeerThatNeverReads(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.open(t, limits(Limits{Lifetime: time.Second}))
		s.exchange(10) // else the reset may come before the relay knows that it is connected
		_ = s.upstream.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		_ = send(s.upstream, 1, 1<<40) // until the relay is stuck
		s.reset(s.upstream)
		if r := s.result(); r.Reason != UpstreamReset && r.Reason != MaxLifetime {
			t.Errorf("reason: got %s", r.Reason)
		}
	})
}

// Urgent data is not part of the stream, and must not be taken for its end.
func TestUrgentData(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		if p.unix || !p.spliced {
			t.Skip("TCP only")
		}
		s := p.open(t)
		for _, n := range []int64{10, 1000, 4 << 20, 10} {
			for _, way := range [][2]stream{{s.client, s.upstream}, {s.upstream, s.client}} {
				var writer sync.WaitGroup
				writer.Go(func() {
					s.mustSend(way[0], 1, n)
					urgent(t, way[0])
					s.mustSend(way[0], 2, n)
				})
				s.mustReceive(way[1], 1, n)
				s.mustReceive(way[1], 2, n)
				writer.Wait()
			}
		}
		s.client.CloseWrite()
		s.wantEOF(s.upstream)
		s.upstream.CloseWrite()
		s.want(ClientFIN)
	})
}
