package upstream

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestHashIP(t *testing.T) {
	t.Parallel()
	of := func(s string) uint64 { return HashIP(netip.MustParseAddr(s)) }
	switch {
	case of("192.0.2.1") != of("::ffff:192.0.2.1"):
		t.Error("a client differs by how its address is written")
	case of("2001:db8::1") != of("2001:db8::ffff"):
		t.Error("a /64 is not one client")
	case of("192.0.2.1") == of("192.0.2.2") || of("2001:db8::1") == of("2001:db8:0:1::1"):
		t.Error("clients are mixed up")
	}
}

// clientsOf returns the upstream of each of some clients, by name.
func clientsOf(p *Pool, n int) []string {
	owners := make([]string, n)
	for i := range owners {
		owners[i] = p.upstreams[p.pickFor(HashString(fmt.Sprint("client", i)))].Name
	}
	return owners
}

// Whether an upstream leaves the config or is out, only its clients move, to all others alike. It is the same whether a group remembers winners or not.
func TestHashMovesOnlyTheClientsOfOne(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(5, 5))
	for _, n := range []int{2, 3, compared, compared + 1, 100} {
		weights := make([]int, n)
		sum := 0
		for i := range weights {
			weights[i] = 1 + random.IntN(3)
			sum += weights[i]
		}
		const clients = 10_000
		p := poolOf(t, "ip_hash", weights...)
		p.Failures = NewFailures(Policy{MaxFails: 1, FailDuration: time.Hour}, time.Now, nil)
		before := clientsOf(p, clients)
		gone := random.IntN(n)
		p.fail(gone)
		out := clientsOf(p, clients)
		without := poolOf(t, "ip_hash", weights...)
		without.upstreams[gone].Drained = true
		drained := clientsOf(without, clients)
		moved := 0
		for i := range before {
			switch {
			case out[i] != drained[i]:
				t.Fatalf("%d upstreams: client %d goes to %s when one is out, and to %s when it is drained", n, i, out[i], drained[i])
			case before[i] == out[i]:
			case before[i] != tcp(gone).String():
				t.Fatalf("%d upstreams: client %d moves from %s to %s, and %s is out", n, i, before[i], out[i], tcp(gone))
			default:
				moved++
			}
		}
		if want := clients * weights[gone] / sum; moved < want*7/10-10 || moved > want*13/10+10 {
			t.Errorf("%d upstreams: %d clients moved, want about %d", n, moved, want)
		}
	}
}

// A client's upstream depends neither on the order in the config, nor on what else is there, unless that wins.
func TestHashByName(t *testing.T) {
	t.Parallel()
	names := []string{"10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"}
	pool := func(names []string) *Pool {
		var all []Upstream
		for _, name := range names {
			all = append(all, Upstream{Name: name, Addr: mustParse(t, name)})
		}
		return balanced(t, "ip_hash", all)
	}
	first := clientsOf(pool(names), 1000)
	reversed := slices.Clone(names)
	slices.Reverse(reversed)
	if !slices.Equal(first, clientsOf(pool(reversed), 1000)) {
		t.Error("another order moves clients")
	}
	for i, more := range clientsOf(pool(append(names, "10.0.0.5:1")), 1000) {
		if more != first[i] && more != "10.0.0.5:1" {
			t.Errorf("client %d moves to %s because another one comes", i, more)
		}
	}
}

// Sessions without a key have their turns.
func TestHashWithoutAKey(t *testing.T) {
	t.Parallel()
	for i, n := range poolOf(t, "hash {x}", 1, 1, 2).picks(4000) {
		if want := []int{1000, 1000, 2000}[i]; n < want*9/10 || n > want*11/10 {
			t.Errorf("upstream %d: %d of 4000", i, n)
		}
	}
}
