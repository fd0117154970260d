package relay

import (
	"context"
	"errors"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"
)

// closedAddr is of a port that nobody listens on, and that nobody else is given: a client has it.
func closedAddr(t testing.TB) net.Addr {
	t.Helper()
	ours, theirs := acceptTCP(t)
	t.Cleanup(func() {
		ours.Close()
		theirs.Close()
	})
	return theirs.LocalAddr()
}

func TestSecondAddressWhereTheFirstRefuses(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		ln, refuses := p.listen(t), closedAddr(t)
		var failed []error
		next := only(refuses, &net.UnixAddr{Net: "unix", Name: "/nonexistent/s"}, ln.Addr())
		s := p.start(t, func(ctx context.Context, err error) (net.Addr, error) {
			failed = append(failed, err)
			return next(ctx, err)
		})
		s.acceptFrom(ln)
		s.exchange(10)
		s.client.Close()
		s.wantEOF(s.upstream)
		s.upstream.Close()
		if r := s.want(ClientFIN); r.Err != nil {
			t.Errorf("error of a relay that was connected: %v", r.Err)
		}
		for i, want := range []error{nil, syscall.ECONNREFUSED, syscall.ENOENT} {
			if len(failed) != 3 || !errors.Is(failed[i], want) {
				t.Fatalf("Next got the errors %v", failed)
			}
		}
		var op *net.OpError
		if !errors.As(failed[1], &op) || op.Op != "dial" || op.Addr.String() != refuses.String() {
			t.Errorf("%v does not say what was dialled", failed[1])
		}
	})
}

func TestNothingReachable(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		s := p.start(t, only(closedAddr(t), closedAddr(t)))
		s.wantReset(s.client)
		r := s.want(ConnectFailed)
		if !errors.Is(r.Err, errNoMore) || !errors.Is(r.Err, syscall.ECONNREFUSED) {
			t.Errorf("error: %v", r.Err)
		}
		if r.BytesUp != 0 || r.BytesDown != 0 || r.Connect <= 0 {
			t.Errorf("result: %+v", r)
		}
	})
}

func TestAddressOfAnotherKind(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		ln := p.listen(t)
		s := p.start(t, only(&net.IPAddr{IP: net.IPv4(127, 0, 0, 1)}, &net.UnixAddr{Net: "unix"}, ln.Addr()))
		s.acceptFrom(ln)
		s.exchange(10)
	})
}

// deaf is an address whose queue of connections is full: it drops what wants to connect to it.
func deaf(t testing.TB) (addr net.Addr, hear func()) {
	t.Helper()
	ln, hear := listenLate(t)
	return ln.Addr(), hear
}

// listenLate is the listener of an address that is deaf until hear is called.
func listenLate(t testing.TB) (ln net.Listener, hear func()) {
	t.Helper()
	ln = listenDeaf(t)
	var kept []net.Conn
	t.Cleanup(func() {
		for _, conn := range kept {
			conn.Close()
		}
	})
	for {
		conn, err := net.DialTimeout("tcp", ln.Addr().String(), 200*time.Millisecond)
		if connectReason(err) == ConnectTimeout {
			return ln, func() { accept(t, ln, len(kept)) }
		}
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, conn)
	}
}

func accept(t testing.TB, ln net.Listener, n int) {
	t.Helper()
	for range n {
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
}

func TestConnectTimeout(t *testing.T) {
	addr, _ := deaf(t)
	t.Run("last", func(t *testing.T) {
		overPairs(t, func(t *testing.T, p pair) {
			s := p.start(t, only(addr), limits(Limits{Connect: 200 * time.Millisecond}))
			s.wantReset(s.client)
			r := s.want(ConnectTimeout)
			if r.Connect < 200*time.Millisecond || r.Connect > 1200*time.Millisecond {
				t.Errorf("gave up after %s", r.Connect)
			}
			if !errors.Is(r.Err, errNoMore) || connectReason(r.Err) != ConnectTimeout {
				t.Errorf("error: %v", r.Err)
			}
		})
	})
	t.Run("then another", func(t *testing.T) {
		overPairs(t, func(t *testing.T, p pair) {
			ln := p.listen(t)
			s := p.start(t, only(addr, addr, ln.Addr()), limits(Limits{Connect: 100 * time.Millisecond}))
			s.acceptFrom(ln)
			s.exchange(10)
			s.client.Close()
			s.wantEOF(s.upstream)
			s.upstream.Close()
			if r := s.want(ClientFIN); r.Connect < 200*time.Millisecond {
				t.Errorf("two timeouts of 100 ms took %s", r.Connect)
			}
		})
	})
}

// Without a limit a connection attempt waits for what the system does: here for its second SYN, a second later.
func TestNoConnectTimeout(t *testing.T) {
	over(t, plainPairs, func(t *testing.T, p pair) {
		addr, hear := deaf(t)
		s := p.start(t, only(addr))
		select {
		case r := <-s.ended:
			t.Fatalf("ended: %v", r.Err)
		case <-time.After(200 * time.Millisecond):
		}
		hear()
		s.mustSend(s.client, 1, 10)
		eventually(t, "connection", func() bool { return s.relay.Stats().BytesUp == 10 })
	})
}

func TestConnectTimeIsNotIdle(t *testing.T) {
	addr, _ := deaf(t)
	overPairs(t, func(t *testing.T, p pair) {
		s := p.start(t, only(addr), limits(Limits{Connect: 400 * time.Millisecond, Idle: 50 * time.Millisecond}))
		s.want(ConnectTimeout)
	})
}

// Next may take its time, and may give up because of its own reasons.
func TestNextFails(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		for want, err := range map[Reason]error{
			ConnectFailed:  errNoMore,
			ConnectTimeout: &net.DNSError{Err: "no answer", IsTimeout: true},
		} {
			s := p.start(t, func(context.Context, error) (net.Addr, error) { return nil, err })
			s.wantReset(s.client)
			if r := s.want(want); r.Err != err {
				t.Errorf("error: got %v, want %v", r.Err, err)
			}
		}
	})
}

// untilClosed is a Next that blocks, such as one whose name server does not answer.
func untilClosed(ctx context.Context, _ error) (net.Addr, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// A connection to a local port that nobody listens on may be given that port for its own end, and so
// reach itself: a client would then talk to itself. Linux gives out the even ports in small random steps:
// hardly ever would so many attempts all miss. (The goroutines leave it to the net package.)
func TestDoesNotConnectToItself(t *testing.T) {
	over(t, loopPairs[:min(1, len(loopPairs))], func(t *testing.T, p pair) {
		const attempts = 40_000
		s := p.start(t, only(slices.Repeat([]net.Addr{closedEvenAddr(t)}, attempts)...))
		if r := s.want(ConnectFailed); !errors.Is(r.Err, syscall.ECONNREFUSED) {
			t.Errorf("error: %v", r.Err)
		}
	})
}

func closedEvenAddr(t testing.TB) net.Addr {
	t.Helper()
	for {
		if addr := closedAddr(t); addr.(*net.TCPAddr).Port%2 == 0 {
			return addr
		}
	}
}
