package upstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// limited is a pool whose upstreams may have so many sessions each.
func limited(balance Balance, limits ...int64) *Pool {
	upstreams := make([]Upstream, len(limits))
	for i, most := range limits {
		upstreams[i] = Upstream{
			Name: fmt.Sprint(i), Addr: Addr{Network: "tcp", Host: "127.0.0.1", Port: uint16(i + 1)}, MaxSessions: most, Living: new(atomic.Int64),
		}
	}
	p := NewPool(upstreams)
	p.Balance = balance
	return p
}

// placed is a session's walk, and its place.
type placed struct {
	*Walk
	at *atomic.Int64 // nil: it has none
}

func (p *Pool) place() *placed {
	s := &placed{Walk: p.Walk()}
	s.Retries = 100
	s.Reserve = func(position int, most int64) bool {
		u := &p.upstreams[position]
		if s.at == u.Living {
			return true
		}
		for n := u.Living.Load(); ; n = u.Living.Load() {
			if n >= most {
				return false
			}
			if u.Living.CompareAndSwap(n, n+1) {
				break
			}
		}
		s.leave()
		s.at = u.Living
		return true
	}
	return s
}

func (s *placed) leave() {
	if s.at != nil {
		s.at.Add(-1)
		s.at = nil
	}
}

var balances = []Balance{{}, {Method: LeastConn}, {Method: Random}, {Method: RandomChoose, Draws: 2}, {Method: First}, {Method: IPHash}}

// Whatever the policy, sessions go where there is room, and none goes where there is none.
func TestFullUpstreams(t *testing.T) {
	t.Parallel()
	for _, balance := range balances {
		t.Run(balance.Method.String(), func(t *testing.T) {
			t.Parallel()
			p := limited(balance, 3, 1, 5, 2)
			var all []*placed
			for i := range 11 {
				s := p.place()
				s.Key, s.Keyed = mix(uint64(i)), true
				if !s.Ready() || s.Full() {
					t.Fatalf("session %d finds no room", i)
				}
				if addr, err := s.Next(t.Context(), nil); err != nil || addr == nil {
					t.Fatalf("session %d: %v", i, err)
				}
				all = append(all, s)
			}
			for i, want := range []int64{3, 1, 5, 2} {
				if n := p.upstreams[i].Living.Load(); n != want {
					t.Errorf("%d sessions at upstream %d, want %d", n, i, want)
				}
			}
			late := p.place()
			if addr, err := late.Next(t.Context(), nil); !errors.Is(err, ErrFull) || addr != nil || !late.Full() || late.Position() != -1 || late.Claim() {
				t.Fatalf("got %v, %v", addr, err)
			}
			gone := all[6].Position()
			all[6].leave()
			if !late.Claim() || p.place().Claim() {
				t.Fatal("not one place")
			}
			if addr, err := late.Next(t.Context(), nil); err != nil || addr == nil || late.Position() != gone {
				t.Errorf("got %v, %v at %d, want %d", addr, err, late.Position(), gone)
			}
		})
	}
}

// What a full upstream can't take is spread over the others.
func TestRoundRobinWhereOneIsFull(t *testing.T) {
	t.Parallel()
	p := limited(Balance{}, 1, 1000, 1000, 1000)
	for range 301 {
		if _, err := p.place().Next(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	for i := 1; i < 4; i++ {
		if n := p.upstreams[i].Living.Load(); n < 99 || n > 101 {
			t.Errorf("%d sessions at upstream %d", n, i)
		}
	}
}

// A backup takes what the first tier has no room for, as long as it has room itself.
func TestFullTier(t *testing.T) {
	t.Parallel()
	p := limited(Balance{}, 2, 2)
	p.upstreams[1].Priority = 1
	for i := range 5 {
		s := p.place()
		_, err := s.Next(t.Context(), nil)
		if want := []int{0, 0, 1, 1, -1}[i]; s.Position() != want || (want < 0) != errors.Is(err, ErrFull) {
			t.Errorf("session %d: at %d, %v", i, s.Position(), err)
		}
	}
}

// Nobody goes to an upstream that is out because the others are full.
func TestFullAndOut(t *testing.T) {
	t.Parallel()
	p := limited(Balance{}, 1, 1)
	p.Failures = NewFailures(Policy{MaxFails: 1, FailDuration: time.Hour}, time.Now, nil)
	p.Failures.Failed("0", p.upstreams[0].fixed.streams[0], errors.New("refused"))
	one, two := p.place(), p.place()
	if _, err := one.Next(t.Context(), nil); err != nil || one.Position() != 1 {
		t.Fatalf("at %d, %v", one.Position(), err)
	}
	if _, err := two.Next(t.Context(), nil); !errors.Is(err, ErrFull) {
		t.Errorf("at %d, %v", two.Position(), err)
	}
	one.leave()
	if _, err := two.Next(t.Context(), nil); err != nil || two.Position() != 1 {
		t.Errorf("at %d, %v", two.Position(), err)
	}
}

// A session whose upstream can't be reached has its place at the next one, and none at the first. Where that is full, it waits for it.
func TestPlaceMovesWithTheWalk(t *testing.T) {
	t.Parallel()
	p, refused := limited(Balance{Method: First}, 1, 1), errors.New("refused")
	s := p.place()
	_, _ = s.Next(t.Context(), nil)
	other := p.place()
	if _, err := other.Next(t.Context(), nil); err != nil || other.Position() != 1 {
		t.Fatalf("at %d, %v", other.Position(), err)
	}
	if _, err := s.Next(t.Context(), refused); !errors.Is(err, ErrFull) || err.Error() != "refused; "+ErrFull.Error() {
		t.Errorf("%v", err)
	}
	s.leave()
	other.leave()
	if _, err := s.Next(t.Context(), nil); err != nil || s.Position() != 1 {
		t.Errorf("at %d, %v", s.Position(), err)
	}
	if a, b := p.upstreams[0].Living.Load(), p.upstreams[1].Living.Load(); a != 0 || b != 1 {
		t.Errorf("%d and %d sessions", a, b)
	}
	if _, err := s.Next(t.Context(), refused); errors.Is(err, ErrFull) {
		t.Error("none is left, but it would wait for one")
	}
	s.Restart(p)
	if _, err := s.Next(t.Context(), nil); err != nil || s.Position() != 0 {
		t.Errorf("anew: at %d, %v", s.Position(), err)
	}
}

// Many at once: never more than may, and nothing is left at the end.
func TestFullConcurrently(t *testing.T) {
	t.Parallel()
	for _, balance := range balances {
		p := limited(balance, 2, 3, 1)
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 300 {
					s := p.place()
					if _, err := s.Next(context.Background(), nil); err != nil && !errors.Is(err, ErrFull) {
						t.Error(err)
					}
					for i := range p.upstreams {
						if u := &p.upstreams[i]; u.Living.Load() > u.MaxSessions {
							t.Errorf("%d sessions at upstream %d", u.Living.Load(), i)
						}
					}
					s.leave()
				}
			})
		}
		wg.Wait()
		for i := range p.upstreams {
			if n := p.upstreams[i].Living.Load(); n != 0 {
				t.Errorf("%d left", n)
			}
		}
	}
}

// Limits cost nothing while there is room.
func TestPickWithLimitsAllocatesNothing(t *testing.T) {
	p := limited(Balance{}, 1<<40, 1<<40, 1<<40)
	s := p.place()
	if n := testing.AllocsPerRun(100, func() {
		s.Restart(p)
		s.leave()
		_ = s.Claim()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
