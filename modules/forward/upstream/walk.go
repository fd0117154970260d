package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

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
	// Unresolved is called where an upstream has no address that could be tried. It may be nil.
	Unresolved func(name string, err error)

	pool    *Pool
	first   int
	seen    int         // upstreams from first on that were looked at
	passed  []candidate // those that are tried last, because they have failed for others
	tried   int
	current *Upstream
	addrs   []net.Addr // of current, not tried yet
	last    net.Addr
	errs    error
}

// candidate is an upstream, and addresses of it that are out.
type candidate struct {
	upstream *Upstream
	addrs    []net.Addr
}

// Walk begins with the upstream whose turn it is. The caller sets the exported fields.
func (p *Pool) Walk() *Walk { return &Walk{pool: p, first: p.takeTurn()} }

func (p *Pool) takeTurn() int { return int((p.turn.Add(1) - 1) % uint32(len(p.upstreams))) }

// Current returns the upstream that is being tried, and its address that Next gave last. There is none
// where it could not be resolved.
func (w *Walk) Current() (name string, addr net.Addr) {
	if w.current != nil {
		name = w.current.Name
	}
	return name, w.last
}

// Next returns the next address to try: all those of one upstream, then those of the next one, as
// often as Retries allows, none twice. Addresses that are out come last, so that they are tried where there are no
// others. failed is what became of the last address. When there is none left, the error tells of every failure and
// unwraps to the last.
func (w *Walk) Next(ctx context.Context, failed error) (net.Addr, error) {
	w.note(failed)
	if w.seen == 0 {
		w.skipTurns()
	}
	for len(w.addrs) == 0 {
		if w.tried > w.Retries || !w.advance(ctx) {
			return nil, w.errs
		}
	}
	w.last, w.addrs = w.addrs[0], w.addrs[1:]
	return w.last, nil
}

// skipTurns leaves out the turns of upstreams that are out. The others share them in this way; else all would go to the
// one that comes next.
func (w *Walk) skipTurns() {
	if w.pool.Failures.quiet() {
		return
	}
	for range len(w.pool.upstreams) {
		u := &w.pool.upstreams[w.first]
		addrs := w.fixed(u)
		if len(addrs) == 0 || !w.pool.Failures.out(addrs[0], true) {
			return
		}
		w.first = w.pool.takeTurn()
	}
}

// advance goes to the next upstream. It reports false where there is none left.
func (w *Walk) advance(ctx context.Context) bool {
	if w.seen == len(w.pool.upstreams) {
		if len(w.passed) == 0 {
			return false
		}
		w.current, w.addrs, w.last = w.passed[0].upstream, w.passed[0].addrs, nil
		w.passed = w.passed[1:]
		w.tried++
		return true
	}
	u := &w.pool.upstreams[(w.first+w.seen)%len(w.pool.upstreams)]
	w.seen++
	addrs, err := w.resolve(ctx, u)
	in, out := w.pool.Failures.split(addrs)
	if len(out) > 0 {
		w.passed = append(w.passed, candidate{u, out})
	}
	if err == nil && len(in) == 0 {
		return true
	}
	w.current, w.addrs, w.last = u, in, nil
	w.tried++
	if err != nil {
		w.note(fmt.Errorf("upstream %q: %w", u.Name, err))
		if w.Unresolved != nil {
			w.Unresolved(u.Name, err)
		}
	}
	return true
}

// fixed returns the address of an upstream where there is nothing to look up.
func (w *Walk) fixed(u *Upstream) []net.Addr {
	offset := 0
	if u.Addr.Ports() > 1 {
		offset = w.Offset
	}
	switch {
	case u.fixed == nil:
		return nil
	case w.Datagrams:
		return u.fixed.datagrams[offset : offset+1]
	default:
		return u.fixed.streams[offset : offset+1]
	}
}

func (w *Walk) resolve(ctx context.Context, u *Upstream) ([]net.Addr, error) {
	addr, offset := u.Addr, 0
	if err := addr.Carries(w.Datagrams); err != nil {
		return nil, err
	}
	if fixed := w.fixed(u); fixed != nil {
		return fixed, nil
	}
	if addr.Ports() > 1 {
		offset = w.Offset
	}
	if u.Dynamic {
		var err error
		if addr, err = ParseExpanded(u.Name, w.Expand(u.Name)); err != nil {
			return nil, err
		}
		if err := u.checkExpanded(addr); err != nil {
			return nil, err
		}
		if err := addr.Carries(w.Datagrams); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, w.LookupTimeout)
	defer cancel()
	lookup := w.pool.lookup
	if u.names != nil {
		lookup = u.names.remember(lookup)
	}
	return addr.resolve(ctx, lookup, offset, w.Datagrams)
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
