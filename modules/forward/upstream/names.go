package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

const (
	// freshFor is how long an answer is used before the name is looked up again, and how long a failure is remembered. Many
	// sessions may begin in a second, or find an upstream gone; and where it has moved, its name says so soon all the same.
	freshFor = time.Second
	// holdNotFound is how long a good answer is used while name servers say that there is no such name: one that has just started
	// may not know all its names yet. HAProxy holds an answer for as long (hold nx).
	holdNotFound = 30 * time.Second
	// maxChosen bounds the names that are remembered and that no config has. A client may choose them, by a placeholder.
	maxChosen = 4096
)

// Names is what is known of the names of upstreams: facts, which all handlers of the process share. Only the first session of a name
// waits for a lookup. Later ones get the last answer at once; where that is older than a second, it is looked up again meanwhile.
type Names struct {
	cfg   NamesConfig
	slots [2]chan struct{} // bound the lookups under way: of names that clients have chosen, and of those that a config has

	mu       sync.Mutex
	records  map[nameKey]*name
	chosen   int                // records that no config has
	unwanted map[*name]struct{} // see noteWanted
	queued   int                // lookups of such names that wait for a slot
	families map[service]bool
}

// NamesConfig is what a [Names] has to do. All functions but the first two are called with a lock held: they must not block, nor
// call methods of the Names. They may be nil.
type NamesConfig struct {
	// Lookup looks a name up, as [net.Resolver.LookupNetIP] does. Nil: the system does.
	Lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	// Confirm is called with the same after Lookup has found that there is no such name. It returns another error if that is not
	// certain. Nil: it is, unless Lookup is nil, too.
	Confirm func(ctx context.Context, network, host string) ([]netip.Addr, error)
	// Looked is called after each lookup.
	Looked func(err error)
	// Old is called once when sessions begin to use an old answer of a name that a config has, because of err. Over is called when
	// they do not any more: with nil when there is a new answer, with an error when the name server says that there is no such
	// name, or when no config has the name any more ([ErrReleased]).
	Old  func(network, host string, age time.Duration, err error)
	Over func(network, host string, err error)
}

// ErrReleased means that no config has a name any more.
var ErrReleased = errors.New("no config has the name any more")

// NewNames returns an empty memory.
func NewNames(cfg NamesConfig) *Names {
	if cfg.Lookup == nil {
		cfg.Lookup = net.DefaultResolver.LookupNetIP
		// Of several questions (A and AAAA, for each domain of the search list) the last answer counts. It may be that there is no such
		// name where others were not answered at all. A strict resolver reports those.
		cfg.Confirm = (&net.Resolver{StrictErrors: true}).LookupNetIP
	}
	n := &Names{cfg: cfg, records: make(map[nameKey]*name), unwanted: make(map[*name]struct{}), families: make(map[service]bool)}
	for i := range n.slots {
		n.slots[i] = make(chan struct{}, maxLookups)
	}
	return n
}

// nameKey is a name, and for which addresses it is looked up: "ip", "ip4" or "ip6".
type nameKey struct{ network, host string }

// nameKey returns the key of an address whose host is a name.
func (a Addr) nameKey() nameKey {
	if a.Host == "" {
		return nameKey{"ip" + strings.TrimLeft(a.Network, "tcpud"), "localhost"}
	}
	return nameKey{"ip" + strings.TrimLeft(a.Network, "tcpud"), strings.ToLower(a.Host)}
}

// name is what is known of one name. Names.mu guards it.
type name struct {
	nameKey
	held   int // how many upstreams of configs have the name
	usedAt time.Time

	ips []netip.Addr // the last good answer
	at  time.Time    // when it came

	err      error     // why the last lookup has failed; nil where it has not
	failedAt time.Time // when

	running *query
	old     bool        // Old was called
	retry   *time.Timer // of a name that is old
}

// hold says that an upstream of a config has a name, until release. The name is looked up, so that the first session need not wait.
func (n *Names) hold(k nameKey) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.records[k]
	if r == nil {
		r = &name{nameKey: k}
		n.records[k] = r
		n.chosen++
	}
	if r.held++; r.held == 1 {
		n.chosen--
		n.noteWanted(r)
	}
	if r.ips == nil && r.running == nil && time.Since(r.failedAt) >= freshFor {
		n.start(r)
	}
}

// release gives back what hold has taken. What is known of the name stays, for a config that has it again.
func (n *Names) release(k nameKey) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.records[k]
	if r.held--; r.held > 0 {
		return
	}
	n.chosen++
	r.over(n, ErrReleased)
	if r.running != nil && r.running.waiting == 0 {
		n.abandon(r)
	}
	if n.chosen > maxChosen {
		n.makeRoom()
	}
}

// errTooMany is the error of a session that would need one more lookup.
var errTooMany = errors.New("too many names are being looked up")

// record returns what is known of a name, nil where as many are being looked up as may be remembered.
func (n *Names) record(k nameKey) *name {
	r := n.records[k]
	if r == nil {
		if n.chosen >= maxChosen && !n.makeRoom() {
			return nil
		}
		r = &name{nameKey: k}
		n.records[k] = r
		n.chosen++
	}
	r.usedAt = time.Now()
	return r
}

// makeRoom forgets a name that no config has: of a few, which the map gives in any order, the one that was used least lately.
func (n *Names) makeRoom() bool {
	var oldest *name
	looks := 0
	for _, r := range n.records {
		free := r.held == 0 && r.running == nil
		if free && (oldest == nil || r.usedAt.Before(oldest.usedAt)) {
			oldest = r
		}
		if looks++; looks >= 16 && oldest != nil || looks == 256 {
			break
		}
	}
	if oldest == nil {
		return false
	}
	delete(n.records, oldest.nameKey)
	n.chosen--
	return true
}

// usable reports whether a session may use the last good answer.
func (r *name) usable(stale time.Duration) bool {
	age := time.Since(r.at)
	switch {
	case r.ips == nil:
		return false
	case r.err == nil:
		return age < freshFor || age <= stale
	case isNotFound(r.err):
		return age <= min(stale, holdNotFound)
	}
	return age <= stale
}

// isNotFound reports whether name servers say that a name does not exist, or has no address.
func isNotFound(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound
}

// answer is what is known of a name.
type answer struct {
	ips []netip.Addr
	err error // why there are none
}

// known returns what is known of a name, and false where a session has to wait for that. stale is how old an answer may be. A lookup
// is started if what is known is older than a second.
func (n *Names) known(k nameKey, stale time.Duration) (answer, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.knownLocked(n.record(k), stale)
}

func (n *Names) knownLocked(r *name, stale time.Duration) (answer, bool) {
	switch {
	case r == nil:
		return answer{err: errTooMany}, true
	case r.usable(stale):
		if r.err != nil && r.held > 0 && !r.old {
			r.old = true
			if n.cfg.Old != nil {
				n.cfg.Old(r.network, r.host, time.Since(r.at), r.err)
			}
			n.retryLater(r)
		}
		if r.running == nil && time.Since(r.at) >= freshFor && time.Since(r.failedAt) >= freshFor {
			n.start(r)
		}
		return answer{ips: r.ips}, true
	case r.err != nil && time.Since(r.failedAt) < freshFor:
		return answer{err: r.tooOld(r.err, stale)}, true
	}
	return answer{}, false
}

// fails reports whether the last lookup of a name has failed.
func (n *Names) fails(k nameKey) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.records[k]
	return r != nil && r.err != nil
}

// tooOld adds to err that there is an answer, which may not be used any more.
func (r *name) tooOld(err error, stale time.Duration) error {
	if r.ips == nil || stale == 0 || isNotFound(err) {
		return err
	}
	return fmt.Errorf("%w; the last answer is %s old, and stale is %s", err, time.Since(r.at).Round(time.Second), stale)
}

// find is known for a session that can wait: until ctx ends, or for up to limit. Sessions that wait for a name share one lookup.
func (n *Names) find(ctx context.Context, k nameKey, stale, limit time.Duration) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.record(k)
	if known, ok := n.knownLocked(r, stale); ok {
		return known.ips, known.err
	}
	q := r.running
	if q == nil {
		q = n.start(r)
	}
	q.waiting++
	n.noteWanted(r)
	n.mu.Unlock()
	err := q.wait(ctx, k.host, limit)
	n.mu.Lock()
	n.leave(r, q)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, err
	case err != nil:
		return nil, r.tooOld(err, stale)
	case q.err != nil:
		return nil, r.tooOld(q.err, stale)
	}
	return q.ips, nil
}

// last returns the last good answer for a name, however old, without asking for another.
func (n *Names) last(k nameKey) []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.records[k]; r != nil {
		return r.ips
	}
	return nil
}
