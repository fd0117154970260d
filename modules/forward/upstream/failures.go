package upstream

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Policy says when failures take an address out.
type Policy struct {
	// MaxFails is how many attempts have to fail within FailDuration.
	MaxFails int
	// FailDuration is for how long an address is out. It doubles each time that the address fails again when it is tried
	// after that, up to maxOut.
	FailDuration time.Duration
}

const (
	// maxOut is the longest time for which an address is out, unless FailDuration is longer.
	maxOut = 5 * time.Minute
	// maxRecords bounds the addresses that are remembered. A client may choose them, by a placeholder.
	maxRecords = 16384
	// proveFor is how long an address of datagrams that is tried again must not refuse any, to be taken for working. An
	// upstream that never replies can't show it in another way.
	proveFor = time.Second
)

// Failures remembers which addresses have failed, so that not every session has to find out by itself. All handlers with
// one Policy share it: what it has are facts about addresses. It is empty while all upstreams work.
type Failures struct {
	policy Policy
	now    func() time.Time
	tell   func(Change)

	count   atomic.Int32  // of records
	version atomic.Uint64 // changes when an address is out or in, or is tried again
	mu      sync.Mutex
	records map[key]*record
	forget  time.Time // when to look for records that are of no use any more
}

// Change is an address that was taken out, or that is back.
type Change struct {
	Name  string // of the upstream as configured
	Addr  net.Addr
	Out   bool
	Fails int           // how many attempts have failed
	For   time.Duration // for how long it is out, or was
	Err   error         // of the last attempt
}

// NewFailures returns a memory that is empty. tell is called with each change, by whoever reports an attempt or asks for
// an address: it must not block.
func NewFailures(policy Policy, now func() time.Time, tell func(Change)) *Failures {
	return &Failures{policy: policy, now: now, tell: tell, records: make(map[key]*record)}
}

// key is an address.
type key struct {
	ip        netip.AddrPort
	path      string // of a unix socket
	datagrams bool
}

func keyOf(addr net.Addr) key {
	switch a := addr.(type) {
	case *net.TCPAddr:
		return key{ip: a.AddrPort()}
	case *net.UDPAddr:
		return key{ip: a.AddrPort(), datagrams: true}
	}
	return key{path: addr.String()}
}

// record is what is known of one address.
type record struct {
	name  string
	addr  net.Addr
	fails []time.Time // within FailDuration, oldest first

	out    bool
	since  time.Time     // since when it is out, trials that failed included
	err    error         // of the last attempt that has failed
	at     time.Time     // when it was taken out, or came back
	length time.Duration // for how long it is out, or was last
	trial  time.Time     // when a session began to try it again; zero: none does

	failedAt time.Time // when the last attempt has failed
	lost     int       // attempts that have failed since it was in, while it is out
}

// proven reports whether an address of datagrams has refused none for so long that it is taken for working.
func (r *record) proven(now time.Time) bool {
	return !r.trial.IsZero() && keyOf(r.addr).datagrams && now.Sub(r.trial) >= proveFor
}

// until is when it may be tried again.
func (r *record) until() time.Time { return r.at.Add(r.length) }

// Failed notes an attempt that has failed because of the upstream. name is the upstream as configured. It reports whether
// the address was taken out for that.
func (f *Failures) Failed(name string, addr net.Addr, err error) (takenOut bool) {
	return f.report(func(now time.Time) Change {
		r := f.record(name, addr, err)
		if r != nil {
			r.failedAt = now
		}
		switch {
		case r == nil || r.out && now.Before(r.until()):
			return Change{} // began before it was taken out, or where all are out
		case r.out:
			return f.takeOut(r, 1, now, err)
		}
		for len(r.fails) > 0 && now.Sub(r.fails[0]) > f.policy.FailDuration {
			r.fails = r.fails[1:]
		}
		r.fails = append(r.fails, now)
		if len(r.fails) < f.policy.MaxFails {
			return Change{}
		}
		return f.takeOut(r, len(r.fails), now, err)
	})
}

// Works notes an attempt that has succeeded.
func (f *Failures) Works(addr net.Addr) {
	if f == nil || f.count.Load() == 0 {
		return
	}
	f.report(func(now time.Time) Change {
		if r := f.records[keyOf(addr)]; r != nil && r.out {
			return f.back(r, now)
		}
		return Change{}
	})
}

func (f *Failures) report(note func(now time.Time) Change) (takenOut bool) {
	if f == nil {
		return false
	}
	now := f.now()
	f.mu.Lock()
	change := note(now)
	f.tidy(now)
	f.mu.Unlock()
	if change.Addr != nil && f.tell != nil {
		f.tell(change)
	}
	return change.Out
}

// takeOut takes an address out, for twice as long as last time unless it has worked for so long since.
func (f *Failures) takeOut(r *record, fails int, now time.Time, err error) Change {
	length := f.policy.FailDuration
	if r.length > 0 && (r.out || now.Before(r.until())) {
		longest := max(maxOut, length)
		length = min(r.length, longest/2) * 2
	}
	if !r.out {
		r.since = now
	}
	r.out, r.at, r.length, r.trial, r.fails = true, now, length, time.Time{}, nil
	r.lost += fails
	f.version.Add(1)
	return Change{Name: r.name, Addr: r.addr, Out: true, Fails: fails, For: length, Err: err}
}

func (f *Failures) back(r *record, now time.Time) Change {
	f.version.Add(1)
	change := Change{Name: r.name, Addr: r.addr, For: now.Sub(r.at)}
	r.out, r.at, r.trial, r.lost = false, now, time.Time{}, 0
	return change
}

// record returns what is known of an address that has failed, nil where too many are remembered.
func (f *Failures) record(name string, addr net.Addr, err error) *record {
	k := keyOf(addr)
	r := f.records[k]
	if r == nil {
		if len(f.records) >= maxRecords && !f.makeRoom() {
			return nil
		}
		r = &record{addr: addr}
		f.records[k] = r
		f.count.Store(int32(len(f.records)))
	}
	r.name, r.err = name, err
	return r
}

// makeRoom forgets an address that is not out. It looks at a few: most of them are not.
func (f *Failures) makeRoom() bool {
	looks := 0
	for k, r := range f.records {
		if !r.out {
			delete(f.records, k)
			return true
		}
		if looks++; looks == 16 {
			break
		}
	}
	return false
}

// tidy forgets now and then the addresses of which nothing matters any more.
func (f *Failures) tidy(now time.Time) {
	if now.Before(f.forget) {
		return
	}
	f.forget = now.Add(f.policy.FailDuration)
	for k, r := range f.records {
		recent := len(r.fails) > 0 && now.Sub(r.fails[len(r.fails)-1]) <= f.policy.FailDuration
		abandoned := r.out && now.Sub(r.until()) > maxOut // no session has asked for it
		if abandoned || !r.out && !recent && !now.Before(r.until()) {
			delete(f.records, k)
		}
	}
	f.count.Store(int32(len(f.records)))
}

func (f *Failures) changes() uint64 {
	if f == nil {
		return 0
	}
	return f.version.Load()
}

// quiet reports whether nothing has failed. It costs as good as nothing.
func (f *Failures) quiet() bool { return f == nil || f.count.Load() == 0 }

// out reports whether an address gets no session now. Of the sessions that ask for an address when its time is over, one
// is told that it is not: this session tries it, which shows whether it works. peek is for a caller that only looks.
func (f *Failures) out(addr net.Addr, peek bool) (out bool) {
	f.report(func(now time.Time) Change {
		r := f.records[keyOf(addr)]
		switch {
		case r == nil || !r.out:
			return Change{}
		case now.Before(r.until()):
			out = true
		case r.trial.IsZero():
		case r.proven(now):
			return f.back(r, r.trial) // nothing was refused since then
		case now.Sub(r.trial) < f.policy.FailDuration:
			out = true // another session tries it
		}
		if !out && !peek {
			r.trial = now
			f.version.Add(1)
		}
		return Change{}
	})
	return out
}

// look returns the addresses that get no session now, with when they were taken out first, and for how long this is right; zero: until the
// version changes.
func (f *Failures) look(now time.Time) (out map[key]time.Time, right time.Time) {
	if f.quiet() {
		return nil, right
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, r := range f.records {
		if !r.out {
			continue
		}
		until := r.until()
		if !now.Before(until) {
			if r.trial.IsZero() {
				continue
			}
			if until = r.trial.Add(f.policy.FailDuration); id.datagrams && f.policy.FailDuration > proveFor {
				until = r.trial.Add(proveFor)
			}
			if !now.Before(until) {
				continue
			}
		}
		if out == nil {
			out = make(map[key]time.Time)
		}
		out[id] = r.since
		right = sooner(right, until)
	}
	return out, right
}

// split divides addresses into those that are in and those that are out.
func (f *Failures) split(addrs []net.Addr) (in, out []net.Addr) {
	if f.quiet() {
		return addrs, nil
	}
	for i, addr := range addrs {
		if f.out(addr, false) {
			out = append(out, addrs[i])
		} else {
			in = append(in, addrs[i])
		}
	}
	return in, out
}

// Out calls see with each address that is out.
func (f *Failures) Out(see func(name string, addr net.Addr)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.records {
		if r.out {
			see(r.name, r.addr)
		}
	}
}
