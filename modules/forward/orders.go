package forward

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/events"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
)

// orders are what was said of upstreams at run time, by their names as configured. An order is about a server, so it holds for all
// handlers that name it. They do not change: a change makes others.
type orders map[string]order

// order is what was said of one upstream.
type order struct {
	state  runState
	weight int // noWeight: that of the config
	at     time.Time
}

const noWeight = -1

// runState is how an upstream was set.
type runState uint8

const (
	ready runState = iota
	drain          // it gets no new sessions
	maint          // and nothing else tries it either
)

var runStates = [...]string{"ready", "drain", "maint"}

func (s runState) String() string { return runStates[s] }

func (o order) weightField() zap.Field {
	if o.weight == noWeight {
		return zap.Skip()
	}
	return zap.Int("weight", o.weight)
}

// shut reports whether the upstream gets no new sessions.
func (o order) shut() bool { return o.state != ready || o.weight == 0 }

// none reports whether all is as the config has it.
func (o order) none() bool { return o.state == ready && o.weight == noWeight }

// given is what a config says of an upstream that was set at run time.
type given struct {
	weight  int
	drained bool
}

func (g given) restore(u *upstream.Upstream) {
	u.Weight, u.Drained, u.Maint = g.weight, g.drained, false
}

// judge has upstreams be as they were set. It returns what the config says of those.
func (o *orders) judge(upstreams []upstream.Upstream) (configured map[int]given) {
	if o == nil {
		return nil
	}
	for i := range upstreams {
		u := &upstreams[i]
		set, is := (*o)[u.Name]
		if !is {
			continue
		}
		if configured == nil {
			configured = make(map[int]given)
		}
		configured[i] = given{u.Weight, u.Drained}
		if set.weight != noWeight {
			u.Weight, u.Drained = set.weight, set.weight == 0
		}
		u.Drained, u.Maint = u.Drained || set.state != ready, set.state == maint
	}
	return configured
}

// of returns what was said of an upstream.
func (o *orders) of(name string) order {
	if o != nil {
		if set, is := (*o)[name]; is {
			return set
		}
	}
	return order{weight: noWeight}
}

// atRunTime has what is set now. It holds until the process ends, whatever configs come and go.
var atRunTime = new(allOrders)

type allOrders struct {
	mu  sync.Mutex             // held by changes
	now atomic.Pointer[orders] // nil where nothing is set
}

// set gives an upstream the order that to makes of the one that it has. When set returns, all handlers that have the upstream go by it,
// except for those that the error tells of.
func (a *allOrders) set(name string, to func(order) order) error {
	if set, changed := a.change(name, to); changed {
		events.Report(logqueue.Default("forward"), events.UpstreamSet, events.Info, "upstream set at run time",
			zap.String("upstream", name), zap.Stringer("state", set.state), set.weightField())
	}
	var errs []error
	for _, h := range handlers.newestFirst() {
		errs = append(errs, h.judge(name))
	}
	return errors.Join(errs...)
}

// maxAbsent bounds the orders of upstreams that no config has.
const maxAbsent = 1000

// change sets an upstream to what to makes of its order. It returns that, and whether it is another one.
func (a *allOrders) change(name string, to func(order) order) (set order, changed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now.Load()
	before := now.of(name)
	set = to(before)
	if set.state == before.state && set.weight == before.weight {
		return before, false
	}
	next := make(orders)
	if now != nil {
		next = maps.Clone(*now)
	}
	if before.shut() && !set.shut() {
		returns.Upstream(name)
	}
	set.at = time.Now()
	next[name] = set
	if set.none() {
		delete(next, name)
	}
	next.forgetAbsent(maxAbsent)
	if len(next) == 0 {
		a.now.Store(nil)
	} else {
		a.now.Store(&next)
	}
	return set, true
}

// forgetAbsent forgets what was set of upstreams that no config has, but for those that were set last.
func (o orders) forgetAbsent(most int) {
	var absent []string
	for name := range o {
		if !counts.Held(name) {
			absent = append(absent, name)
		}
	}
	if len(absent) <= most {
		return
	}
	slices.SortFunc(absent, func(a, b string) int { return o[b].at.Compare(o[a].at) })
	for _, name := range absent[most:] {
		delete(o, name)
	}
}

// shut reports whether an upstream gets no new sessions by what is set now. Rosters know it, too; this is for sessions that have begun with
// one of before.
func (a *allOrders) shut(name string) bool {
	now := a.now.Load()
	return now != nil && now.of(name).shut()
}
