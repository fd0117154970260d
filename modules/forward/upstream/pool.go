package upstream

import (
	"net"
	"net/netip"
	"sync/atomic"
)

// Upstream is one of the servers to forward to.
type Upstream struct {
	// Name is the address as configured, which is also its label in metrics.
	Name string
	// Addr is where it is, unless Dynamic is set.
	Addr Addr
	// Dynamic means that Name has placeholders, and that each session parses what they expand to.
	Dynamic bool

	fixed *fixed // nil where there is something to look up
}

// named reports whether the upstream has a name that is the same for all sessions.
func (u *Upstream) named() bool { return u.fixed == nil && !u.Dynamic }

// Pool hands out upstreams in turn (round robin). It is never empty.
type Pool struct {
	// Failures remembers which addresses have failed. Nil: nothing is remembered.
	Failures *Failures

	upstreams []Upstream
	names     *Names
	dynamic   bool
	literal   bool
	unix      bool
	turn      atomic.Uint32
}

// NewPool panics without upstreams.
func NewPool(upstreams []Upstream) *Pool {
	if len(upstreams) == 0 {
		panic("upstream: empty pool")
	}
	p := &Pool{upstreams: upstreams, literal: true}
	for i := range upstreams {
		upstreams[i].fix()
		p.dynamic = p.dynamic || upstreams[i].Dynamic
		p.literal = p.literal && upstreams[i].fixed != nil
		p.unix = p.unix || upstreams[i].Addr.Network == "unix"
	}
	return p
}

// Hold has the pool use what is known of names, until Release. A pool that is not [Pool.Fixed] needs it. Names that are not known yet
// are looked up now, so that the first session need not wait for that.
func (p *Pool) Hold(names *Names) {
	p.names = names
	for i := range p.upstreams {
		if u := &p.upstreams[i]; u.named() {
			names.hold(u.Addr.nameKey())
		}
	}
}

// Release gives back what Hold has taken. Sessions may go on to use the pool.
func (p *Pool) Release() {
	for i := range p.upstreams {
		if u := &p.upstreams[i]; u.named() {
			p.names.release(u.Addr.nameKey())
		}
	}
}

// fixed are the addresses of an upstream, by the offset of the port.
type fixed struct{ streams, datagrams []net.Addr }

// fix finds out once what need not be found out for each session.
func (u *Upstream) fix() {
	if u.Dynamic {
		return
	}
	var all fixed
	for offset := range max(u.Addr.Ports(), 1) {
		stream, ok := u.Addr.fixed(offset, false)
		if !ok {
			return
		}
		datagram, _ := u.Addr.fixed(offset, true)
		all.streams, all.datagrams = append(all.streams, stream), append(all.datagrams, datagram)
	}
	u.fixed = &all
}

// Dynamic reports whether sessions need [Walk.Expand].
func (p *Pool) Dynamic() bool { return p.dynamic }

// Fixed reports whether there is nothing to look up.
func (p *Pool) Fixed() bool { return p.literal }

// EachIP calls take with the IP addresses of upstreams that need no lookup.
func (p *Pool) EachIP(take func(netip.Addr)) {
	for _, u := range p.upstreams {
		if ip, err := netip.ParseAddr(u.Addr.Host); err == nil && !u.Dynamic {
			take(ip)
		}
	}
}

// AnyUnix reports whether an upstream that needs no lookup is a unix socket.
func (p *Pool) AnyUnix() bool { return p.unix }
