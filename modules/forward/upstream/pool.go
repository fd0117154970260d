package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
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
	names *names // nil where there is nothing, or where each session looks up something else
}

// Pool hands out upstreams in turn (round robin). It is never empty.
type Pool struct {
	// Failures remembers which addresses have failed. Nil: nothing is remembered.
	Failures *Failures

	upstreams []Upstream
	lookup    lookup
	turn      atomic.Uint32
}

// NewPool panics without upstreams.
func NewPool(upstreams []Upstream) *Pool {
	if len(upstreams) == 0 {
		panic("upstream: empty pool")
	}
	for i := range upstreams {
		upstreams[i].fix()
	}
	return &Pool{upstreams: upstreams, lookup: net.DefaultResolver.LookupNetIP}
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
			u.names = new(names)
			return
		}
		datagram, _ := u.Addr.fixed(offset, true)
		all.streams, all.datagrams = append(all.streams, stream), append(all.datagrams, datagram)
	}
	u.fixed = &all
}

// Dynamic reports whether sessions need [Walk.Expand].
func (p *Pool) Dynamic() bool {
	return slices.ContainsFunc(p.upstreams, func(u Upstream) bool { return u.Dynamic })
}

// Fixed reports whether there is nothing to look up: Next never blocks.
func (p *Pool) Fixed() bool {
	return !slices.ContainsFunc(p.upstreams, func(u Upstream) bool { return u.fixed == nil })
}

// EachIP calls take with the IP addresses of upstreams that need no lookup.
func (p *Pool) EachIP(take func(netip.Addr)) {
	for _, u := range p.upstreams {
		if ip, err := netip.ParseAddr(u.Addr.Host); err == nil && !u.Dynamic {
			take(ip)
		}
	}
}

// rememberFor is how long what a name was resolved to is used again. Many sessions may begin in a second, or find
// an upstream gone; and where it has moved, its name says so within a second all the same.
const rememberFor = time.Second

// names is what the last lookup of an upstream's name has found, or why it has failed.
type names struct {
	mu  sync.Mutex
	ips []netip.Addr
	err error
	at  time.Time // zero before the first lookup
}

// remember returns a lookup that does without where the last one was a moment ago. A failure is remembered as well, or each
// of many sessions would wait until the name server's time is up. That a session was given up is no failure.
func (n *names) remember(lookup lookup) lookup {
	return func(ctx context.Context, network, host string) ([]netip.Addr, error) {
		n.mu.Lock()
		ips, err, at := n.ips, n.err, n.at
		n.mu.Unlock()
		if !at.IsZero() && time.Since(at) < rememberFor {
			return ips, err
		}
		ips, err = lookup(ctx, network, host)
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil, err
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if err == nil || n.err != nil || time.Since(n.at) >= rememberFor { // another session may have had an answer meanwhile
			n.ips, n.err, n.at = ips, err, time.Now()
		}
		return ips, err
	}
}
