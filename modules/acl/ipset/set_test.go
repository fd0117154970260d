package ipset

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sort"
	"testing"
)

// oracle is a set that is obviously right.
type oracle []Range

func (o oracle) contains(addr netip.Addr) bool {
	addr = Canonical(addr)
	for _, r := range o {
		if r.First.BitLen() == addr.BitLen() && !addr.Less(r.First) && !r.Last.Less(addr) {
			return true
		}
	}
	return false
}

// randomRange returns mostly small ranges in a corner of the addresses, so that they overlap and touch.
func randomRange(random *rand.Rand) Range {
	if random.IntN(2) == 0 {
		first := uint32(10<<24 | random.IntN(1<<18))
		last := first + uint32(random.IntN(1<<random.IntN(12)))
		if random.IntN(100) == 0 {
			last = 0xffffffff
		}
		return Range{addr4(first), addr4(last)}
	}
	first := uint64(random.IntN(1 << 18))
	return Range{addr6(first), addr6(first + uint64(random.IntN(1<<random.IntN(12))))}
}

func addr4(n uint32) netip.Addr {
	var bytes [4]byte
	binary.BigEndian.PutUint32(bytes[:], n)
	return netip.AddrFrom4(bytes)
}

func addr6(n uint64) netip.Addr {
	bytes := netip.MustParseAddr("2001:db8::").As16()
	binary.BigEndian.PutUint64(bytes[8:], n)
	return netip.AddrFrom16(bytes)
}

// probes are the addresses at which a set with these ranges may be wrong.
func (o oracle) probes() []netip.Addr {
	all := []netip.Addr{netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("::"), {}}
	for _, r := range o {
		all = append(all, r.First, r.Last, r.First.Prev(), r.Last.Next())
	}
	return all
}

func (o oracle) check(t *testing.T, s *Set) {
	t.Helper()
	for _, addr := range o.probes() {
		if got, want := s.Contains(addr), o.contains(addr); got != want {
			t.Fatalf("%d ranges: %v: %t, want %t", len(o), addr, got, want)
		}
	}
}

func TestSetAgainstOracle(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	for _, size := range []int{0, 1, 2, 10, 100, 1000} {
		for range 20 {
			var builder Builder
			var want oracle
			for range size {
				r := randomRange(random)
				builder.Add(r)
				want = append(want, r)
			}
			set := builder.Set()
			if set.Len() != size {
				t.Fatalf("%d entries, want %d", set.Len(), size)
			}
			want.check(t, set)
		}
	}
}

// A long list has an index, a short one has not, and both find what they have.
func TestIndexedRanges(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(5, 6))
	for _, size := range []int{indexed - 1, indexed, 1 << 16, 1 << 17} {
		has := make(map[uint32]bool)
		var builder Builder
		for len(has) < size {
			n := random.Uint32() &^ 1 // apart from each other
			if !has[n] {
				has[n] = true
				builder.Add(Range{addr4(n), addr4(n)})
			}
		}
		set := builder.Set()
		if got := set.v4.index != nil; got != (size >= indexed) {
			t.Fatalf("%d ranges: index: %t", size, got)
		}
		for n := range has {
			for _, probe := range []uint32{n - 1, n, n + 1, n ^ 1<<16} {
				if set.Contains(addr4(probe)) != has[probe] {
					t.Fatalf("%d ranges: %v: want %t", size, addr4(probe), has[probe])
				}
			}
		}
	}
}

// A range that reaches over many blocks is found from each of them.
func TestIndexedWideRange(t *testing.T) {
	t.Parallel()
	var builder Builder
	builder.Add(Range{addr4(0x0a000000), addr4(0x7fffffff)})
	for n := uint32(0x80000001); n < 0x80000001+4*indexed; n += 2 {
		builder.Add(Range{addr4(n), addr4(n)})
	}
	set := builder.Set()
	for n, want := range map[uint32]bool{0x09ffffff: false, 0x0a000000: true, 0x40123456: true, 0x7fffffff: true, 0x80000000: false, 0x80000001: true, 0xffffffff: false} {
		if set.Contains(addr4(n)) != want {
			t.Errorf("%v: want %t", addr4(n), want)
		}
	}
}

// A long IPv6 list has a table of sites, a short one has not. Whatever it is made of, it agrees with a search through all.
func TestIndexedSites(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(9, 10))
	for _, size := range []int{indexed / 2, indexed, 4 * indexed} {
		var builder Builder
		var probes []netip.Addr
		for range size {
			// Few sites with many spans, many with few, and some spans that reach over several.
			high := uint64(0x2001_0db8_0000_0000) | uint64(random.IntN(size/2))<<16 | uint64(random.IntN(4))
			if random.IntN(4) == 0 {
				high = 0x2001_0db9_0001_0000 | uint64(random.IntN(1<<16))
			}
			low := uint64(random.IntN(1 << 10))
			first := uint128{high, low}
			last := uint128{high, low + uint64(random.IntN(8))}
			switch random.IntN(100) {
			case 0, 1:
				last.high += uint64(random.IntN(2*wideSites)) << 16
			case 2:
				first, last = uint128{high &^ 0xffff, 0}, uint128{high | 0xffff, ^uint64(0)} // the site
			case 3, 4, 5: // or its end, or its first or last network
				first, last = uint128{high, 0}, uint128{high | 0xffff, ^uint64(0)}
			case 6:
				first, last = uint128{high &^ 0xffff, 0}, uint128{high &^ 0xffff, ^uint64(0)}
			case 7:
				first, last = uint128{high | 0xffff, 0}, uint128{high | 0xffff, ^uint64(0)}
			case 8: // or nearly so
				first, last = uint128{high &^ 0xffff, 1}, uint128{high | 0xffff, ^uint64(0)}
			case 9:
				first, last = uint128{high &^ 0xffff, 0}, uint128{high | 0xffff, ^uint64(1)}
			default:
				if random.IntN(2) == 0 { // whole networks, often several of one site
					first, last = uint128{high, 0}, uint128{high + uint64(random.IntN(2)), ^uint64(0)}
				}
			}
			r := Range{address6(first), address6(last)}
			builder.Add(r)
			probes = append(probes, r.First, r.Last, r.First.Prev(), r.Last.Next(), address6(uint128{high ^ 1<<16, low}), address6(uint128{high ^ 1, low}))
		}
		for _, r := range []Range{
			{address6(uint128{}), address6(uint128{0, ^uint64(0)})},
			{address6(uint128{^uint64(0), 0}), address6(uint128{^uint64(0), ^uint64(0)})},
		} { // of the first site that there is, and of the last
			builder.Add(r)
			probes = append(probes, r.First, r.Last, address6(uint128{1, 0}), address6(uint128{^uint64(1), 0}))
		}
		slow := merge(slices.Concat(builder.v6...), uint128.compare, func(uint128, uint128) bool { return false })
		set := builder.Set()
		if got := set.v6.table != nil; got != (len(slow) >= indexed) {
			t.Fatalf("%d spans: table: %t", len(slow), got)
		}
		for _, probe := range probes {
			want := slices.ContainsFunc(near(slow, number6(probe)), func(s span[uint128]) bool {
				return s.first.compare(number6(probe)) <= 0 && s.last.compare(number6(probe)) >= 0
			})
			if set.Contains(probe) != want {
				t.Fatalf("%d spans: %v: want %t", size, probe, want)
			}
		}
	}
}

// near returns the spans around the address, so that the test does not look through all of them each time.
func near(spans []span[uint128], addr uint128) []span[uint128] {
	at := sort.Search(len(spans), func(i int) bool { return spans[i].first.compare(addr) > 0 })
	return spans[max(at-2, 0):min(at+2, len(spans))]
}

func address6(n uint128) netip.Addr {
	var bytes [16]byte
	binary.BigEndian.PutUint64(bytes[:8], n.high)
	binary.BigEndian.PutUint64(bytes[8:], n.low)
	return netip.AddrFrom16(bytes)
}

// What is added one at a time makes new sets, and leaves those before as they were.
func TestWithAndWithout(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(7, 8))
	var base Builder
	always := Range{addr4(1), addr4(3)}
	base.Add(always)
	set := base.Set()
	type version struct {
		set  *Set
		want oracle
	}
	var versions []version
	entries := make(map[netip.Prefix]bool)
	for range 500 {
		prefix := netip.PrefixFrom(addr4(uint32(random.IntN(64))<<2), 30)
		if random.IntN(2) == 0 {
			prefix = netip.PrefixFrom(addr6(uint64(random.IntN(64))<<2), 126)
		}
		if prefix.Addr() == addr4(0) {
			continue
		}
		if entries[prefix] {
			delete(entries, prefix)
			set = set.Without(prefix).Without(prefix)
		} else {
			entries[prefix] = true
			set = set.With(prefix).With(prefix)
		}
		want := oracle{always}
		for prefix := range entries {
			want = append(want, Of(prefix))
		}
		if set.Len() != len(want) {
			t.Fatalf("%d entries, want %d", set.Len(), len(want))
		}
		versions = append(versions, version{set, want})
	}
	for _, v := range versions {
		v.want.check(t, v.set)
	}
}

func TestNilSet(t *testing.T) {
	t.Parallel()
	var set *Set
	prefix := netip.MustParsePrefix("10.0.0.0/8")
	if set.Contains(addr4(1)) || set.Len() != 0 || set.Without(prefix) != nil {
		t.Error("the nil set is not empty")
	}
	if !set.With(prefix).Contains(netip.MustParseAddr("10.1.2.3")) {
		t.Error("what was added to the nil set is not there")
	}
}

// Whatever form an address comes in, it is the same client.
func TestEveryFormOfAnAddress(t *testing.T) {
	t.Parallel()
	for _, rule := range []string{"192.0.2.0/24", "::ffff:192.0.2.0/120", "192.0.2.0-192.0.2.255", "fe80::/10", "fe80::1%eth0", "2001:db8::/32"} {
		var builder Builder
		r, err := Parse(rule)
		if err != nil {
			t.Fatal(err)
		}
		builder.Add(r)
		set := builder.Set()
		forms := []netip.Addr{r.First}
		if r.First.Is4() {
			forms = append(forms, netip.AddrFrom16(r.First.As16()), netip.AddrFrom16(r.First.As16()).WithZone("eth0"))
		} else {
			forms = append(forms, r.First.WithZone("eth0"), r.First.WithZone("3"))
		}
		for _, form := range forms {
			if !set.Contains(form) {
				t.Errorf("%s does not have %v", rule, form)
			}
		}
	}
}

func TestContainsAllocatesNothing(t *testing.T) {
	set := million(t, 4)
	addrs := []netip.Addr{addr4(12345), netip.MustParseAddr("::ffff:10.1.2.3"), netip.MustParseAddr("fe80::1%eth0"), addr6(9)}
	if n := testing.AllocsPerRun(100, func() {
		for _, addr := range addrs {
			set.Contains(addr)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
