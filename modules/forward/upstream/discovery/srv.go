package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// SRV has the servers that the SRV records of a name list (RFC 2782). Their priorities become tiers, and their weights weights. Without
// servers of its own to ask, the upstreams are the names that the records have, which are looked up as those of a config are. With such
// servers these are asked for the addresses, and each address is an upstream.
type SRV struct {
	// Name is looked up, such as "_postgresql._tcp.example.com".
	Name string
	// Network is put in front of the addresses, such as "udp/". Empty: none.
	Network string
	// Refresh is how long an answer is used at most, if its TTL is longer.
	Refresh time.Duration
	// Resolver is asked.
	Resolver Resolver
}

// Run implements [Source].
func (s *SRV) Run(ctx context.Context, to Sink) {
	hosts := make(map[string]*host)
	Poll(ctx, to, s.Refresh, func(ctx context.Context) (Answer, time.Duration, error) {
		msg, err := s.Resolver.ask(ctx, s.Name, dns.TypeSRV)
		if err != nil {
			return Answer{}, 0, err
		}
		records, ttl := servers(msg.Answer), ttlOf(msg.Answer)
		if len(s.Resolver.Servers) == 0 {
			answer, err := s.named(records)
			return answer, ttl, err
		}
		answer, soonest, err := s.resolved(ctx, records, hosts, sync.OnceValue(func() past { return pastOf(to.Last()) }))
		return answer, min(ttl, soonest), err
	})
}

// servers returns the SRV records, by priority. A target "." means that the service is not there.
func servers(records []dns.RR) (all []*dns.SRV) {
	for _, record := range records {
		if srv, ok := record.(*dns.SRV); ok && srv.Target != "." {
			all = append(all, srv)
		}
	}
	slices.SortStableFunc(all, func(a, b *dns.SRV) int { return cmp.Compare(a.Priority, b.Priority) })
	return all
}

// named returns the servers by their names.
func (s *SRV) named(records []*dns.SRV) (Answer, error) {
	var c Collector
	for i, e := range entries(records) {
		e.Address = s.Network + portOf(records[i].Target, records[i].Port)
		s.add(&c, e)
	}
	return c.Answer()
}

// add takes a server, unless there are more priorities than tiers.
func (s *SRV) add(c *Collector, e Entry) {
	if e.Priority > upstream.MaxPriority {
		c.Skip(fmt.Errorf("%q: expected at most %d different priorities", e.Address, upstream.MaxPriority+1), "")
		return
	}
	c.Add(e, "")
}

// resolved returns the servers by their addresses, and how long these are valid. One whose name can't be looked up now has the addresses
// that it had.
func (s *SRV) resolved(ctx context.Context, records []*dns.SRV, hosts map[string]*host, past func() past) (Answer, time.Duration, error) {
	targets := make(map[string]*found, len(records))
	for _, record := range records {
		targets[record.Target] = nil
	}
	s.lookUpAll(ctx, targets, hosts, past)
	var c Collector
	soonest := maxAsked
	for _, at := range targets {
		soonest = min(soonest, at.ttl)
	}
	for i, e := range entries(records) {
		if c.TooMany() {
			break
		}
		at := targets[records[i].Target]
		if at.err != nil {
			c.Skip(at.err, "")
			continue
		}
		for _, ip := range at.ips {
			e.Address, e.Host = s.Network+netip.AddrPortFrom(ip, records[i].Port).String(), records[i].Target
			s.add(&c, e)
		}
	}
	answer, err := c.Answer()
	return answer, soonest, err
}

// found is what a target of records stands for.
type found struct {
	ips []netip.Addr
	ttl time.Duration
	err error
}

const (
	// lookUps bounds the targets that are looked up at the same time.
	lookUps = 256
	// lookUpsBegin is how long lookups are begun for one answer. What is not looked up until then is as it was, and comes first for the next
	// answer: targets that are silent must not hold up the others.
	lookUpsBegin = serverTimeout
)

var errNotYet = errors.New("it is yet to be looked up")

// lookUpAll finds all targets, as far as there is time, and forgets the hosts that are none any more.
func (s *SRV) lookUpAll(ctx context.Context, targets map[string]*found, hosts map[string]*host, past func() past) {
	var asking sync.WaitGroup
	slots := make(chan struct{}, lookUps)
	late := time.NewTimer(lookUpsBegin)
	defer late.Stop()
	over, now := false, time.Now()
	for _, h := range inTurn(targets, hosts) {
		at := new(found)
		targets[h.name] = at
		if !over && !now.Before(h.again) {
			select {
			case slots <- struct{}{}:
				asking.Go(func() {
					defer func() { <-slots }()
					s.lookUp(ctx, at, h, past)
				})
				continue
			case <-late.C:
				over = true
			}
		}
		at.ttl, at.err = max(h.again.Sub(now), MinRefresh), fmt.Errorf("%s: %w", h.name, errNotYet)
		at.keep(h, past)
	}
	asking.Wait()
	for target := range hosts {
		if _, ok := targets[target]; !ok {
			delete(hosts, target)
		}
	}
}

// inTurn returns the hosts that are targets in the order in which they are looked up: first those that were answered, which takes no time, then those
// that have waited for longest.
func inTurn(targets map[string]*found, hosts map[string]*host) []*host {
	all := make([]*host, 0, len(targets))
	for target := range targets {
		h := hosts[target]
		if h == nil {
			h = &host{name: target}
			hosts[target] = h
		}
		all = append(all, h)
	}
	answered := func(h *host) int {
		if h.failed == 0 && !h.asked.IsZero() {
			return 0
		}
		return 1
	}
	slices.SortFunc(all, func(a, b *host) int { return cmp.Or(cmp.Compare(answered(a), answered(b)), a.asked.Compare(b.asked)) })
	return all
}

// lookUp finds a host.
func (s *SRV) lookUp(ctx context.Context, at *found, h *host, past func() past) {
	at.ips, at.ttl, at.err = h.lookUp(ctx, &s.Resolver, past)
	h.asked, h.again = time.Now(), time.Time{}
	switch {
	case at.err == nil:
	case isNotFound(at.err): // nobody waits for it
		at.ttl = maxAsked
		h.failed = 0
	default:
		at.ttl = h.soon()
		h.again = h.asked.Add(max(min(at.ttl, s.Refresh), MinRefresh))
		at.keep(h, past)
	}
}

// keep has a host that can't be looked up now be where it was.
func (at *found) keep(h *host, past func() past) {
	h.recall(past)
	if had := slices.Concat(h.known[:]...); len(had) > 0 {
		at.ips, at.err = had, nil
	}
}

// lightest is how many times as heavy others become than a record with the weight 0, which "should have a very small chance" (RFC 2782).
const lightest = 100

// entries returns an entry without an address for each record: with the place of its priority among all as its tier, and with its weight.
// Records are sorted.
func entries(records []*dns.SRV) []Entry {
	all := make([]Entry, len(records))
	for begin, tier := 0, 0; begin < len(records); tier++ {
		end := begin
		heaviest, zeros := 0, false
		for ; end < len(records) && records[end].Priority == records[begin].Priority; end++ {
			heaviest = max(heaviest, int(records[end].Weight))
			zeros = zeros || records[end].Weight == 0
		}
		factor := 1
		if zeros && heaviest > 0 {
			factor = max(1, min(lightest, upstream.MaxWeight/heaviest))
		}
		for i := begin; i < end; i++ {
			all[i] = Entry{Weight: int(records[i].Weight) * factor, Priority: tier}
		}
		begin = end
	}
	return all
}
