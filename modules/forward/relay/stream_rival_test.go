package relay

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
)

// race is a session that is given addresses of one name.
type race struct {
	sockets  *sockets
	attempts attempts

	mu     sync.Mutex
	addrs  []net.Addr
	failed []error

	short int // how often there is no descriptor to spare
	taken int
}

// Take implements [Spare].
func (r *race) Take() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.short > 0 {
		r.short--
		return false
	}
	if r.taken++; r.taken > 1 {
		r.sockets.Error("two descriptors are taken")
	}
	return true
}

// Release implements [Spare].
func (r *race) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.taken--; r.taken < 0 {
		r.sockets.Error("a descriptor is released that was not taken")
	}
}

func newRace(t testing.TB, addrs ...net.Addr) *race {
	r := &race{sockets: newSockets(t), addrs: addrs}
	t.Cleanup(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.taken != 0 {
			t.Errorf("%d descriptors are taken", r.taken)
		}
	})
	return r
}

func (r *race) config(c *Config) {
	c.Another, c.Attempt, c.Track, c.Spare = r.another, r.attempts.note, r.sockets, r
}

func (r *race) next(_ context.Context, failed error) (net.Addr, error) {
	if addr := r.another(failed); addr != nil {
		return addr, nil
	}
	return nil, errors.Join(errNoMore, failed)
}

func (r *race) another(failed error) net.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	if failed != nil {
		r.failed = append(r.failed, failed)
	}
	if n := r.sockets.count(); n > 1 {
		r.sockets.Errorf("asked for another address with %d attempts under way", n)
	}
	if len(r.addrs) == 0 {
		return nil
	}
	addr := r.addrs[0]
	r.addrs = r.addrs[1:]
	return addr
}

// won requires that the session has the upstream of ln, that one socket is left of all that were opened, and that only failures were
// reported beside it.
func (r *race) won(s *session, ln net.Listener, opened int, failures ...error) {
	s.Helper()
	s.acceptFrom(ln)
	s.exchange(10)
	all := r.attempts.await(s, len(failures)+1)
	for i, want := range append(slices.Clone(failures), nil) {
		failed := errors.Is(all[i].err, want)
		if want == os.ErrDeadlineExceeded {
			failed = connectReason(all[i].err) == ConnectTimeout
		}
		if !failed || want == nil && all[i].addr != ln.Addr().String() {
			s.Errorf("attempt %d: %v, want %v", i, all[i], want)
		}
	}
	if n := r.sockets.count(); n != 1 {
		s.Errorf("%d sockets are open", n)
	}
	r.sockets.mu.Lock()
	if n := len(r.sockets.seen); n != opened {
		s.Errorf("%d sockets were opened, want %d", n, opened)
	}
	r.sockets.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.failed) != len(failures) {
		s.Errorf("told of %v, want %v", r.failed, failures)
	}
}

// An address that does not answer holds no session up, however long an attempt may take, and has not failed.
func TestAnotherAddressWhereTheFirstIsSilent(t *testing.T) {
	silent, _ := deaf(t)
	over(t, engines, func(t *testing.T, p pair) {
		ln := p.listen(t)
		r := newRace(t, silent, ln.Addr())
		r.won(p.start(t, r.next, r.config), ln, 2)
	})
}

// Where the process has no descriptor to spare the second attempt begins later.
func TestNoDescriptorToSpare(t *testing.T) {
	silent, _ := deaf(t)
	over(t, engines, func(t *testing.T, p pair) {
		ln := p.listen(t)
		r := newRace(t, silent, ln.Addr())
		r.short = 2
		r.won(p.start(t, r.next, r.config), ln, 2)
		if r.short != 0 {
			t.Errorf("asked %d times too few", r.short)
		}
	})
}

func TestFirstAddressAnswersLate(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		first, hear := listenLate(t)
		silent, _ := deaf(t)
		r := newRace(t, first.Addr(), silent, p.listen(t).Addr())
		s := p.start(t, r.next, r.config)
		eventually(t, "the second attempt", func() bool { return r.sockets.count() == 2 })
		hear()
		r.won(s, first, 2)
	})
}

// The second address refuses: the third one competes in its place.
func TestRivalFails(t *testing.T) {
	silent, _ := deaf(t)
	over(t, engines, func(t *testing.T, p pair) {
		ln := p.listen(t)
		r := newRace(t, silent, closedAddr(t), closedAddr(t), ln.Addr())
		r.won(p.start(t, r.next, r.config), ln, 4, syscall.ECONNREFUSED, syscall.ECONNREFUSED)
	})
}

// Two addresses are silent: the third one is tried when the time of the first is up, and wins while the second is under way.
func TestFirstTimesOutWithARival(t *testing.T) {
	silent, _ := deaf(t)
	over(t, engines, func(t *testing.T, p pair) {
		ln := p.listen(t)
		r := newRace(t, silent, silent, ln.Addr())
		s := p.start(t, r.next, r.config, limits(Limits{Connect: 8 * raceDelay}))
		r.won(s, ln, 3, os.ErrDeadlineExceeded)
	})
}

func TestBothFail(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		first, _ := listenLate(t)
		r := newRace(t, first.Addr(), closedAddr(t))
		s := p.start(t, r.next, r.config)
		r.attempts.await(t, 1)
		first.Close() // the next packet is refused
		s.wantReset(s.client)
		if result := s.want(ConnectFailed); !errors.Is(result.Err, errNoMore) || !errors.Is(result.Err, syscall.ECONNREFUSED) {
			t.Errorf("error: %v", result.Err)
		}
		if all := r.attempts.await(t, 2); all[1].addr != first.Addr().String() || !errors.Is(all[1].err, syscall.ECONNREFUSED) {
			t.Errorf("attempts: %v", all)
		}
	})
}

// Addresses that refuse are tried one after the other at once.
func TestNoRaceWhereAddressesRefuse(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		ln := p.listen(t)
		r := newRace(t, closedAddr(t), closedAddr(t), ln.Addr())
		r.won(p.start(t, r.next, r.config), ln, 3, syscall.ECONNREFUSED, syscall.ECONNREFUSED)
	})
}

// A session that is closed has no attempt left, and none has failed.
func TestRaceThatIsCut(t *testing.T) {
	silent, _ := deaf(t)
	over(t, engines, func(t *testing.T, p pair) {
		r := newRace(t, silent, silent, silent)
		s := p.start(t, r.next, r.config)
		eventually(t, "the second attempt", func() bool { return r.sockets.count() == 2 })
		s.relay.Close(adminClosed)
		s.want(adminClosed)
		r.attempts.await(t, 0)
		if n := r.sockets.count(); n > 0 {
			t.Errorf("%d sockets are open", n)
		}
	})
}
