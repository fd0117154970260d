package ipset

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// The order finds the first set that has an address, as a look at each of the ranges in turn does.
func TestOrderFindsTheFirst(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	for round := range 300 {
		var (
			builder OrderBuilder
			ranges  oracle
			sets    []int
		)
		for range random.IntN(40) {
			r, set := randomRange(random), random.IntN(10)
			if round%3 == 0 && random.IntN(5) == 0 {
				r = [...]Range{Of(netip.MustParsePrefix("0.0.0.0/0")), Of(netip.MustParsePrefix("::/0"))}[random.IntN(2)]
			}
			ranges, sets = append(ranges, r), append(sets, set)
			builder.Add(r, set)
		}
		order := builder.Order()
		for _, probe := range ranges.probes() {
			want := -1
			for i := range ranges {
				if ranges[i:i+1].contains(probe) && (want < 0 || sets[i] < want) {
					want = sets[i]
				}
			}
			if got := order.First(probe); got != want {
				t.Fatalf("round %d: %v: set %d, want %d; %v of %v", round, probe, got, want, ranges, sets)
			}
		}
		if most := 2 * len(ranges); order.Len() > most {
			t.Errorf("%d spans of %d ranges, want at most %d", order.Len(), len(ranges), most)
		}
	}
}

// An address has the same first set in any form, and none that is no address.
func TestOrderTakesAnyForm(t *testing.T) {
	t.Parallel()
	var builder OrderBuilder
	builder.Add(Of(netip.MustParsePrefix("::/0")), 2)
	builder.Add(Of(netip.MustParsePrefix("10.0.0.0/8")), 1)
	order := builder.Order()
	for addr, want := range map[string]int{"10.0.0.1": 1, "::ffff:10.0.0.1": 1, "::ffff:10.0.0.1%eth0": 1, "192.0.2.1": -1, "::ffff:192.0.2.1": -1, "fe80::1%eth0": 2} {
		if got := order.First(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %d, want %d", addr, got, want)
		}
	}
	if order.First(netip.Addr{}) != -1 || (*Order)(nil).First(netip.MustParseAddr("10.0.0.1")) != -1 {
		t.Error("what is no address, or no order, has a set")
	}
}
