package acl

import (
	"net/netip"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
)

// rule is a rule that is ready to judge.
type rule struct {
	allow bool
	label string
	list  *list // nil: its addresses are in the config
}

func (r *rule) action() string {
	if r.allow {
		return allow
	}
	return deny
}

// rules are in order: the first one that has the client decides. Neighbours whose addresses are in the config, and so never
// change, are looked up at once, however many they are.
type rules struct {
	all      []rule
	lookups  []lookup
	fallback rule
	release  []func() error
	awaited  []awaited // while the rules are compiled

	fixed []ipset.Range // of the last rules of all, which have no lookup yet
	owner []int         // of each range of fixed: its rule
}

// awaited is a feed that may have no content yet, and the rule that needs it.
type awaited struct {
	label string
	feed  *feed
}

// lookup finds an address in the sets of one rule, or of several neighbours.
type lookup interface {
	// first returns the position of the first of these rules that has the address, or -1.
	first(addr netip.Addr) int
}

// ofList is the lookup of a rule that has a list.
type ofList struct {
	*list
	rule int
}

func (l ofList) first(addr netip.Addr) int {
	if l.contains(addr) {
		return l.rule
	}
	return -1
}

// single is the lookup of a rule whose addresses are in the config, and whose neighbours have lists.
type single struct {
	*ipset.Set
	rule int
}

func (s single) first(addr netip.Addr) int {
	if s.Contains(addr) {
		return s.rule
	}
	return -1
}

// neighbors are several rules whose addresses are in the config.
type neighbors struct{ *ipset.Order }

func (n neighbors) first(addr netip.Addr) int { return n.First(addr) }

// add adds a rule behind the others. One without a list has these addresses; addFixed has to follow.
func (rs *rules) add(r rule, fixed []ipset.Range) {
	at := len(rs.all)
	rs.all = append(rs.all, r)
	if r.list != nil {
		rs.addFixed()
		rs.lookups = append(rs.lookups, ofList{r.list, at})
		return
	}
	for _, addresses := range fixed {
		rs.fixed, rs.owner = append(rs.fixed, addresses), append(rs.owner, at)
	}
}

// addFixed makes one lookup of the rules without lists that were added last.
func (rs *rules) addFixed() {
	if len(rs.fixed) == 0 {
		return
	}
	if at := rs.owner[0]; at == rs.owner[len(rs.owner)-1] {
		var builder ipset.Builder
		for _, addresses := range rs.fixed {
			builder.Add(addresses)
		}
		rs.lookups = append(rs.lookups, single{builder.Set(), at})
	} else {
		var builder ipset.OrderBuilder
		for i, addresses := range rs.fixed {
			builder.Add(addresses, rs.owner[i])
		}
		rs.lookups = append(rs.lookups, neighbors{builder.Order()})
	}
	rs.fixed, rs.owner = nil, nil
}

// labels returns what the rules are called in the metrics.
func (rs *rules) labels() []string {
	all := []string{rs.fallback.label}
	for i := range rs.all {
		all = append(all, rs.all[i].label)
	}
	return all
}

// lists returns those of the rules that may change.
func (rs *rules) lists() []*list {
	var lists []*list
	for i := range rs.all {
		if l := rs.all[i].list; l != nil {
			lists = append(lists, l)
		}
	}
	return lists
}

// judge returns the rule that decides about a client. One without an address, as on a unix socket, is in no list.
func (rs *rules) judge(client netip.Addr) *rule {
	if client.IsValid() {
		client = ipset.Canonical(client)
		for _, l := range rs.lookups {
			if at := l.first(client); at >= 0 {
				return &rs.all[at]
			}
		}
	}
	return &rs.fallback
}
