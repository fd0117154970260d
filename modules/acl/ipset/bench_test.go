package ipset

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"runtime/metrics"
	"strconv"
	"testing"
	"time"
)

// randomPrefix is what lists are made of: half of them single addresses, a third networks of the usual size, the rest
// anything. IPv6 lists have networks of customers, in blocks that registries have given out.
func randomPrefix(random *rand.Rand, family int) netip.Prefix {
	if family == 6 {
		block := uint64(0x2001_0000+random.IntN(1<<12)) << 32
		var bytes [16]byte
		for i, shift := 0, 56; i < 8; i, shift = i+1, shift-8 {
			bytes[i] = byte((block | uint64(random.Uint32())) >> shift)
		}
		prefix, _ := netip.AddrFrom16(bytes).Prefix(48 + random.IntN(17))
		return prefix
	}
	bits := 32
	switch n := random.IntN(10); {
	case n >= 8:
		bits = 18 + random.IntN(14)
	case n >= 5:
		bits = 24
	}
	prefix, _ := addr4(random.Uint32()).Prefix(bits)
	return prefix
}

func millionLines(family int) []byte {
	random := rand.New(rand.NewPCG(1, uint64(family)))
	var list bytes.Buffer
	for range 1_000_000 {
		fmt.Fprintln(&list, randomPrefix(random, family))
	}
	return list.Bytes()
}

func million(tb testing.TB, family int) *Set {
	tb.Helper()
	set, _, err := Read(bytes.NewReader(millionLines(family)), RefuseHostBits)
	if err != nil {
		tb.Fatal(err)
	}
	return set
}

// BenchmarkContains looks up addresses that are in the set and such that are not, in turn. How many different clients
// there are decides what is in the processor's cache.
func BenchmarkContains(b *testing.B) {
	for _, family := range []int{4, 6} {
		set := million(b, family)
		for _, clients := range []int{1 << 10, 1 << 14, 1 << 18} {
			b.Run("IPv"+strconv.Itoa(family)+"/clients="+strconv.Itoa(clients), func(b *testing.B) {
				random := rand.New(rand.NewPCG(1, uint64(family))) // draws the prefixes of the set again
				addrs := make([]netip.Addr, clients)
				for i := range addrs {
					addrs[i] = randomPrefix(random, family).Addr()
				}
				for i := 1; i < clients; i += 2 {
					addrs[i] = randomPrefix(rand.New(rand.NewPCG(2, uint64(i))), family).Addr()
				}
				rand.New(rand.NewPCG(3, 3)).Shuffle(clients, func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
				b.ReportAllocs()
				found := 0
				for i := 0; b.Loop(); i++ {
					if set.Contains(addrs[i&(clients-1)]) {
						found++
					}
				}
				runtime.KeepAlive(found)
			})
		}
	}
}

// BenchmarkRead loads a million lines. peak-MiB is what the heap grew to meanwhile.
func BenchmarkRead(b *testing.B) {
	for _, family := range []int{4, 6} {
		list := millionLines(family)
		b.Run("IPv"+strconv.Itoa(family), func(b *testing.B) {
			b.SetBytes(int64(len(list)))
			var peak, held uint64
			for b.Loop() {
				runtime.GC()
				before := heapBytes()
				watch := watchHeap()
				set, _, err := Read(bytes.NewReader(list), RefuseHostBits)
				if err != nil {
					b.Fatal(err)
				}
				peak = max(peak, watch()-before)
				runtime.GC()
				held = heapBytes() - before
				runtime.KeepAlive(set)
			}
			b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
			b.ReportMetric(float64(held)/(1<<20), "held-MiB")
		})
	}
}

func heapBytes() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// watchHeap looks at the heap until the function is called that it returns, which has the most that there was.
func watchHeap() func() uint64 {
	stop, most := make(chan struct{}), make(chan uint64)
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		peak := heapBytes()
		for {
			select {
			case <-tick.C:
				peak = max(peak, heapBytes())
			case <-stop:
				most <- max(peak, heapBytes())
				return
			}
		}
	}()
	return func() uint64 {
		close(stop)
		return <-most
	}
}

// BenchmarkWith adds a prefix to a list of 100,000 that are edited one at a time.
func BenchmarkWith(b *testing.B) {
	random := rand.New(rand.NewPCG(1, 1))
	var set *Set
	for range 100_000 {
		set = set.With(randomPrefix(random, 4))
	}
	b.ReportAllocs()
	for b.Loop() {
		set.With(randomPrefix(random, 4))
	}
}
