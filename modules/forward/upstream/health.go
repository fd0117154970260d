package upstream

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Thresholds say how many checks in a row change what is known of an address.
type Thresholds struct {
	// Fails is how many have to fail until the address is down.
	Fails int
	// Passes is how many have to pass until it is up again.
	Passes int
}

// verdict is what checks say of one address. It begins as up.
type verdict struct {
	down   bool
	streak int // checks in a row that say otherwise
}

// note takes the result of a check. It reports whether that has changed the verdict.
func (v *verdict) note(t Thresholds, passed bool) (changed bool) {
	if passed != v.down {
		v.streak = 0
		return false
	}
	needed := t.Fails
	if v.down {
		needed = t.Passes
	}
	if v.streak++; v.streak < needed {
		return false
	}
	v.down, v.streak = !v.down, 0
	return true
}

// Where says which address is checked in place of one that sessions go to.
type Where struct {
	// Port is the port that is checked. Zero: that of the sessions.
	Port uint16
	// Network is what the check connects with, "tcp" or "udp". Empty: that of the sessions.
	Network string
}

func (w Where) of(k key) key {
	if k.path != "" {
		return k
	}
	if w.Port > 0 {
		k.ip = netip.AddrPortFrom(k.ip.Addr(), w.Port)
	}
	if w.Network != "" {
		k.datagrams = w.Network == "udp"
	}
	return k
}

// Health is what checks have found out about addresses: facts, which all handlers with the same checks share. It costs as good as nothing
// while all addresses are up.
type Health struct {
	thresholds Thresholds
	where      Where

	count   atomic.Int32  // of addresses that are down
	version atomic.Uint64 // changes when one goes down or comes up
	mu      sync.RWMutex
	records map[key]*Checked
}

// Checked is an address that is checked.
type Checked struct {
	// Addr is what is checked, with the port and the network of the check.
	Addr net.Addr

	of *Health
	key
	verdict
	report Report
}

// Report is what is known of an address that is checked.
type Report struct {
	// Down: sessions try it last.
	Down bool
	// Since is when that began; zero where it has been up from the start.
	Since time.Time
	// At is when the last check ended; zero: there was none.
	At time.Time
	// Err is why the last check has failed, nil where it has passed.
	Err error
	// Fails is how many checks have failed in a row.
	Fails int
}

// NewHealth returns a memory of addresses that are all up.
func NewHealth(thresholds Thresholds, where Where) *Health {
	return &Health{thresholds: thresholds, where: where, records: make(map[key]*Checked)}
}

// Targets returns the addresses to check for an upstream, each once: those of its host or, where that is a name, those that the name stands
// for. datagrams: sessions send it datagrams.
func (h *Health) Targets(a Addr, ips []netip.Addr, datagrams bool) (targets []net.Addr) {
	if a.Network == "unix" {
		return []net.Addr{&net.UnixAddr{Net: a.Network, Name: a.Host}}
	}
	if ip, err := netip.ParseAddr(a.Host); err == nil {
		ips = []netip.Addr{ip}
	}
	seen := make(map[key]struct{}, len(ips))
	for _, ip := range ips {
		for offset := range a.Ports() {
			k := h.where.of(keyOf(a.at(ip, offset, datagrams)))
			if _, twice := seen[k]; twice {
				continue
			}
			seen[k] = struct{}{}
			targets = append(targets, k.addr())
		}
	}
	return targets
}

// CheckedBy returns the addresses of an upstream to which sessions go and for which a target is checked.
func (h *Health) CheckedBy(target net.Addr, a Addr) (addrs []net.Addr) {
	want := keyOf(target)
	if want.path != "" {
		return []net.Addr{target}
	}
	for offset := range a.Ports() {
		for _, datagrams := range [...]bool{false, true} {
			addr := a.at(want.ip.Addr(), offset, datagrams)
			if h.where.of(keyOf(addr)) == want && a.Carries(datagrams) == nil {
				addrs = append(addrs, addr)
			}
		}
	}
	return addrs
}

func (k key) addr() net.Addr {
	switch {
	case k.path != "":
		return &net.UnixAddr{Net: "unix", Name: k.path}
	case k.datagrams:
		return net.UDPAddrFromAddrPort(k.ip)
	}
	return net.TCPAddrFromAddrPort(k.ip)
}

// Add begins to remember an address to check. It is up, unless it is known to be down.
func (h *Health) Add(target net.Addr, down bool) *Checked {
	c := &Checked{Addr: target, of: h, key: keyOf(target), verdict: verdict{down: down}}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.records[c.key] = c
	if down {
		c.report.Down, c.report.Since = true, time.Now()
		h.count.Add(1)
		h.version.Add(1)
	}
	return c
}

// Remove forgets it. Sessions are not kept from it any more.
func (c *Checked) Remove() {
	h := c.of
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.records[c.key] != c {
		return
	}
	delete(h.records, c.key)
	if c.down {
		h.count.Add(-1)
		h.version.Add(1)
	}
}

// Note takes the result of a check, nil where it has passed. It reports whether the address is down or up since then, and for how long it was
// what it was before: zero where it had been up from the start.
func (c *Checked) Note(err error) (now Report, changed bool, lasted time.Duration) {
	h := c.of
	h.mu.Lock()
	defer h.mu.Unlock()
	r := &c.report
	r.At, r.Err = time.Now(), err
	if r.Fails++; err == nil {
		r.Fails = 0
	}
	changed = c.note(h.thresholds, err == nil)
	if !changed {
		return *r, false, 0
	}
	if !r.Since.IsZero() {
		lasted = r.At.Sub(r.Since)
	}
	r.Down, r.Since = c.down, r.At
	if h.records[c.key] == c {
		if c.down {
			h.count.Add(1)
		} else {
			h.count.Add(-1)
		}
		h.version.Add(1)
	}
	return *r, true, lasted
}

// Report returns what is known of it.
func (c *Checked) Report() Report {
	c.of.mu.RLock()
	defer c.of.mu.RUnlock()
	return c.report
}

// Of returns what is known of an address that sessions go to. It reports false where that is not checked.
func (h *Health) Of(addr net.Addr) (Report, bool) {
	if h == nil {
		return Report{}, false
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	if c := h.records[h.where.of(keyOf(addr))]; c != nil {
		return c.report, true
	}
	return Report{}, false
}

// Down returns the addresses that are down.
func (h *Health) Down() (down []net.Addr) {
	if h.quiet() {
		return nil
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, c := range h.records {
		if c.verdict.down {
			down = append(down, c.Addr)
		}
	}
	return down
}

// CheckKey identifies the address that is checked for one that sessions go to.
type CheckKey struct{ key }

// KeyOf returns it for an address that sessions go to, and for one that is checked.
func (h *Health) KeyOf(addr net.Addr) CheckKey { return CheckKey{h.where.of(keyOf(addr))} }

// quiet reports whether no address is down.
func (h *Health) quiet() bool { return h == nil || h.count.Load() == 0 }

func (h *Health) changes() uint64 {
	if h == nil {
		return 0
	}
	return h.version.Load()
}

// down reports whether checks say that an address that sessions go to is down.
func (h *Health) down(addr net.Addr) bool {
	if h.quiet() {
		return false
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	c := h.records[h.where.of(keyOf(addr))]
	return c != nil && c.verdict.down
}

// split divides addresses into those that are up and those that are down.
func (h *Health) split(addrs []net.Addr) (up, down []net.Addr) {
	if h.quiet() {
		return addrs, nil
	}
	for _, addr := range addrs {
		if h.down(addr) {
			down = append(down, addr)
		} else {
			up = append(up, addr)
		}
	}
	return up, down
}

// Addresses returns what the name in an address stands for, without waiting: the last good answer, up to stale old. Where that is older than a
// second, the name is looked up again meanwhile. It reports false where that is not known.
func (n *Names) Addresses(a Addr, stale time.Duration) ([]netip.Addr, bool) {
	known, ok := n.known(a.nameKey(), stale)
	return known.ips, ok && known.err == nil
}

// HasName reports whether the host is a name, which has to be looked up.
func (a Addr) HasName() bool {
	if a.Network == "unix" {
		return false
	}
	_, err := netip.ParseAddr(a.Host)
	return err != nil
}
