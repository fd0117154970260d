package upstream

import "time"

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
	allOut bool     // none is in, so all are tried
	none   bool     // the breakers of all are open, so none is tried
	spared []uint64 // those that fail and are in all the same, because of MaxEjected: a bit for each, nil where there are none
	closed []uint64 // those whose breaker is open
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
func (p *Pool) newView(all []judgment, last int, base *view) *view {
	highest := 0
	for i := range p.upstreams {
		highest = max(highest, p.upstreams[i].Priority)
	}
	near, far := make([][]member, highest+1), make([][]member, highest+1)
	healthy, sums := make([]int64, highest+1), make([]int64, highest+1)
	for i := range p.upstreams {
		u := &p.upstreams[i]
		if u.Drained {
			continue
		}
		sums[u.Priority] += u.weight()
		if all[i].standing != standsIn {
			continue
		}
		healthy[u.Priority] += u.weight()
		side := &far[u.Priority]
		if u.Near {
			side = &near[u.Priority]
		}
		*side = append(*side, member{i, u.weight() * all[i].share, u.Living, &p.current[i], u.seed})
	}
	v := &view{tiers: make([]tier, highest+1)}
	for i := range v.tiers {
		t := &v.tiers[i]
		t.priority, t.near, t.far = i, newSide(near[i], last), newSide(far[i], last)
		p.remember(t, base)
	}
	split(v.tiers, healthy, sums)
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
	version uint64 // of the facts
	until   time.Time
}

// maxViews bounds the views that are kept: upstreams that are ranges have one for each port.
const maxViews = 64

// namesChange is how long a view is used that depends on what names stand for.
const namesChange = time.Second

// viewFor returns the view for a session. It costs as good as nothing while nothing is wrong.
func (p *Pool) viewFor(s situation) *view {
	if p.base == nil {
		p.base = p.newView(p.judge(s, new(facts)), p.last, nil)
	}
	if p.quiet() {
		p.views = nil
		return p.base
	}
	version := p.changes() // before the facts, which may change meanwhile
	if k, ok := p.views[s]; ok && k.version == version && (k.until.IsZero() || p.now().Before(k.until)) {
		return k.view
	}
	now := p.now()
	f, until := p.look(now)
	if !p.literal {
		until = sooner(until, now.Add(namesChange))
	}
	k := known{view: p.base, version: version, until: until}
	if !f.none() {
		k.view = p.viewOf(p.judge(s, &f))
	}
	if p.views == nil || len(p.views) >= maxViews {
		p.views = make(map[situation]known)
	}
	p.views[s] = k
	return k.view
}

// viewOf makes a view of what facts come to.
func (p *Pool) viewOf(all []judgment) *view {
	var number [standsClosed + 1]int
	var closed []uint64
	whole := true // nothing is wrong
	for i := range all {
		if p.upstreams[i].Drained {
			continue
		}
		number[all[i].standing]++
		whole = whole && all[i] == judgment{share: p.scale()}
		if all[i].standing == standsClosed {
			closed = set(closed, i, len(all))
		}
	}
	var v *view
	switch {
	case whole:
		return p.base
	case number[standsIn] > 0:
		spared := p.eject(all)
		v = p.newView(all, p.last, p.base)
		v.spared = spared
	case number[standsFailing]+number[standsDown] == 0:
		return &view{tiers: p.base.tiers, none: true, closed: closed}
	case number[standsFailing] > 0 && number[standsDown] > 0: // the last ones that checks find up are not ejected
		spared := p.spare(all)
		v = p.newView(all, p.last, p.base)
		v.spared = spared
	case closed == nil:
		return &view{tiers: p.base.tiers, allOut: true}
	default: // what may be tried at all is tried
		for i := range all {
			if all[i].standing != standsClosed {
				all[i].standing = standsIn
			}
		}
		v = p.newView(all, p.last, p.base)
		v.allOut = true
	}
	v.closed = closed
	return v
}
