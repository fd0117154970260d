package check

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// Group checks the upstreams that have one [Spec]: each of their addresses once, however many handlers hold it.
type Group struct {
	spec    Spec
	prober  *prober
	checker *Checker
	health  *upstream.Health
	tell    func(Result)

	mu      sync.Mutex
	held    map[heldKey]*Held
	targets map[upstream.CheckKey]*target
}

// Outcome is what became of a check.
type Outcome string

// The outcomes.
const (
	Passed Outcome = "passed"
	Failed Outcome = "failed"
	// NotMade: this system could not make the check. It says nothing about the upstream.
	NotMade Outcome = "not_made"
)

// Result is a check that is over.
type Result struct {
	Group *Group
	// Upstream is the name of one of the upstreams with the address.
	Upstream string
	// Addr is the address that was checked.
	Addr    net.Addr
	Outcome Outcome
	Err     error // of this check
	// Changed: the address is down or up since this check, as Report says. It was the other one for Lasted, zero where it had been
	// from the start.
	Changed bool
	Lasted  time.Duration
	Report  upstream.Report
	// Back are the addresses that sessions go to again, where the address is up since this check.
	Back []net.Addr
}

// NewGroup returns a group that checks nothing yet. secure is needed where the spec has TLS. tell is called with each result: it must not block, nor call methods of the Group but
// Spec and Health.
func NewGroup(checker *Checker, spec Spec, secure Secure, tell func(Result)) (*Group, error) {
	prober, err := spec.prepare()
	if err != nil {
		return nil, err
	}
	prober.secure = secure
	return &Group{
		spec: spec, prober: prober, checker: checker, tell: tell,
		health: upstream.NewHealth(spec.Thresholds, spec.Where()),
		held:   make(map[heldKey]*Held), targets: make(map[upstream.CheckKey]*target),
	}, nil
}

// Spec returns what is checked.
func (g *Group) Spec() Spec { return g.spec }

// Health returns what is known of the addresses.
func (g *Group) Health() *upstream.Health { return g.health }

type heldKey struct {
	name      string
	datagrams bool
}

// Held is an upstream that is checked.
type Held struct {
	heldKey
	of      *Group
	addr    upstream.Addr
	preface []byte
	names   *upstream.Names
	stale   time.Duration
	holders int
	follow  *task     // looks what the name stands for; nil where there is none
	targets []*target // Group.mu guards them
}

// target is an address that is checked.
type target struct {
	of      *Group
	key     upstream.CheckKey
	checked *upstream.Checked
	held    []*Held // which have it
	task    *task

	// How TLS is spoken with it, and the host that this is for. Only begin has them.
	host  string
	speak func() *tls.Config
}

// Wanted is an upstream to check.
type Wanted struct {
	Name string // as configured
	Addr upstream.Addr
	// Datagrams: sessions send it datagrams.
	Datagrams bool
	// Names knows what its name stands for, and Stale is how old an answer may be. Not used where the host is an address.
	Names *upstream.Names
	Stale time.Duration
	// Preface is sent first, before a handshake, and in front of a datagram. Upstreams of one name and one Spec have the same.
	Preface []byte
	// Down tells whether an address that is not checked yet is known to be down. Nil: none is. It must not call methods of the Group.
	Down func(addr net.Addr) bool
}

// Hold has an upstream checked until Release.
func (g *Group) Hold(w Wanted) *Held {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := heldKey{w.Name, w.Datagrams}
	if g.spec.Where().Network != "" {
		key.datagrams = false // the same check
	}
	h := g.held[key]
	if h == nil {
		h = &Held{heldKey: key, of: g, addr: w.Addr, preface: w.Preface, names: w.Names, stale: w.Stale}
		g.held[key] = h
		var ips []netip.Addr
		if h.addr.HasName() {
			ips, _ = h.names.Addresses(h.addr, h.stale)
			h.follow = &task{every: max(g.spec.Interval, followEvery), begin: h.look}
			g.checker.add(h.follow)
		}
		h.set(g.health.Targets(h.addr, ips, h.datagrams), w.Down)
	}
	h.holders++
	return h
}

// followEvery is how often it is looked at least what a name stands for: answers are not renewed more often.
const followEvery = time.Second

// Release gives back what Hold has taken. It returns no error.
func (h *Held) Release() error {
	g := h.of
	g.mu.Lock()
	defer g.mu.Unlock()
	if h.holders--; h.holders > 0 {
		return nil
	}
	delete(g.held, h.heldKey)
	if h.follow != nil {
		g.checker.remove(h.follow)
	}
	h.set(nil, nil)
	return nil
}

// look checks what the name stands for now. Where that is not known, it goes on with what it was.
func (h *Held) look() *exchange {
	ips, known := h.names.Addresses(h.addr, h.stale)
	if !known {
		return nil
	}
	g := h.of
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held[h.heldKey] == h {
		h.set(g.health.Targets(h.addr, ips, h.datagrams), nil)
	}
	return nil
}

// set has the upstream have these addresses. Group.mu is locked.
func (h *Held) set(addrs []net.Addr, down func(net.Addr) bool) {
	before := h.targets
	h.targets = make([]*target, 0, len(addrs))
	for _, addr := range addrs {
		h.targets = append(h.targets, h.of.target(addr, h, down))
	}
	kept := make(map[*target]struct{}, len(h.targets))
	for _, t := range h.targets {
		kept[t] = struct{}{}
	}
	for _, t := range before {
		if _, still := kept[t]; !still {
			t.leave(h)
		}
	}
}

func (g *Group) target(addr net.Addr, h *Held, down func(net.Addr) bool) *target {
	key := g.health.KeyOf(addr)
	t := g.targets[key]
	if t == nil {
		t = &target{of: g, key: key, checked: g.health.Add(addr, down != nil && down(addr))}
		t.task = &task{every: g.spec.Interval, timeout: g.spec.Timeout, begin: t.begin, over: t.over}
		g.targets[key] = t
		g.checker.add(t.task)
	}
	if !slices.Contains(t.held, h) {
		t.held = append(t.held, h)
	}
	return t
}

// leave ends the checks of an address that no upstream has any more.
func (t *target) leave(h *Held) {
	t.held = slices.DeleteFunc(t.held, func(other *Held) bool { return other == h })
	if len(t.held) == 0 {
		delete(t.of.targets, t.key)
		t.of.checker.remove(t.task)
		t.checked.Remove()
	}
}

func (t *target) begin() *exchange {
	t.of.mu.Lock()
	if len(t.held) == 0 {
		t.of.mu.Unlock()
		return nil // nobody has it any more
	}
	addr, preface := t.held[0].addr, t.held[0].preface
	t.of.mu.Unlock()
	host := addr.Host
	switch {
	case addr.Network == "unix":
		host = ""
	case host == "":
		host = "localhost"
	}
	if p := t.of.prober; p.TLS != "" && (t.speak == nil || t.host != host) {
		t.host, t.speak = host, p.secure(host)
	}
	return t.of.prober.exchange(t.checked.Addr, host, t.speak).after(preface)
}

// over takes the result of a check.
func (t *target) over(err error) {
	g := t.of
	if err == errTimeout { //nolint:errorlint // it is never wrapped
		if err = nil; !g.prober.silent() {
			err = fmt.Errorf("no answer within %s", g.spec.Timeout)
		}
	}
	r := Result{Group: g, Addr: t.checked.Addr, Outcome: Passed, Err: err}
	g.mu.Lock()
	if len(t.held) == 0 {
		g.mu.Unlock()
		return
	}
	r.Upstream = t.held[0].name
	switch {
	case isLocal(err):
		r.Outcome, r.Report = NotMade, t.checked.Report()
	default:
		if err != nil {
			r.Outcome = Failed
		}
		r.Report, r.Changed, r.Lasted = t.checked.Note(err)
	}
	if r.Changed && !r.Report.Down {
		for _, h := range t.held {
			r.Back = append(r.Back, g.health.CheckedBy(r.Addr, h.addr)...)
		}
	}
	g.mu.Unlock()
	g.tell(r)
}

// Each calls see with each upstream that is held, and whether one of its addresses is up. One of which no address is known is up.
func (g *Group) Each(see func(name string, up bool)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, h := range g.held {
		isDown := func(t *target) bool { return t.checked.Report().Down }
		all := len(h.targets) > 0 && !slices.ContainsFunc(h.targets, func(t *target) bool { return !isDown(t) })
		see(h.name, !all)
	}
}
