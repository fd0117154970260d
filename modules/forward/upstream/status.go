package upstream

import (
	"net"
	"net/netip"
	"time"
)

// State is whether an upstream gets sessions. Those that get more come first.
type State uint8

// The states. Up to [Down] an upstream is tried, if only where there is no other.
const (
	Up        State = iota
	SlowStart       // it is back, and gets less than its share
	HalfOpen        // its breaker lets some sessions through, to see whether it works
	Ejected         // sessions could not reach it
	Down            // checks say that it does not work
	Open            // its breaker is open
	Drain           // it gets no new sessions: its weight is 0, or somebody has said so
	Maint           // the same, and it is not checked
)

// States are the words for them.
var States = [...]string{"up", "slow_start", "half_open", "ejected", "down", "open", "drain", "maint"}

func (s State) String() string { return States[s] }

// Status is what is known of an upstream, or of an address of it.
type Status struct {
	State State
	Fails int       // in a row, or as many as count
	Err   error     // why it has failed last; nil where nothing is known
	At    time.Time // when it was checked last, or a session has failed there; zero where nothing is known
	errAt time.Time
}

// failed has the status tell of an error, if there is one.
func (s Status) failed(err error, at time.Time) Status {
	if s.At = at; err != nil {
		s.Err, s.errAt = err, at
	}
	return s
}

// joined is what two memories know together of the same address: what is worse.
func (s Status) joined(other Status) Status {
	s.State, s.Fails = max(s.State, other.State), max(s.Fails, other.Fails)
	return s.latest(other)
}

// beside is what is known of an upstream that has two addresses: sessions can take the better one.
func (s Status) beside(other Status) Status {
	s.State, s.Fails = min(s.State, other.State), max(s.Fails, other.Fails)
	return s.latest(other)
}

func (s Status) latest(other Status) Status {
	if other.At.After(s.At) {
		s.At = other.At
	}
	if other.errAt.After(s.errAt) {
		s.Err, s.errAt = other.Err, other.errAt
	}
	return s
}

// witness is a memory of facts about addresses.
type witness interface {
	status(addr net.Addr) Status
}

// witnesses are the memories that a pool goes by. Each that is consulted for a view (see out) is consulted here, too, so that what is said of an
// upstream is why it gets sessions or not.
func (p *Pool) witnesses() (all []witness) {
	if !p.Failures.quiet() {
		all = append(all, p.Failures)
	}
	if p.Health != nil {
		all = append(all, p.Health)
	}
	if p.Breakers != nil {
		all = append(all, p.Breakers)
	}
	return all
}

// Survey is what is known of the upstreams of a pool.
type Survey struct {
	pool *Pool
	of   []transport
}

// transport is what sessions of streams or of datagrams are forwarded by.
type transport struct {
	datagrams bool
	judged    []judgment // by position, after it was decided which of those that fail are ejected; nil where nothing is wrong
}

// Survey returns what is known of upstreams that sessions of streams or of datagrams go to, or both. It looks up no name, and holds no lock that
// sessions need for longer than one address takes.
func (p *Pool) Survey(streams, datagrams bool) *Survey {
	s := &Survey{pool: p}
	if streams {
		s.of = append(s.of, transport{judged: p.judged(situation{})})
	}
	if datagrams {
		s.of = append(s.of, transport{true, p.judged(situation{datagrams: true})})
	}
	return s
}

// judged decides what a view for sessions decides, see viewOf.
func (p *Pool) judged(s situation) []judgment {
	if p.quiet() {
		return nil
	}
	f, _ := p.look(p.now())
	all := p.judge(s, &f)
	var number [standsClosed + 1]int
	for i := range all {
		if !p.upstreams[i].Drained {
			number[all[i].standing]++
		}
	}
	switch {
	case number[standsIn] > 0:
		p.eject(all)
	case number[standsFailing] > 0 && number[standsDown] > 0:
		p.spare(all)
	}
	return all
}

// Status returns what is known of the upstream at a position. It is as bad as the worse of streams and datagrams, and as good as the best of its
// addresses and ports. Of an upstream whose address only a session knows, nothing is known.
func (r *Survey) Status(position int) (s Status) {
	u := &r.pool.upstreams[position]
	for _, t := range r.of {
		if u.Addr.Carries(t.datagrams) != nil {
			continue
		}
		one := r.pool.statusOf(u, t.datagrams)
		if t.judged != nil {
			one.State = t.judged[position].seen(one.State, r.pool.scale())
		}
		s = s.joined(one)
	}
	switch {
	case u.Maint:
		s.State = Maint
	case u.Drained:
		s.State = Drain
	}
	return s
}

// seen is the state of an upstream whose addresses are in another one: it may fail and get sessions all the same, because too many others fail,
// or get less than its share.
func (j judgment) seen(state State, scale int64) State {
	if state == Ejected && j.standing == standsIn {
		state = Up
	}
	if state == Up && j.standing == standsIn && j.share < scale {
		state = SlowStart
	}
	return state
}

// statusOf is the status for sessions of one transport. A range of ports is as good as its best one.
func (p *Pool) statusOf(u *Upstream, datagrams bool) (s Status) {
	if u.named() && p.names != nil {
		s = s.latest(p.names.status(u.Addr.nameKey()))
	}
	all := p.witnesses()
	if len(all) == 0 || u.Dynamic {
		return s
	}
	first := true
	p.eachAddr(u, datagrams, func(addr net.Addr) {
		var one Status
		for _, w := range all {
			one = one.joined(w.status(addr))
		}
		if first {
			s.State, first = one.State, false
		}
		s = s.beside(one)
	})
	return s
}

func (p *Pool) eachAddr(u *Upstream, datagrams bool, see func(net.Addr)) {
	if u.fixed != nil {
		addrs := u.fixed.streams
		if datagrams {
			addrs = u.fixed.datagrams
		}
		for _, addr := range addrs {
			see(addr)
		}
		return
	}
	var ips []netip.Addr
	if p.names != nil {
		ips = p.names.last(u.Addr.nameKey())
	}
	for _, ip := range ips {
		for offset := range u.Addr.Ports() {
			see(u.Addr.at(ip, offset, datagrams))
		}
	}
}

// status implements witness.
func (f *Failures) status(addr net.Addr) (s Status) {
	now := f.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.records[keyOf(addr)]
	if r == nil {
		return s
	}
	s = Status{Fails: r.lost}.failed(r.err, r.failedAt)
	for _, at := range r.fails {
		if now.Sub(at) <= f.policy.FailDuration {
			s.Fails++
		}
	}
	if r.out && !r.proven(now) {
		s.State = Ejected
	}
	return s
}

// status implements witness.
func (h *Health) status(addr net.Addr) Status {
	report, checked := h.Of(addr)
	if !checked {
		return Status{}
	}
	s := Status{Fails: report.Fails}
	if !report.At.IsZero() {
		s = s.failed(report.Err, report.At)
	}
	if report.Down {
		s.State = Down
	}
	return s
}

// status implements witness.
func (s *Breakers) status(addr net.Addr) (known Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.of[keyOf(addr)]
	if b == nil {
		return known
	}
	switch b.state {
	case BreakerOpen:
		known.State = Open
	case BreakerHalfOpen:
		known.State = HalfOpen
	}
	if b.state != BreakerClosed {
		known = known.failed(b.err, b.since)
	}
	return known
}

// status returns why a name could not be looked up, where the last lookup has failed.
func (n *Names) status(k nameKey) (s Status) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.records[k]; r != nil && r.err != nil {
		s = s.failed(r.err, r.failedAt)
	}
	return s
}
