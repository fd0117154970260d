package bucket

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

const million = 1_000_000

// client returns one of many addresses.
func client(i uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], i)
	return netip.AddrFrom4(b)
}

// filled returns a store that holds a million keys.
func filled(tb testing.TB, limit *Limit) *Memory {
	tb.Helper()
	m := NewMemory(million)
	for i := range uint32(million) {
		m.Decide(0, []Request{{Limit: limit, Key: limit.ForAddr(client(i), 32)}})
	}
	if n := m.Len(0); n != million {
		tb.Fatalf("%d keys, want a million", n)
	}
	return m
}

func mustEvents(tb testing.TB, id uint16, n int64, per time.Duration, burst int64, maxDelay time.Duration) *Limit {
	tb.Helper()
	limit, err := NewEvents(id, n, per, burst, maxDelay)
	if err != nil {
		tb.Fatal(err)
	}
	return limit
}

// scatter visits the clients in an order that no cache foresees.
func scatter(i uint32) uint32 { return uint32(uint64(i*2654435769) * million >> 32) }

// One decision of a random one of a million clients, by all processors at once: time is per decision of the
// whole, so what one takes is that times the processors.
func BenchmarkDecideMillionKeys(b *testing.B) {
	limit := mustEvents(b, 0, 100, time.Hour, 200, 0)
	m := filled(b, limit)
	var start atomic.Uint32
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		requests := make([]Request, 1)
		now := time.Duration(0)
		for i := start.Add(1 << 28); pb.Next(); i++ {
			now += 50
			requests[0] = Request{Limit: limit, Key: limit.ForAddr(client(scatter(i)), 32)}
			m.Decide(now, requests)
		}
	})
}

// The same by one goroutine.
func BenchmarkDecideMillionKeysAlone(b *testing.B) {
	limit := mustEvents(b, 0, 100, time.Hour, 200, 0)
	m := filled(b, limit)
	requests := make([]Request, 1)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range uint32(b.N) {
		requests[0] = Request{Limit: limit, Key: limit.ForAddr(client(scatter(i)), 32)}
		m.Decide(time.Duration(i), requests)
	}
}

// Three limits at once: of the client, of all, and a count.
func BenchmarkDecideThreeLimits(b *testing.B) {
	limit := mustEvents(b, 0, 100, time.Hour, 200, 0)
	all := mustEvents(b, 1, 1e9, time.Second, 1000, 0)
	count := NewCount(2, million)
	m := filled(b, limit)
	requests := make([]Request, 3)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range uint32(b.N) {
		addr := client(scatter(i))
		requests[0] = Request{Limit: limit, Key: limit.ForAddr(addr, 32)}
		requests[1] = Request{Limit: all, Key: all.ForText("")}
		requests[2] = Request{Limit: count, Key: count.ForText("")}
		if d := m.Decide(time.Duration(i)*1000, requests); !d.Refused {
			m.Release(time.Duration(i), requests)
		}
	}
}

// A key takes this much memory at its worst, just after the tables have grown.
func BenchmarkMemoryPerKey(b *testing.B) {
	limit := mustEvents(b, 0, 100, time.Hour, 200, 0)
	for b.Loop() {
		before := heap()
		m := NewMemory(million)
		worst := 0.0
		requests := make([]Request, 1)
		for i := range uint32(million) {
			requests[0] = Request{Limit: limit, Key: limit.ForAddr(client(i), 32)}
			m.Decide(0, requests)
			if i >= million/2 && i%20_000 == 0 {
				worst = max(worst, float64(heap()-before)/float64(i+1))
			}
		}
		b.ReportMetric(worst, "worst-B/key")
		b.ReportMetric(float64(heap()-before)/million, "B/key")
		runtime.KeepAlive(m)
	}
}

func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}
