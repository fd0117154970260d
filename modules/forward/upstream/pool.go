package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
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

// Walk is one session's way through the pool.
type Walk struct {
	// Retries is how many further upstreams are tried when one can't be reached.
	Retries int
	// Offset picks the port of a range: 0 for its first.
	Offset int
	// LookupTimeout bounds the resolution of one name.
	LookupTimeout time.Duration
	// Datagrams asks for addresses that datagrams can be sent to, in place of streams.
	Datagrams bool
	// Expand replaces the placeholders of an upstream's name.
	Expand func(string) string

	pool    *Pool
	first   int
	tried   int
	current *Upstream
	addrs   []net.Addr // of current, not tried yet
	last    net.Addr
	errs    error
}

// Walk begins with the upstream whose turn it is. The caller sets the exported fields.
func (p *Pool) Walk() *Walk {
	return &Walk{pool: p, first: int((p.turn.Add(1) - 1) % uint32(len(p.upstreams)))}
}

// Current returns the upstream that is being tried, and its address that Next gave last. There is none
// where it could not be resolved.
func (w *Walk) Current() (name string, addr net.Addr) {
	if w.current != nil {
		name = w.current.Name
	}
	return name, w.last
}

// Next returns the next address to try: all those of one upstream, then those of the next one, as
// often as Retries allows, none twice. failed is what became of the last address. When there is
// none left, the error tells of every failure and unwraps to the last.
func (w *Walk) Next(ctx context.Context, failed error) (net.Addr, error) {
	w.note(failed)
	for len(w.addrs) == 0 {
		if w.tried > w.Retries || w.tried == len(w.pool.upstreams) {
			return nil, w.errs
		}
		w.current, w.last = &w.pool.upstreams[(w.first+w.tried)%len(w.pool.upstreams)], nil
		w.tried++
		addrs, err := w.resolve(ctx)
		if err != nil {
			w.note(fmt.Errorf("upstream %q: %w", w.current.Name, err))
		}
		w.addrs = addrs
	}
	w.last, w.addrs = w.addrs[0], w.addrs[1:]
	return w.last, nil
}

func (w *Walk) resolve(ctx context.Context) ([]net.Addr, error) {
	addr, offset := w.current.Addr, 0
	if addr.Ports() > 1 {
		offset = w.Offset
	}
	if err := addr.Carries(w.Datagrams); err != nil {
		return nil, err
	}
	if fixed := w.current.fixed; fixed != nil && w.Datagrams {
		return fixed.datagrams[offset : offset+1], nil
	} else if fixed != nil {
		return fixed.streams[offset : offset+1], nil
	}
	if w.current.Dynamic {
		var err error
		if addr, err = ParseExpanded(w.current.Name, w.Expand(w.current.Name)); err != nil {
			return nil, err
		}
		if err := w.current.checkExpanded(addr); err != nil {
			return nil, err
		}
		if err := addr.Carries(w.Datagrams); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, w.LookupTimeout)
	defer cancel()
	lookup := w.pool.lookup
	if w.current.names != nil {
		lookup = w.current.names.remember(lookup)
	}
	return addr.resolve(ctx, lookup, offset, w.Datagrams)
}

// rememberFor is how long what a name was resolved to is used again. Many sessions may begin in a second, or find
// an upstream gone; and where it has moved, its name says so within a second all the same.
const rememberFor = time.Second

// names is what the name of an upstream was last resolved to.
type names struct {
	mu  sync.Mutex
	ips []netip.Addr
	at  time.Time
}

// remember returns a lookup that does without where the last one was a moment ago. Failures are not remembered.
func (n *names) remember(lookup lookup) lookup {
	return func(ctx context.Context, network, host string) ([]netip.Addr, error) {
		n.mu.Lock()
		ips, at := n.ips, n.at
		n.mu.Unlock()
		if ips != nil && time.Since(at) < rememberFor {
			return ips, nil
		}
		ips, err := lookup(ctx, network, host)
		if err != nil {
			return nil, err
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.ips, n.at = ips, time.Now()
		return ips, nil
	}
}

// checkExpanded refuses what a placeholder must not stand for. Its value may be the client's word.
func (u *Upstream) checkExpanded(addr Addr) error {
	switch {
	case addr.Ports() > 1:
		return errors.New("a placeholder may not expand to a range of ports")
	case addr.Network != "unix":
		return nil
	case !strings.HasPrefix(strings.ToLower(u.Name), "unix/"):
		return errors.New("a placeholder may not expand to a unix socket")
	case slices.Contains(strings.Split(addr.Host, "/"), ".."):
		return errors.New(`a placeholder may not expand to a path with ".." in it`)
	}
	return nil
}

func (w *Walk) note(err error) {
	switch {
	case err == nil:
	case w.errs == nil:
		w.errs = err
	default:
		w.errs = fmt.Errorf("%v; %w", w.errs, err) //nolint:errorlint // unwraps to the last on purpose
	}
}
