package upstream

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// maxBreakers bounds the addresses that are watched under the same terms. A client may choose them, by a placeholder. What is too many is not
// watched.
const maxBreakers = 16384

// Breakers watch how sessions fare at addresses, and admit none to an address at which too many fare badly. All handlers with the same
// Terms share them: what they have are facts about addresses.
type Breakers struct {
	terms Terms
	now   func() time.Time
	tell  func(BreakerChange)
	start time.Time
	step  time.Duration // a part of the window

	notClosed atomic.Int32  // breakers that are open or half open
	version   atomic.Uint64 // changes when one admits sessions and did not before, or the other way round
	mu        sync.Mutex
	of        map[key]*breaker
	forget    time.Time // when to look for breakers that are of no use any more
}

// BreakerChange is a breaker whose state has changed.
type BreakerChange struct {
	Name  string // of the upstream as configured
	Addr  net.Addr
	State BreakerState
	Terms Terms
	// Sessions and Bad are what has opened it: how many sessions there were in the window, and how many of them were slow or failed. They are 0
	// where a probe has.
	Sessions, Bad int
	// Err is what has become of the last session that has failed; nil where none has.
	Err error
}

// NewBreakers returns breakers that are all closed. tell is called with each change, by whoever uses them: it must not block.
func NewBreakers(terms Terms, now func() time.Time, tell func(BreakerChange)) *Breakers {
	return &Breakers{terms: terms, now: now, tell: tell, start: now(), step: max(terms.Window/windowSteps, 1), of: make(map[key]*breaker)}
}

// admit reports whether a session of a client may try an address. Then it has to call hear or release with the pass, once.
func (s *Breakers) admit(name string, addr net.Addr, client uint64, now time.Time) (p pass, ok bool) {
	s.mu.Lock()
	b := s.breaker(keyOf(addr), now)
	if b == nil {
		s.mu.Unlock()
		return pass{}, true
	}
	b.name, b.addr = name, addr
	before := b.state
	p, ok = b.admit(&s.terms, client, now)
	if before != BreakerClosed && ok {
		s.version.Add(1)
	}
	s.unlock(b, before, cell{})
	return p, ok
}

// hear takes what became of a session.
func (s *Breakers) hear(p pass, o outcome, err error) {
	if p.of == nil {
		return
	}
	now := s.now()
	s.mu.Lock()
	b := p.of
	before := b.state
	if o.failed {
		b.err = err
	}
	counted, changed := b.hear(&s.terms, p, o, int64(now.Sub(s.start)/s.step), now)
	if changed {
		s.version.Add(1)
	}
	s.unlock(b, before, counted)
}

// release takes back the pass of a session that says nothing about its upstream.
func (s *Breakers) release(p pass) {
	if p.of == nil || p.probe == 0 {
		return
	}
	now := s.now()
	s.mu.Lock()
	if p.of.release(p, now) {
		s.version.Add(1)
	}
	s.mu.Unlock()
}

// unlock ends the use of a breaker, and tells of a change.
func (s *Breakers) unlock(b *breaker, before BreakerState, counted cell) {
	if b.state == before {
		s.mu.Unlock()
		return
	}
	switch BreakerClosed {
	case before:
		s.notClosed.Add(1)
	case b.state:
		s.notClosed.Add(-1)
	}
	change := BreakerChange{
		Name: b.name, Addr: b.addr, State: b.state, Terms: s.terms, Err: b.err, Sessions: int(counted.sessions), Bad: int(counted.bad),
	}
	s.mu.Unlock()
	if s.tell != nil {
		s.tell(change)
	}
}

// breaker returns the breaker of an address, nil where there are too many.
func (s *Breakers) breaker(k key, now time.Time) *breaker {
	b := s.of[k]
	if b != nil {
		return b
	}
	s.tidy(now)
	if len(s.of) >= maxBreakers {
		return nil
	}
	b = new(breaker)
	s.of[k] = b
	return b
}

// tidy forgets now and then the breakers that were not used for long.
func (s *Breakers) tidy(now time.Time) {
	if now.Before(s.forget) {
		return
	}
	s.forget = now.Add(s.terms.Window)
	for k, b := range s.of {
		idle := now.Sub(b.used)
		switch {
		case b.state == BreakerClosed && idle <= 2*s.terms.Window, idle <= s.terms.Open+maxOut && b.state != BreakerClosed:
			continue
		case b.state != BreakerClosed: // no session has asked for it
			s.notClosed.Add(-1)
			s.version.Add(1)
		}
		b.epoch++ // for passes that are still held
		delete(s.of, k)
	}
}

// quiet reports whether all breakers are closed. It costs as good as nothing.
func (s *Breakers) quiet() bool { return s == nil || s.notClosed.Load() == 0 }

func (s *Breakers) changes() uint64 {
	if s == nil {
		return 0
	}
	return s.version.Load()
}

// look returns the addresses that get no session now, and for how long this is right; zero: until the version changes.
func (s *Breakers) look(now time.Time) (closed map[key]struct{}, until time.Time) {
	if s.quiet() {
		return nil, until
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tidy(now)
	closed = make(map[key]struct{})
	for k, b := range s.of {
		if end, refuses := b.refusesUntil(&s.terms, now); refuses {
			closed[k] = struct{}{}
			until = sooner(until, end)
		}
	}
	return closed, until
}

// admitting returns those of the addresses that admit a session now, without asking for it.
func (s *Breakers) admitting(addrs []net.Addr) []net.Addr {
	if s.quiet() {
		return addrs
	}
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	refuses := func(addr net.Addr) bool {
		b := s.of[keyOf(addr)]
		if b == nil {
			return false
		}
		_, refuses := b.refusesUntil(&s.terms, now)
		return refuses
	}
	if !slices.ContainsFunc(addrs, refuses) {
		return addrs
	}
	return slices.DeleteFunc(slices.Clone(addrs), refuses)
}

// sooner returns the earlier of two times. The zero time is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// condition returns the state of an address, and what became of the last session there that has failed.
func (s *Breakers) condition(addr net.Addr) (state BreakerState, err error) {
	if s == nil {
		return BreakerClosed, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.of[keyOf(addr)]; b != nil {
		return b.state, b.err
	}
	return BreakerClosed, nil
}

// NotClosed calls see with each address whose breaker is open or half open.
func (s *Breakers) NotClosed(see func(name string, addr net.Addr, state BreakerState)) {
	if s.quiet() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.of {
		if b.state != BreakerClosed {
			see(b.name, b.addr, b.state)
		}
	}
}
