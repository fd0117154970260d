package relay

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hangup is a Config.Hangup that looks again and again.
func hangup(client net.Conn, spoken bool, gone func(reset bool)) (stop func()) {
	over, done := make(chan struct{}), make(chan struct{})
	raw, _ := client.(syscall.Conn).SyscallConn()
	go func() {
		defer close(done)
		for {
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
			}
			left, reset := false, false
			_ = raw.Control(func(fd uintptr) {
				fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
				_, _ = unix.Poll(fds, 0)
				reset = fds[0].Revents&unix.POLLERR != 0
				left = reset || fds[0].Revents&unix.POLLRDHUP != 0 && !spoken && !hasSent(int(fd))
			})
			if left {
				gone(reset)
			}
		}
	}()
	return func() {
		close(over)
		<-done
	}
}

func watched(c *Config) { c.Hangup = hangup }

// leavings are ways in which a client behaves while there is no upstream yet.
var leavings = map[string]struct {
	leave func(*session)
	want  Reason // empty: it has not left
}{
	"reset":          {func(s *session) { s.reset(s.client) }, ClientReset},
	"data and reset": {func(s *session) { s.mustSend(s.client, 1, 10); s.sent(s.client); s.reset(s.client) }, ClientReset},
	"FIN":            {func(s *session) { s.socketOf().CloseWrite() }, ClientFIN},
	"data and FIN":   {func(s *session) { s.mustSend(s.client, 1, 10); s.socketOf().CloseWrite() }, ""},
	"data":           {func(s *session) { s.mustSend(s.client, 1, 10) }, ""},
}

// socketOf is the socket of the client.
func (s *session) socketOf() stream {
	if c, ok := s.client.(interface{ NetConn() net.Conn }); ok {
		return c.NetConn().(stream)
	}
	return s.client
}

// seesFIN reports whether the relay is to notice a FIN of the client: behind a wrapper nobody knows what was read before.
func (p pair) seesFIN(t *testing.T) bool {
	ours, theirs := p.accept(t)
	defer ours.Close()
	defer theirs.Close()
	_, ok := ours.(socket)
	return ok
}

// A client that leaves while its upstream is being connected is noticed, and nothing is kept for it.
func TestClientLeavesWhileConnecting(t *testing.T) {
	addr, _ := deaf(t)
	for name, l := range leavings {
		if l.want == "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			overPairs(t, func(t *testing.T, p pair) {
				if l.want == ClientFIN && !p.seesFIN(t) {
					return
				}
				s := p.start(t, only(addr, addr), watched)
				l.leave(s)
				if r := s.want(l.want); r.BytesUp != 0 {
					t.Errorf("result: %+v", r)
				}
			})
		})
	}
}

// A client that leaves while Next has it wait ends Next.
func TestClientLeavesWhileItWaits(t *testing.T) {
	for name, l := range leavings {
		t.Run(name, func(t *testing.T) {
			overPairs(t, func(t *testing.T, p pair) {
				if l.want == ClientFIN && !p.seesFIN(t) {
					return
				}
				ln := p.listen(t)
				var s *session
				waits, turn := make(chan struct{}), make(chan struct{})
				s = p.prepare(t, func(ctx context.Context, _ error) (net.Addr, error) {
					s.relay.ClientWaits()
					s.relay.ClientWaits()
					close(waits)
					select {
					case <-ctx.Done():
						return nil, ctx.Err()
					case <-turn:
						return ln.Addr(), nil
					}
				}, watched)
				s.run()
				<-waits
				l.leave(s)
				if l.want != "" {
					s.want(l.want)
					return
				}
				select {
				case r := <-s.ended:
					t.Fatalf("ended: %s", r.Reason)
				case <-time.After(2 * goneAfter):
				}
				close(turn)
				s.acceptFrom(ln)
				s.mustReceive(s.upstream, 1, 10)
			})
		})
	}
}

// A client that has only sent a FIN may want to read what the upstream says first: it is waited for a moment.
func TestFINBeforeTheUpstreamIsConnected(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		ln := p.listen(t)
		var s *session
		s = p.prepare(t, func(_ context.Context, failed error) (net.Addr, error) {
			s.socketOf().CloseWrite()
			return ln.Addr(), failed
		}, watched)
		s.run()
		s.acceptFrom(ln)
		s.mustSend(s.upstream, 2, 10)
		if s.socketOf() != s.client {
			return // TLS ends with a FIN that no close_notify announces
		}
		s.mustReceive(s.client, 2, 10)
		s.wantEOF(s.upstream)
		s.upstream.Close()
		s.want(ClientFIN)
	})
}

// What a client has sent before it leaves is no reason to keep it waiting for other upstreams.
func TestClientLeavesBetweenUpstreams(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		var s *session
		refuses, asked := closedAddr(t), make(chan struct{})
		s = p.prepare(t, func(ctx context.Context, failed error) (net.Addr, error) {
			if failed == nil {
				return refuses, nil
			}
			s.relay.ClientWaits()
			close(asked)
			<-ctx.Done()
			return nil, errors.Join(failed, ctx.Err())
		}, watched)
		s.run()
		<-asked
		s.reset(s.client)
		s.want(ClientReset)
	})
}
