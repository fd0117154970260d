package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
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
	// LookupTimeout bounds how long the session waits for the lookup of one name.
	LookupTimeout time.Duration
	// Stale is how long the last good answer for a name is used while it can't be looked up. Zero: never.
	Stale time.Duration
	// Key is what the methods that hash go by. Where it is not Keyed, upstreams get sessions in turn.
	Key   uint64
	Keyed bool
	// Renew waits for a lookup where the last answer for a name is older than a second, and takes that only if the lookup fails, or the
	// last one has: for a session whose upstream may have moved.
	Renew bool
	// Datagrams asks for addresses that datagrams can be sent to, in place of streams.
	Datagrams bool

	hurries bool // does not wait for names
	fresh   bool // no address of the current upstream was tried yet
	refused bool // a breaker has not admitted the session
	full    bool // see Full
	tried   int32

	// Trials are how breakers admit the session. Nil: none has to.
	Trials *Trials

	// Reserve reserves a place for the session at an upstream with a limit, in place of the one that it had, unless it has that one. It reports false
	// where the upstream has most sessions already. It must not block. It is needed where a pool is [Pool.Limited].
	Reserve func(position int, most int64) bool
	// Expand replaces the placeholders of an upstream's name.
	Expand func(string) string
	// Unresolved is called where an upstream has no address that could be tried. It may be nil.
	Unresolved func(name string, err error)

	pool    *Pool
	choice  choice
	named   []candidate // those whose addresses come from a name
	current *Upstream
	source  Source     // of addrs
	addrs   []net.Addr // of current, not tried yet
	last    net.Addr
}

// candidate is an upstream, and addresses of it.
type candidate struct {
	upstream *Upstream
	source   Source
	addrs    []net.Addr
}

// Walk begins a session's way. The caller sets the exported fields.
func (p *Pool) Walk() *Walk { return &Walk{pool: p} }

// Current returns the upstream that is being tried, and its address that Next gave last. There is none
// where it could not be resolved.
func (w *Walk) Current() (name string, addr net.Addr) {
	if w.current != nil {
		name = w.current.Name
	}
	return name, w.last
}

// Position returns the place in the pool of the upstream that is being tried, -1 where there is none.
func (w *Walk) Position() int {
	if w.current == nil {
		return -1
	}
	return w.current.position
}

// AllOut reports whether all upstreams were out when the first one was chosen, so that one of them was.
func (w *Walk) AllOut() bool { return w.choice.allOut }

// Source returns the name that the addresses of the upstream come from that is being tried.
func (w *Walk) Source() Source { return w.source }

// Next returns the next address to try: all those of one upstream, then those of the next one, as
// often as Retries allows, none twice. Addresses that are out come last, so that they are tried where there are no
// others. Where the upstream was shut meanwhile, its other addresses are not tried. failed is what became of the last address. When there is none left, the error tells of every failure and
// unwraps to the last.
func (w *Walk) Next(ctx context.Context, failed error) (net.Addr, error) {
	w.note(failed)
	for {
		w.leaveShut()
		w.find(ctx)
		if w.full {
			return nil, w.errFull()
		}
		w.findNew(ctx)
		if len(w.addrs) == 0 {
			return nil, w.err()
		}
		if addr := w.take(); addr != nil {
			return addr, nil
		}
	}
}

// err is the error of a walk that has come to its end.
func (w *Walk) err() error {
	err := w.choice.errs()
	if err == ErrNone && w.refused { //nolint:errorlint // it is never wrapped
		return ErrBreakerOpen
	}
	return err
}

// Ready reports whether Next will return without waiting for a name. It is called before the first Next.
func (w *Walk) Ready() bool {
	w.hurries = true
	defer func() { w.hurries = false }()
	return w.find(context.Background()) && (len(w.addrs) > 0 || w.full || len(w.named) == 0) // else findNew waits
}

// Another returns one more address of the upstream that is being tried, nil if it has none. It does not block. failed is what became of
// another address, or nil.
func (w *Walk) Another(failed error) net.Addr {
	w.note(failed)
	w.leaveShut()
	return w.take()
}

func (w *Walk) leaveShut() {
	if len(w.addrs) > 0 && w.pool.shut(w.current) {
		w.addrs = nil
	}
}

// take returns the next address of the upstream that is being tried, nil where there is none that a breaker admits the session to.
func (w *Walk) take() net.Addr {
	for len(w.addrs) > 0 {
		addr := w.addrs[0]
		w.addrs = w.addrs[1:]
		if w.Trials.admit(w.current.Name, addr) {
			w.last, w.fresh = addr, false
			return addr
		}
		w.refused = true
	}
	if w.fresh { // it was not tried
		w.fresh, w.current = false, nil
		w.tried--
	}
	return nil
}

// find goes on until there is an address to try, or no upstream left. A walk that hurries does not wait: find then reports false.
func (w *Walk) find(ctx context.Context) (ready bool) {
	w.full = false
	for len(w.addrs) == 0 && !w.full && int(w.tried) <= w.Retries && w.left() {
		if !w.advance(ctx) {
			return false
		}
	}
	return true
}

// findNew looks for further addresses of upstreams that have failed: what was known of their names may be old. It waits for a lookup,
// because there is nothing else to try.
func (w *Walk) findNew(ctx context.Context) {
	for len(w.addrs) == 0 && len(w.named) > 0 {
		before := w.named[0]
		w.named = w.named[1:]
		if w.pool.shut(before.upstream) {
			continue
		}
		w.Renew = true
		addrs, source, _ := w.resolve(ctx, before.upstream)
		addrs = slices.DeleteFunc(addrs, func(addr net.Addr) bool {
			return slices.ContainsFunc(before.addrs, func(old net.Addr) bool { return keyOf(old) == keyOf(addr) })
		})
		if len(addrs) > 0 && w.hold(before.upstream) {
			w.current, w.source, w.addrs, w.last = before.upstream, source, addrs, nil
		}
	}
}

// left reports whether there is an upstream to go on to.
func (w *Walk) left() bool { return int(w.choice.seen) < w.pool.usable || w.choice.anyPassed() }

// advance goes to the next upstream. It reports false where that has a name to wait for, and the walk hurries.
func (w *Walk) advance(ctx context.Context) bool {
	if int(w.choice.seen) == w.pool.usable {
		d := w.choice.detour
		next := d.passed[0]
		d.passed = d.passed[1:]
		if w.pool.shut(next.upstream) || !w.hold(next.upstream) {
			return true
		}
		w.current, w.source, w.addrs, w.last = next.upstream, next.source, next.addrs, nil
		w.tried, w.fresh = w.tried+1, true
		return true
	}
	position := w.pool.choose(w)
	switch position {
	case allOpen:
		w.choice.seen, w.refused = int32(w.pool.usable), true
		return true
	case allFull:
		w.full = true
		return true
	case hasNone:
		return true
	}
	u := &w.pool.upstreams[position]
	if w.pool.shut(u) {
		w.choice.take(u.position)
		return true
	}
	addrs, source, err := w.resolve(ctx, u)
	if err == errUnknown { //nolint:errorlint // it is never wrapped
		return false
	}
	w.choice.take(u.position)
	if source.names != nil {
		w.named = append(w.named, candidate{u, source, addrs})
	}
	in, out := w.split(addrs)
	if len(out) > 0 {
		d := w.choice.detoured()
		d.passed = append(d.passed, candidate{u, source, out})
	}
	if err == nil && len(in) == 0 {
		return true
	}
	w.current, w.source, w.addrs, w.last = u, source, in, nil
	w.tried, w.fresh = w.tried+1, len(in) > 0
	if err != nil {
		w.note(fmt.Errorf("upstream %q: %w", u.Name, err))
		if w.Unresolved != nil {
			w.Unresolved(u.Name, err)
		}
	}
	return true
}

// split divides the addresses of an upstream into those that are in and those that are out. What breakers keep from sessions is in neither.
func (w *Walk) split(addrs []net.Addr) (in, out []net.Addr) {
	left := w.pool.Breakers.admitting(addrs)
	w.refused = w.refused || len(left) < len(addrs)
	if w.choice.spared {
		return w.pool.Health.split(left)
	}
	return w.pool.split(left)
}

// situation is what the addresses of upstreams depend on.
func (w *Walk) situation() situation { return situation{w.Offset, w.Datagrams} }

// errUnknown means that a name would have to be waited for.
var errUnknown = errors.New("not known yet")

func (w *Walk) resolve(ctx context.Context, u *Upstream) ([]net.Addr, Source, error) {
	addr, offset := u.Addr, 0
	if err := addr.Carries(w.Datagrams); err != nil {
		return nil, Source{}, err
	}
	if u.fixed != nil {
		return u.at(w.situation()), Source{}, nil
	}
	if addr.Ports() > 1 {
		offset = w.Offset
	}
	if u.Dynamic {
		var err error
		if addr, err = w.expand(u); err != nil {
			return nil, Source{}, err
		}
		if fixed, ok := addr.fixed(0, w.Datagrams); ok {
			return []net.Addr{fixed}, Source{}, nil
		}
	}
	return w.lookUp(ctx, addr, offset)
}

// expand returns the address that an upstream has for this session.
func (w *Walk) expand(u *Upstream) (Addr, error) {
	addr, err := ParseExpanded(u.Name, w.Expand(u.Name))
	if err == nil {
		err = u.checkExpanded(addr)
	}
	if err == nil {
		err = addr.Carries(w.Datagrams)
	}
	return addr, err
}

// lookUp returns all addresses of a name, best first, and errUnknown instead of waiting where the walk hurries.
func (w *Walk) lookUp(ctx context.Context, addr Addr, offset int) ([]net.Addr, Source, error) {
	names, key := w.pool.names, addr.nameKey()
	known, err := w.ask(ctx, key)
	if err != nil {
		return nil, Source{}, err
	}
	source := Source{names: names, service: service{key.host, addr.Port + uint16(offset), w.Datagrams}}
	ips := names.inOrder(known, source.service)
	addrs := make([]net.Addr, len(ips))
	for i, ip := range ips {
		addrs[i] = addr.at(ip, offset, w.Datagrams)
	}
	source.six = len(ips) > 0 && ips[0].Is6()
	return addrs, source, nil
}

// ask returns what a name stands for.
func (w *Walk) ask(ctx context.Context, key nameKey) ([]netip.Addr, error) {
	names := w.pool.names
	if w.hurries {
		known, ok := names.known(key, w.Stale)
		if !ok {
			return nil, errUnknown
		}
		return known.ips, known.err
	}
	if w.Renew && !names.fails(key) {
		if ips, err := names.find(ctx, key, 0, w.LookupTimeout); err == nil {
			return ips, nil
		}
	}
	return names.find(ctx, key, w.Stale, w.LookupTimeout)
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
	if err == nil {
		return
	}
	d := w.choice.detoured()
	if d.errs != nil {
		err = fmt.Errorf("%v; %w", d.errs, err) //nolint:errorlint // unwraps to the last on purpose
	}
	d.errs = err
}
