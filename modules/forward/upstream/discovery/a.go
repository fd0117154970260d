package discovery

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/miekg/dns"
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
	Poll(ctx, to, a.Refresh, func(ctx context.Context) (Answer, time.Duration, error) {
		ips, ttl, err := host.lookUp(ctx, &a.Resolver)
		if err != nil {
			return Answer{}, 0, err
		}
		var c Collector
		for _, ip := range ips {
			c.Add(Entry{Address: a.Network + netip.AddrPortFrom(ip, a.Port).String()}, "")
		}
		answer, err := c.Answer()
		return answer, ttl, err
	})
}

// host is a name that is looked up again and again, and what its records of a family were last.
type host struct {
	name   string
	known  [2][]netip.Addr
	failed int // how many times in a row a question was not answered
}

// soon is how long it takes until a question that was not answered is asked again: longer each time, because some name servers never answer one of them.
func (h *host) soon() time.Duration {
	const enough = 12 // doublings
	h.failed++
	return MinRefresh << min(h.failed-1, enough)
}

var families = [2]uint16{dns.TypeA, dns.TypeAAAA}

// lookUp returns the addresses of a host. If only one of the two questions is answered, the other family has the addresses that it had
// before: it is not known that they have gone.
func (h *host) lookUp(ctx context.Context, r *Resolver) (all []netip.Addr, ttl time.Duration, err error) {
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
			h.known[i] = addresses(messages[i].Answer)
			if own := ttlOf(messages[i].Answer); ttl == 0 || own < ttl {
				ttl = own
			}
		case isNotFound(errs[i]):
			h.known[i] = nil
		}
		all = append(all, h.known[i]...)
	}
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
