package discovery

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// A has each address of a name, its A and AAAA records, as an upstream.
type A struct {
	// Name is looked up.
	Name string
	// Port is that of all upstreams.
	Port uint16
	// Network is put in front of the addresses, such as "udp/". Empty: none.
	Network string
	// Refresh is how long an answer is used at most, if its TTL is longer.
	Refresh time.Duration
	// Resolver is asked.
	Resolver Resolver
}

// Run implements [Source].
func (a *A) Run(ctx context.Context, to Sink) {
	host := host{name: a.Name}
	past := func() past { return pastOf(to.Last()) }
	Poll(ctx, to, a.Refresh, func(ctx context.Context) (Answer, time.Duration, error) {
		ips, ttl, err := host.lookUp(ctx, &a.Resolver, past)
		if err != nil {
			return Answer{}, 0, err
		}
		var c Collector
		for _, ip := range ips {
			c.Add(Entry{Address: a.Network + netip.AddrPortFrom(ip, a.Port).String(), Host: a.Name}, "")
		}
		answer, err := c.Answer()
		return answer, ttl, err
	})
}

// host is a name that is looked up again and again, and what its records of a family were last.
type host struct {
	name   string
	known  [2][]netip.Addr
	told   [2]bool   // known is what a name server has said, even if that is nothing, or all that was known earlier
	failed int       // how many times in a row a question was not answered
	asked  time.Time // last
	again  time.Time // it is not asked before, because it was silent
}

// past is what is known of names since earlier.
type past map[string][2][]netip.Addr

func pastOf(entries []Entry) past {
	all := make(past)
	for _, e := range entries {
		if e.Host == "" {
			continue
		}
		addr, err := upstream.Parse(e.Address)
		if err != nil {
			continue
		}
		ip, err := netip.ParseAddr(addr.Host)
		if err != nil {
			continue
		}
		i := 0
		if ip.Is6() {
			i = 1
		}
		known := all[e.Host]
		known[i] = append(known[i], ip)
		all[e.Host] = known
	}
	return all
}

// recall has the host be where it was earlier, as far as no name server has said where it is now.
func (h *host) recall(past func() past) {
	for i := range h.told {
		if !h.told[i] {
			h.known[i], h.told[i] = past()[h.name][i], true
		}
	}
}

// soon is how long it takes until a question that was not answered is asked again: longer each time, because some name servers never answer one of them.
func (h *host) soon() time.Duration {
	const enough = 12 // doublings
	h.failed++
	return MinRefresh << min(h.failed-1, enough)
}

var families = [2]uint16{dns.TypeA, dns.TypeAAAA}

// lookUp returns the addresses of a host. If only one of the two questions is answered, the other family has the addresses that it had
// before: it is not known that they have gone. past is called where that is what an earlier source knew.
func (h *host) lookUp(ctx context.Context, r *Resolver, past func() past) (all []netip.Addr, ttl time.Duration, err error) {
	var asking sync.WaitGroup
	var messages [len(families)]*dns.Msg
	var errs [len(families)]error
	for i, family := range families {
		asking.Go(func() { messages[i], errs[i] = r.ask(ctx, h.name, family) })
	}
	asking.Wait()
	answered := false
	for i := range families {
		switch {
		case errs[i] == nil:
			answered = true
			h.known[i], h.told[i] = addresses(messages[i].Answer), true
			if own := ttlOf(messages[i].Answer); ttl == 0 || own < ttl {
				ttl = own
			}
		case isNotFound(errs[i]):
			h.known[i], h.told[i] = nil, true
		}
	}
	h.recall(past)
	all = slices.Concat(h.known[:]...)
	failing := slices.ContainsFunc(errs[:], func(err error) bool { return err != nil && !isNotFound(err) })
	if !failing {
		h.failed = 0
	}
	if !answered {
		if isNotFound(errs[0]) && !isNotFound(errs[1]) {
			return nil, 0, errs[1]
		}
		return nil, 0, errs[0]
	}
	if failing {
		ttl = min(ttl, h.soon()) // the other question is asked again
	}
	return all, ttl, nil
}

// portOf returns an address with a port as text, of a name too.
func portOf(name string, port uint16) string { return name + ":" + strconv.Itoa(int(port)) }
