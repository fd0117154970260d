package upstream

import (
	"math/rand/v2"
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

	// Weight is its share of the sessions, up to [MaxWeight]. Zero: 1.
	Weight int
	// Drained means that it gets no new sessions: its weight is 0, or somebody has said so. Whoever keeps connections ready keeps none to it.
	Drained bool
	// Maint means that nothing is tried with it at all: it is Drained, and checks leave it alone, too.
	Maint bool
	// Priority is its tier: sessions go to a later one only if those before have too few upstreams left. Up to [MaxPriority].
	Priority int
	// Zone is where it is, and Near that this is the zone of the gateway: near upstreams of a tier come before the others.
	Zone string
	Near bool
	// Living counts its living sessions, which others may count as well. Nil: it has none.
	Living *atomic.Int64
	// MaxSessions is how many sessions it may have at once, by Living. Where it has as many, [Walk.Reserve] gets no place. Zero: no limit.
	MaxSessions int64

	position int
	fixed    *fixed // nil where there is something to look up
	seed     uint64 // of the name, for hashes
}

func (u *Upstream) weight() int64 { return int64(max(u.Weight, 1)) }

// named reports whether the upstream has a name that is the same for all sessions.
func (u *Upstream) named() bool { return u.fixed == nil && !u.Dynamic }

// Pool chooses upstreams. The exported fields are set before the first session.
type Pool struct {
	// Failures remembers which addresses have failed. Nil: nothing is remembered.
	Failures *Failures
	// Health is what checks have found out about addresses. Nil: none is checked.
	Health *Health
	// MaxEjected is the share of the upstreams that may get sessions, by number and in all tiers, of which Failures takes no more out. Zero, or 1: it
	// takes out all but the last one.
	MaxEjected float64
	// Breakers watch how sessions fare, and keep them from where they fare badly. Nil: nothing does.
	Breakers *Breakers
	// SlowStart is how long the share of an upstream grows after its return, from a tenth to all of it. Zero: it has all of it at once.
	SlowStart time.Duration
	// Returns remembers what has come back. It is needed where SlowStart is set.
	Returns *Returns
	// Balance says how the upstream of a session is chosen.
	Balance Balance
	// Shut reports whether an upstream gets no sessions any more, by its name. It is for sessions that have begun before that was said, and
	// whose pool does not know it: nothing of such an upstream is tried from then on. It must not block. Nil: none is shut.
	Shut func(name string) bool
	// Random returns numbers that are evenly distributed. It is called by one goroutine at a time.
	Random func() uint64

	upstreams []Upstream
	usable    int // upstreams that are not drained
	names     *Names
	dynamic   bool
	literal   bool
	unix      bool
	limited   bool

	mu      sync.Mutex // held for a pick: it is never held while something blocks
	current []int64    // of smooth weighted round robin, by upstream
	last    int        // the upstream that was picked last
	points  uint64     // picks that need a number which is evenly distributed
	base    *view      // where all are in; made at the first pick
	views   map[situation]known
}

// NewPool returns a pool of these upstreams. Where none of them may get sessions, sessions find none ([ErrNone]).
func NewPool(upstreams []Upstream) *Pool {
	p := &Pool{upstreams: upstreams, literal: true, Random: rand.Uint64, last: -1, current: make([]int64, len(upstreams))}
	for i := range upstreams {
		u := &upstreams[i]
		u.fix()
		u.position, u.seed = i, HashString(u.Name)
		if u.Living == nil {
			u.Living = new(atomic.Int64)
		}
		if !u.Drained {
			p.usable++
		}
		p.dynamic = p.dynamic || u.Dynamic
		p.literal = p.literal && u.fixed != nil
		p.limited = p.limited || u.MaxSessions > 0
		p.unix = p.unix || u.Addr.Network == "unix"
	}
	return p
}

// Upstreams returns a copy of the upstreams, for another pool.
func (p *Pool) Upstreams() []Upstream { return slices.Clone(p.upstreams) }

// Has reports whether there is an upstream of that name.
func (p *Pool) Has(name string) bool {
	return slices.ContainsFunc(p.upstreams, func(u Upstream) bool { return u.Name == name })
}

// Len is how many upstreams there are.
func (p *Pool) Len() int { return len(p.upstreams) }

// At returns the upstream at a position. It is not to be changed.
func (p *Pool) At(position int) *Upstream { return &p.upstreams[position] }

func (p *Pool) shut(u *Upstream) bool { return p.Shut != nil && p.Shut(u.Name) }

// Succeed has turns go on where they are in the pool that this one takes the place of.
func (p *Pool) Succeed(before *Pool) {
	before.mu.Lock()
	defer before.mu.Unlock()
	current := make(map[string]int64, len(before.upstreams))
	for i := range before.upstreams {
		current[before.upstreams[i].Name] = before.current[i]
	}
	for i := range p.upstreams {
		p.current[i] = current[p.upstreams[i].Name]
	}
	if before.last >= 0 {
		name := before.upstreams[before.last].Name
		p.last = slices.IndexFunc(p.upstreams, func(u Upstream) bool { return u.Name == name })
	}
	p.points = before.points
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

// Prepare finds out what a pool needs to know of the address, so that copies of the upstream need not: where there are thousands of them and pools follow one
// another. The address must not change afterwards.
func (u *Upstream) Prepare() { u.fix() }

// fix finds out once what need not be found out for each session.
func (u *Upstream) fix() {
	if u.Dynamic || u.fixed != nil {
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

// at returns the only address in a situation, of an upstream that needs no lookup.
func (u *Upstream) at(s situation) []net.Addr {
	offset := 0
	if u.Addr.Ports() > 1 {
		offset = s.offset
	}
	if s.datagrams {
		return u.fixed.datagrams[offset : offset+1]
	}
	return u.fixed.streams[offset : offset+1]
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
