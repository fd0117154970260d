package forward

import (
	"cmp"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/gate"
	"github.com/portgate/caddy-portgate/modules/internal/placement"
)

// shownAs is how the admin API shows handlers that are alike.
type shownAs struct {
	handler            string
	placed             bool     // handler tells them from others of the config, and is the same in the next one
	listeners          int      // how many listen addresses they have
	listens            []string // their listen addresses, as configured and as in metrics
	addresses          []caddy.NetworkAddress
	streams, datagrams bool // what they forward
}

func newShownAs(at *placement.Finding, listen []caddy.NetworkAddress) *shownAs {
	s := &shownAs{addresses: listen}
	for _, addr := range listen {
		s.datagrams = s.datagrams || gate.Datagrams(addr.Network)
		s.streams = s.streams || !gate.Datagrams(addr.Network)
		_, listener := gate.SessionOf(addr, 0)
		s.listens = append(s.listens, addr.String(), listener)
	}
	if len(listen) == 0 {
		s.streams = true
		return s
	}
	s.handler = s.listens[0]
	if network, listener := gate.SessionOf(listen[0], 0); len(at.At(network, listener)) > 0 {
		s.handler += " " + at.At(network, listener)[0].Path
		s.placed = true
	}
	s.listeners = len(listen)
	return s
}

// at reports whether a handler is meant: a part of what it is shown as, or one of its listen addresses.
func (s *shownAs) at(wanted string) bool {
	return strings.Contains(s.handler, wanted) || slices.Contains(s.listens, wanted)
}

// row is what the admin API tells of an upstream of a handler.
type row struct {
	Name             string    `json:"name"`
	Handler          string    `json:"handler,omitempty"`
	Listeners        int       `json:"listeners,omitempty"`
	State            string    `json:"state"`
	Weight           int       `json:"weight"`
	ConfiguredWeight *int      `json:"configured_weight,omitempty"` // where another one was set
	Priority         int       `json:"priority"`
	Zone             string    `json:"zone,omitempty"`
	Sessions         int64     `json:"sessions"` // of all handlers
	Queued           int64     `json:"queued"`   // of these handlers, for any of their upstreams
	Fails            int       `json:"fails"`
	LastError        string    `json:"last_error,omitempty"`
	CheckedAt        time.Time `json:"checked_at,omitzero"`
	SetAt            time.Time `json:"set_at,omitzero"` // when somebody has said something of it
}

// listing chooses upstreams. The zero listing has all of them.
type listing struct {
	exactly string // the name
	name    string // a part of it
	handler string
	states  []string
	after   string // names behind this one
	limit   int    // 0: none. Upstreams of one name stay together, so there may be more
}

// place is where an upstream is found.
type place struct {
	name     string
	of       *source // nil where no handler has it
	position int
}

// source is the handlers that an upstream is found in, which are alike.
type source struct {
	as     *shownAs
	roster *roster
	queue  *queue           // nil where there is none
	survey *upstream.Survey // nil before it is needed
}

func (s *source) status(position int) upstream.Status {
	if s.survey == nil {
		s.survey = s.roster.pool.Survey(s.as.streams, s.as.datagrams)
	}
	return s.survey.Status(position)
}

// rows returns the upstreams in the order of their names. It reads what they are when it comes to them, and holds nothing meanwhile.
func (l listing) rows() iter.Seq[row] {
	return func(yield func(row) bool) {
		n, last := 0, ""
		for _, p := range l.places() {
			if l.limit > 0 && n >= l.limit && p.name != last {
				return
			}
			one := p.row()
			if len(l.states) > 0 && !slices.Contains(l.states, one.State) {
				continue
			}
			n, last = n+1, p.name
			if !yield(one) {
				return
			}
		}
	}
}

// sources returns the handlers to look at. Those that are alike are one, and so are one of a config and that of the next one which takes its place.
func (l listing) sources() (all []*source) {
	found, shown := make(map[string]struct{}), make(map[*placement.Finding]struct{})
	for _, h := range handlers.newestFirst() {
		now := h.rosters.now.Load()
		if _, again := shown[h.at]; again || now == nil {
			continue
		}
		shown[h.at] = struct{}{}
		if _, again := found[h.shownAs.handler]; again && h.shownAs.placed {
			continue
		}
		found[h.shownAs.handler] = struct{}{}
		if l.handler == "" || h.shownAs.at(l.handler) {
			all = append(all, &source{as: h.shownAs, roster: now, queue: h.queue})
		}
	}
	return all
}

// places returns where upstreams are found.
func (l listing) places() (all []place) {
	for _, of := range l.sources() {
		for i := range of.roster.pool.Len() {
			if name := of.roster.pool.At(i).Name; l.wants(name) {
				all = append(all, place{name, of, i})
			}
		}
	}
	if l.handler == "" {
		all = append(all, l.absent()...)
	}
	slices.SortFunc(all, func(a, b place) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.handler(), b.handler()))
	})
	return all
}

// absent returns the upstreams that no config has, and of which something was said.
func (l listing) absent() (all []place) {
	now := atRunTime.now.Load()
	if now == nil {
		return nil
	}
	for name := range *now {
		if l.wants(name) && !counts.Held(name) {
			all = append(all, place{name: name})
		}
	}
	return all
}

func (l listing) wants(name string) bool {
	return (l.exactly == "" || name == l.exactly) && strings.Contains(name, l.name) && name > l.after
}

func (p place) handler() string {
	if p.of == nil {
		return ""
	}
	return p.of.as.handler
}

// row tells what is known. What is known of addresses is in [upstream.Survey]; what a handler itself keeps of an upstream, such as how many
// sessions wait for it, is added here.
func (p place) row() row {
	said := atRunTime.now.Load().of(p.name)
	one := row{Name: p.name, Handler: p.handler(), SetAt: said.at}
	if p.of == nil {
		one.State, one.Weight = upstream.Up.String(), max(said.weight, 0)
		one.Sessions = counts.Living(p.name)
		switch {
		case said.state == maint:
			one.State = upstream.Maint.String()
		case said.shut():
			one.State = upstream.Drain.String()
		}
		return one
	}
	u, status := p.of.roster.pool.At(p.position), p.of.status(p.position)
	one.Listeners, one.State, one.Weight = p.of.as.listeners, status.State.String(), weightOf(u.Weight, u.Drained)
	if given, is := p.of.roster.configured[p.position]; is {
		one.Weight = weightOf(given.weight, given.drained)
	}
	if said := p.of.roster.orders.of(p.name); said.weight != noWeight {
		configured := one.Weight
		one.Weight, one.ConfiguredWeight = said.weight, &configured
	}
	one.Priority, one.Zone, one.Sessions = u.Priority, u.Zone, u.Living.Load()
	if p.of.queue != nil {
		one.Queued = p.of.queue.Waiting()
	}
	one.Fails, one.CheckedAt = status.Fails, status.At
	if status.Err != nil {
		one.LastError = status.Err.Error()
	}
	return one
}

// weightOf is the weight of an upstream, which is 1 where none is given.
func weightOf(weight int, drained bool) int {
	if weight == 0 && !drained {
		return 1
	}
	return weight
}
