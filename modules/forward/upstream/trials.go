package upstream

import (
	"net"
	"sync"
	"time"
)

// Trials are the attempts of one session to use an upstream, as breakers see them: each is admitted, and heard of once or taken back. The session calls Over at
// its end.
type Trials struct {
	breakers *Breakers
	client   uint64

	mu    sync.Mutex
	over  bool
	first trial   // the zero trial where there is none
	more  []trial // those that run beside it
}

type trial struct {
	pass
	addr      net.Addr
	at        time.Duration // when it began, since the start of the breakers
	took      time.Duration // to connect
	connected bool
}

// Begin returns the trials of a session. Without breakers it returns nil, with which all methods do nothing. client is what [HashIP] makes of
// the client's address, 0 where it has none: clients that say nothing are to let others try an upstream.
func (s *Breakers) Begin(client uint64) *Trials {
	if s == nil {
		return nil
	}
	return &Trials{breakers: s, client: client}
}

// admit reports whether the session may try an address.
func (t *Trials) admit(name string, addr net.Addr) bool {
	if t == nil {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.breakers.now()
	p, ok := t.breakers.admit(name, addr, t.client, now)
	next := trial{pass: p, addr: addr, at: now.Sub(t.breakers.start)}
	switch {
	case !ok:
		return false
	case t.over:
		t.breakers.release(p) // the session ends before it tries it
	case t.first.addr == nil:
		t.first = next
	default:
		t.more = append(t.more, next)
	}
	return true
}

// Failed says that the upstream at an address could not be connected, or has refused a datagram, which took so long.
func (t *Trials) Failed(addr net.Addr, took time.Duration, err error) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.find(addr) {
		t.hear(outcome{failed: true, took: took}, err)
	}
	if t.first.addr == nil && len(t.more) > 0 {
		t.first, t.more = t.more[0], t.more[1:]
	}
}

// Connected says that it is connected, which took so long. Others that the session has tried meanwhile are not heard of.
func (t *Trials) Connected(addr net.Addr, took time.Duration) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.find(addr) {
		t.release()
		return
	}
	winner := t.first
	winner.took, winner.connected = took, true
	t.first = trial{}
	t.release()
	t.first = winner
}

// Answered says that the first byte has come from the upstream that is connected, which was waited for so long.
func (t *Trials) Answered(waited time.Duration) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hear(outcome{took: max(t.first.took, waited)}, nil)
}

// Reset says that the upstream has reset the connection before its first byte.
func (t *Trials) Reset(waited time.Duration, err error) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hear(outcome{failed: true, took: max(t.first.took, waited)}, err)
}

// Ended says that the session has ended in order without a first byte.
func (t *Trials) Ended(waited time.Duration) { t.Answered(waited) }

// Left says that the session has ended in another way without a first byte, such as by the client. The upstream was too slow if it was waited for
// longer than is allowed. Else nothing is known of it.
func (t *Trials) Left(waited time.Duration) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.first.addr != nil && !t.first.connected { // it was waited for since then
		waited = t.breakers.now().Sub(t.breakers.start) - t.first.at
	}
	if o := (outcome{took: max(t.first.took, waited)}); t.breakers.terms.bad(o, false) {
		t.hear(o, nil)
	}
}

// Over ends the trials: what was not heard of says nothing.
func (t *Trials) Over() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
	t.release()
}

// hear has the breaker of the first trial hear of it, which ends it.
func (t *Trials) hear(o outcome, err error) {
	if t.first.addr == nil {
		return
	}
	t.breakers.hear(t.first.pass, o, err)
	t.first = trial{}
}

// find makes the trial of an address the first one. It reports false where there is none.
func (t *Trials) find(addr net.Addr) bool {
	for i := range t.more {
		if t.first.addr != addr && t.more[i].addr == addr {
			t.first, t.more[i] = t.more[i], t.first
		}
	}
	return addr != nil && t.first.addr == addr
}

// release takes back all of them.
func (t *Trials) release() {
	t.breakers.release(t.first.pass)
	for _, other := range t.more {
		t.breakers.release(other.pass)
	}
	t.first, t.more = trial{}, nil
}
