package upstream

import (
	"net"
	"time"
)

// standing is what is known of an upstream, or of one of its addresses, for now. The better one is less.
type standing uint8

const (
	standsIn      standing = iota // it gets sessions
	standsFailing                 // sessions have failed there: it is tried last, as far as it may be ejected
	standsDown                    // checks say that it does not work: it is tried last
	standsClosed                  // its breaker is open: it is never tried
)

// facts are what handlers share and know of addresses, as of one moment.
type facts struct {
	failing  map[key]time.Time // since when
	closed   map[key]struct{}
	health   *Health   // says which are down
	returned *returned // nil where nothing has come back lately
}

func (f *facts) none() bool {
	return len(f.failing)+len(f.closed) == 0 && f.health.quiet() && f.returned == nil
}

// quiet reports whether there are none. It costs as good as nothing.
func (p *Pool) quiet() bool {
	return p.Failures.quiet() && p.Health.quiet() && p.Breakers.quiet() && (!p.startsSlowly() || p.Returns.quiet())
}

// changes grows with each change of the facts.
func (p *Pool) changes() uint64 {
	return p.Failures.changes() + p.Health.changes() + p.Breakers.changes() + p.Returns.changes()
}

// look gathers the facts. until is for how long they are right; zero: until there is a change.
func (p *Pool) look(now time.Time) (f facts, until time.Time) {
	f.failing, until = p.Failures.look(now)
	f.health = p.Health
	closed, end := p.Breakers.look(now)
	f.closed, until = closed, sooner(until, end)
	if p.startsSlowly() {
		if f.returned = p.Returns.look(p.SlowStart, now); f.returned != nil {
			until = sooner(until, now.Add(f.returned.step()))
		}
	}
	return f, until
}

// startsSlowly reports whether upstreams that come back get their share little by little. Where the client or the order decides who gets
// a session, there are no shares.
func (p *Pool) startsSlowly() bool {
	return p.SlowStart > 0 && !p.Balance.Keyed() && p.Balance.Method != First
}

// now is the time by which facts are judged.
func (p *Pool) now() time.Time {
	if p.Failures != nil {
		return p.Failures.now()
	}
	return time.Now()
}

// scale is what weights are multiplied by.
func (p *Pool) scale() int64 {
	if p.startsSlowly() {
		return wholeShare
	}
	return 1
}

// judgment is what facts come to for one upstream.
type judgment struct {
	standing
	since time.Time // since when it fails
	share int64     // of its weight, up to scale
}

// judge returns it for all upstreams, by position.
func (p *Pool) judge(s situation, f *facts) []judgment {
	all := make([]judgment, len(p.upstreams))
	for i := range p.upstreams {
		all[i] = p.judgeOne(&p.upstreams[i], s, f)
	}
	return all
}

// judgeOne goes by the best of an upstream's addresses. Of an upstream that only a session knows, or whose name is not known, nothing is known,
// so it is in.
func (p *Pool) judgeOne(u *Upstream, s situation, f *facts) judgment {
	known := judgment{standing: standsIn, share: p.scale()}
	if u.Dynamic {
		return known
	}
	for i, addr := range p.addrsOf(u, s) {
		j := f.address(addr, p.scale())
		switch {
		case i == 0 || j.standing < known.standing:
			known = j
		case j.standing == known.standing:
			known.share = max(known.share, j.share)
			if j.since.After(known.since) {
				known.since = j.since
			}
		}
	}
	if f.returned != nil {
		known.share = min(known.share, f.returned.upstream(u.Name))
	}
	return known
}

// address judges one address.
func (f *facts) address(addr net.Addr, scale int64) judgment {
	k, j := keyOf(addr), judgment{standing: standsIn, share: scale}
	if f.returned != nil {
		j.share = f.returned.address(k)
	}
	if since, failing := f.failing[k]; failing {
		j.standing, j.since = standsFailing, since
	}
	if f.health.down(addr) {
		j.standing = standsDown
	}
	if _, closed := f.closed[k]; closed {
		j.standing = standsClosed
	}
	return j
}

// split divides addresses into those that are in and those that are tried last.
func (p *Pool) split(addrs []net.Addr) (in, last []net.Addr) {
	up, down := p.Health.split(addrs)
	in, last = p.Failures.split(up)
	return in, append(last, down...)
}

// addrsOf returns the addresses of an upstream as far as they are known.
func (p *Pool) addrsOf(u *Upstream, s situation) []net.Addr {
	if u.fixed != nil {
		return u.at(s)
	}
	offset := 0
	if u.Addr.Ports() > 1 {
		offset = s.offset
	}
	ips := p.names.last(u.Addr.nameKey())
	addrs := make([]net.Addr, len(ips))
	for i, ip := range ips {
		addrs[i] = u.Addr.at(ip, offset, s.datagrams)
	}
	return addrs
}
