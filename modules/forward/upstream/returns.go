package upstream

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// maxReturns bounds the addresses and upstreams whose return is remembered. What is too many has all of its share at once.
const maxReturns = 16384

// Returns remembers when addresses and upstreams came back, for those pools that have them start slowly. All handlers share it: these are
// facts. It is empty while nobody asks, and when all that have come back have all of their share again.
type Returns struct {
	now func() time.Time

	longest atomic.Int64  // the longest slow start of any pool; 0: nobody asks
	count   atomic.Int32  // of what is remembered
	version atomic.Uint64 // changes when something comes back
	mu      sync.Mutex
	pools   map[time.Duration]int // how many ask, by their slow start
	addrs   map[key]time.Time
	names   map[string]time.Time
	tidied  time.Time
}

// NewReturns returns a memory that is empty.
func NewReturns(now func() time.Time) *Returns {
	return &Returns{now: now, pools: make(map[time.Duration]int), addrs: make(map[key]time.Time), names: make(map[string]time.Time)}
}

// Hold has returns remembered for at least a slow start, until release is called.
func (r *Returns) Hold(slowStart time.Duration) (release func()) {
	r.note(slowStart, 1)
	return sync.OnceFunc(func() { r.note(slowStart, -1) })
}

func (r *Returns) note(slowStart time.Duration, pools int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pools[slowStart] += pools; r.pools[slowStart] == 0 {
		delete(r.pools, slowStart)
	}
	longest := time.Duration(0)
	for d := range r.pools {
		longest = max(longest, d)
	}
	r.longest.Store(int64(longest))
	r.tidy(r.now())
}

// Address notes that an address that sessions go to is back: it has failed or was down, or its breaker was open. It does not block.
func (r *Returns) Address(addr net.Addr) { remember(r, r.addrs, keyOf(addr)) }

// Upstream notes that an upstream is back as a whole, such as from maintenance. name is that of the config. It does not block.
func (r *Returns) Upstream(name string) { remember(r, r.names, name) }

func remember[K comparable](r *Returns, in map[K]time.Time, k K) {
	if r.longest.Load() == 0 {
		return
	}
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.addrs)+len(r.names) >= maxReturns && now.Sub(r.tidied) >= time.Second {
		r.tidy(now)
	}
	if _, known := in[k]; !known && len(r.addrs)+len(r.names) >= maxReturns {
		return
	}
	in[k] = now
	r.count.Store(int32(len(r.addrs) + len(r.names)))
	r.version.Add(1)
}

// tidy forgets what has all of its share again.
func (r *Returns) tidy(now time.Time) {
	r.tidied = now
	before := now.Add(-time.Duration(r.longest.Load()))
	forget(r.addrs, before)
	forget(r.names, before)
	r.count.Store(int32(len(r.addrs) + len(r.names)))
}

func forget[K comparable](from map[K]time.Time, before time.Time) {
	for k, at := range from {
		if !at.After(before) {
			delete(from, k)
		}
	}
}

func (r *Returns) quiet() bool { return r == nil || r.count.Load() == 0 }

func (r *Returns) changes() uint64 {
	if r == nil {
		return 0
	}
	return r.version.Load()
}

// returned is what has come back within a slow start.
type returned struct {
	slowStart time.Duration
	now       time.Time
	addrs     map[key]time.Time
	names     map[string]time.Time
}

// look returns what has come back within a slow start, nil where nothing has.
func (r *Returns) look(slowStart time.Duration, now time.Time) *returned {
	if r.quiet() {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tidy(now)
	recent := &returned{slowStart, now, make(map[key]time.Time), make(map[string]time.Time)}
	copySince(recent.addrs, r.addrs, now.Add(-slowStart))
	copySince(recent.names, r.names, now.Add(-slowStart))
	if len(recent.addrs)+len(recent.names) == 0 {
		return nil
	}
	return recent
}

func copySince[K comparable](to, from map[K]time.Time, since time.Time) {
	for k, at := range from {
		if at.After(since) {
			to[k] = at
		}
	}
}

const (
	// wholeShare is the share of an upstream that has not come back lately, and leastShare that of one which comes back now. Weights
	// are multiplied by them.
	wholeShare = 100
	leastShare = 10
	// rampSteps is in how many steps a share grows, which are at least rampStep apart.
	rampSteps = 50
	rampStep  = 50 * time.Millisecond
)

// shareAfter grows linearly from leastShare to wholeShare.
func shareAfter(elapsed, slowStart time.Duration) int64 {
	if elapsed >= slowStart {
		return wholeShare
	}
	elapsed = max(elapsed, 0)
	return leastShare + int64(float64(wholeShare-leastShare)*float64(elapsed)/float64(slowStart))
}

func (r *returned) address(k key) int64 {
	if at, recent := r.addrs[k]; recent {
		return shareAfter(r.now.Sub(at), r.slowStart)
	}
	return wholeShare
}

func (r *returned) upstream(name string) int64 {
	if at, recent := r.names[name]; recent {
		return shareAfter(r.now.Sub(at), r.slowStart)
	}
	return wholeShare
}

// step is how long a share stays what it is.
func (r *returned) step() time.Duration { return max(r.slowStart/rampSteps, rampStep) }
