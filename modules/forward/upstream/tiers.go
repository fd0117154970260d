package upstream

import (
	"net"
	"time"
)

// overprovision is what a tier is trusted with beyond the share of it that is in: it takes all sessions as long as 1.4 times
// that share reaches 1, as a priority level of Envoy does.
const overprovision = 1.4

// tier is the upstreams of one priority.
type tier struct {
	priority int
	until    float64 // the tier takes the sessions whose point is below this, and not below that of the tier before
	near     *group  // those in the gateway's own zone
	far      *group  // the others; both nil where there are none
}

// view is the upstreams that are in, as picks see them. Nothing of it changes but the turns in its groups.
type view struct {
	tiers  []tier
	allOut bool // none is in, so all are tried
}

// split gives each tier its share of the sessions. healthy and all are sums of weights.
func split(tiers []tier, healthy, all []int64) {
	health, sum := make([]float64, len(tiers)), 0.0
	for i := range tiers {
		if all[i] > 0 {
			health[i] = min(1, overprovision*float64(healthy[i])/float64(all[i]))
		}
		sum += health[i]
	}
	// Where all tiers together are not enough, what is left of them takes everything.
	scale, until, last := 1/min(1, sum), 0.0, 0
	for i := range tiers {
		if health[i] > 0 {
			last = i
		}
		until = min(1, until+health[i]*scale)
		tiers[i].until = until
	}
	for i := last; i < len(tiers); i++ {
		tiers[i].until = 1
	}
}

// newView returns a view of the upstreams that are in. last is the upstream that was picked last, and base the view in
// which all are in, nil for that itself.
func (p *Pool) newView(in func(u *Upstream) bool, last int, base *view) *view {
	highest := 0
	for i := range p.upstreams {
		highest = max(highest, p.upstreams[i].Priority)
	}
	near, far := make([][]member, highest+1), make([][]member, highest+1)
	healthy, all := make([]int64, highest+1), make([]int64, highest+1)
	sum := int64(0)
	for i := range p.upstreams {
		u := &p.upstreams[i]
		if u.Drained {
			continue
		}
		weight := u.weight()
		all[u.Priority] += weight
		if !in(u) {
			continue
		}
		healthy[u.Priority] += weight
		sum += weight
		side := &far[u.Priority]
		if u.Near {
			side = &near[u.Priority]
		}
		*side = append(*side, member{i, weight, u.Living, &p.current[i], u.seed})
	}
	if sum == 0 && base != nil {
		return &view{tiers: base.tiers, allOut: true}
	}
	v := &view{tiers: make([]tier, highest+1)}
	for i := range v.tiers {
		t := &v.tiers[i]
		t.priority, t.near, t.far = i, newSide(near[i], last), newSide(far[i], last)
		p.remember(t, base)
	}
	split(v.tiers, healthy, all)
	return v
}

func newSide(members []member, last int) *group {
	if len(members) == 0 {
		return nil
	}
	return newGroup(members, last)
}

// remember has the groups of a tier share the winners of hashes with those of the view in which all are in.
func (p *Pool) remember(t *tier, base *view) {
	if !p.Balance.Keyed() {
		return
	}
	for _, side := range [...]struct{ of, all *group }{{t.near, baseGroup(base, t, true)}, {t.far, baseGroup(base, t, false)}} {
		switch {
		case side.of == nil:
		case side.all != nil:
			side.of.hashed = side.all.hashed
		case len(side.of.members) > compared:
			side.of.hashed = &owners{all: side.of}
		}
	}
}

func baseGroup(base *view, t *tier, near bool) *group {
	switch {
	case base == nil:
		return nil
	case near:
		return base.tiers[t.priority].near
	}
	return base.tiers[t.priority].far
}

// at returns the tier of a point from 0 to 1.
func (v *view) at(point float64) *tier {
	for i := range v.tiers {
		if point < v.tiers[i].until {
			return &v.tiers[i]
		}
	}
	return &v.tiers[len(v.tiers)-1]
}

// first returns the group that a tier's sessions go to.
func (t *tier) first() *group {
	if t.near != nil {
		return t.near
	}
	return t.far
}

// situation is what the addresses of upstreams depend on.
type situation struct {
	offset    int
	datagrams bool
}

// known is a view, and how long it is right.
type known struct {
	*view
	version uint64 // of the failures
	until   time.Time
}

// maxViews bounds the views that are kept: upstreams that are ranges have one for each port.
const maxViews = 64

// namesChange is how long a view is used that depends on what names stand for.
const namesChange = time.Second

// viewFor returns the view for a session. It costs as good as nothing while nothing has failed.
func (p *Pool) viewFor(s situation) *view {
	if p.base == nil {
		p.base = p.newView(func(*Upstream) bool { return true }, p.last, nil)
	}
	if p.Failures.quiet() {
		p.views = nil
		return p.base
	}
	if k, ok := p.views[s]; ok && k.version == p.Failures.version.Load() && (k.until.IsZero() || p.Failures.now().Before(k.until)) {
		return k.view
	}
	out, k := p.Failures.look()
	k.view = p.base
	if p.anyOut(s, out) {
		k.view = p.newView(func(u *Upstream) bool { return !p.out(u, s, out) }, p.last, p.base)
	}
	if !p.literal {
		if soon := p.Failures.now().Add(namesChange); k.until.IsZero() || soon.Before(k.until) {
			k.until = soon
		}
	}
	if p.views == nil || len(p.views) >= maxViews {
		p.views = make(map[situation]known)
	}
	p.views[s] = k
	return k.view
}

func (p *Pool) anyOut(s situation, out map[key]struct{}) bool {
	if len(out) == 0 {
		return false
	}
	for i := range p.upstreams {
		if p.out(&p.upstreams[i], s, out) {
			return true
		}
	}
	return false
}

// out reports whether no address of an upstream is in. Of one that only a session knows, or whose name is not known, it is not known, so
// it is in. Whatever else may take an upstream out belongs here.
func (p *Pool) out(u *Upstream, s situation, out map[key]struct{}) bool {
	if u.Dynamic {
		return false
	}
	if u.fixed != nil {
		return isOut(out, u.at(s)[0])
	}
	offset := 0
	if u.Addr.Ports() > 1 {
		offset = s.offset
	}
	ips := p.names.last(u.Addr.nameKey())
	for _, ip := range ips {
		if !isOut(out, u.Addr.at(ip, offset, s.datagrams)) {
			return false
		}
	}
	return len(ips) > 0
}

func isOut(out map[key]struct{}, addr net.Addr) bool {
	_, is := out[keyOf(addr)]
	return is
}
