package bucket_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket/storetest"
)

// clock is one that a test sets.
type clock struct{ atomic.Int64 }

func (c *clock) now() time.Duration       { return time.Duration(c.Load()) }
func (c *clock) pass(after time.Duration) { c.Add(int64(after)) }

func TestMemory(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(*testing.T) storetest.Subject {
		var c clock
		return storetest.Subject{Store: bucket.NewMemory(1000), Now: c.now, Pass: c.pass}
	})
}

func events(t testing.TB, id uint16, n int64, per time.Duration, burst int64, maxDelay time.Duration) *bucket.Limit {
	t.Helper()
	l, err := bucket.NewEvents(id, n, per, burst, maxDelay)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func text(l *bucket.Limit, key string) []bucket.Request {
	return []bucket.Request{{Limit: l, Key: l.ForText(key)}}
}

// 100 a second and a burst of 200 admit 1,200 in 10 seconds, however many ask.
func TestAccuracy(t *testing.T) {
	t.Parallel()
	m := bucket.NewMemory(10)
	l := events(t, 0, 100, time.Second, 200, 0)
	admitted := 0
	for now := time.Duration(0); now < 10*time.Second; now += 800 * time.Microsecond {
		for range 8 {
			if d := m.Decide(now, text(l, "all")); !d.Refused {
				admitted++
			}
		}
	}
	if admitted < 1199 || admitted > 1200 {
		t.Errorf("admitted %d, want 1200", admitted)
	}
}

// Rates that do not divide their time are rounded so that no more is admitted, and by less than one in a million.
func TestOddRates(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{3, 7, 999, 1_000_003} {
		l := events(t, 0, n, time.Second, 3, 0)
		m := bucket.NewMemory(10)
		admitted := int64(0)
		var now time.Duration
		for admitted < 3000 {
			d := m.Decide(now, text(l, "a"))
			if d.Refused {
				now += d.Retry
				continue
			}
			admitted++
		}
		ideal := time.Duration(float64(admitted-3) / float64(n) * 1e9)
		if off := now - ideal; off < 0 || float64(off) > float64(ideal)*1e-6+float64(admitted) {
			t.Errorf("%d/s: %d took %v, want %v", n, admitted, now, ideal)
		}
	}
}

func TestBurstThatTakesTooLong(t *testing.T) {
	t.Parallel()
	for _, burst := range []int64{101, 1 << 40, 1<<63 - 1} {
		if _, err := bucket.NewEvents(0, 1, 24*time.Hour, burst, 0); err == nil {
			t.Errorf("1/d with a burst of %d: no error", burst)
		}
		if _, err := bucket.NewBytes(0, 1, 24*time.Hour, burst); err == nil {
			t.Errorf("1 B/d with a burst of %d: no error", burst)
		}
	}
	if _, err := bucket.NewEvents(0, 1, 24*time.Hour, 100, 0); err != nil {
		t.Error(err)
	}
}

// At the cap nothing that is being limited is forgotten, new keys share, and what has become idle makes room.
func TestCap(t *testing.T) {
	t.Parallel()
	const maxKeys = 1000
	m := bucket.NewMemory(maxKeys)
	l := events(t, 0, 1, time.Hour, 2, 0)
	limited := func(now time.Duration) (n int) {
		for i := range maxKeys {
			if m.Decide(now, text(l, fmt.Sprint(i))).Refused {
				n++
			}
		}
		return n
	}
	for range 2 {
		limited(0)
	}
	if n := limited(0); n != maxKeys {
		t.Fatalf("%d of %d are limited", n, maxKeys)
	}
	const newcomers = 100_000
	admitted := 0
	for i := range newcomers {
		if !m.Decide(0, text(l, fmt.Sprint("new", i))).Refused {
			admitted++
		}
	}
	if admitted != 2*2048 {
		t.Errorf("%d newcomers were admitted, want two in each of 2,048 buckets", admitted)
	}
	if n := m.Len(0); n != maxKeys+2048 {
		t.Errorf("%d buckets are kept, want %d", n, maxKeys+2048)
	}
	if n := limited(0); n != maxKeys {
		t.Errorf("only %d of %d are still limited", n, maxKeys)
	}
	// An hour later each has one again, newcomers too.
	const later = time.Hour + time.Minute
	if n := limited(later); n != 0 {
		t.Errorf("%d are refused when an hour has passed", n)
	}
	// And when all buckets are full again, nothing is kept.
	if n := m.Len(10 * time.Hour); n != 0 {
		t.Errorf("%d buckets are kept when all are full", n)
	}
	for range 2 {
		if m.Decide(10*time.Hour, text(l, "new1")).Refused {
			t.Error("a newcomer has no burst of its own where there is room")
		}
	}
}

// A key that moves from a shared bucket into one of its own brings along what it has used.
func TestNoFreshBurstWhenRoomReturns(t *testing.T) {
	t.Parallel()
	m := bucket.NewMemory(1)
	brief, long := events(t, 0, 1, time.Second, 1, 0), events(t, 1, 1, time.Hour, 3, 0)
	m.Decide(0, text(brief, "takes the room"))
	for range 3 {
		if m.Decide(0, text(long, "a")).Refused {
			t.Fatal("refused within the burst")
		}
	}
	for now := time.Duration(0); now < 10*time.Second; now += 100 * time.Millisecond {
		if !m.Decide(now, text(long, "a")).Refused {
			t.Fatalf("admitted again after %v", now)
		}
	}
}

// FuzzOracle decides as the fuzzer says, and as the oracle does.
func FuzzOracle(f *testing.F) {
	f.Add([]byte{3, 7, 2, 1, 0, 0, 5, 17, 33, 80, 200, 255, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	f.Fuzz(func(t *testing.T, script []byte) { compare(t, script, 1_000_000) })
}

// FuzzCap does the same with hardly any room: the store may then refuse more than the oracle does, but
// never admit what the oracle refuses, and it loses no count.
func FuzzCap(f *testing.F) {
	f.Add([]byte{3, 7, 2, 1, 0, 0, 5, 17, 33, 80, 200, 255, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	f.Fuzz(func(t *testing.T, script []byte) { compare(t, script, 2) })
}

func TestOracleAtRandom(t *testing.T) {
	t.Parallel()
	random := rand.NewChaCha8([32]byte{})
	for range 300 {
		script := make([]byte, 300)
		_, _ = random.Read(script)
		compare(t, script, 1_000_000)
		compare(t, script, 2)
	}
}

// compare reads the numbers of four limits and then decisions, three bytes each.
func compare(t *testing.T, script []byte, maxKeys int) {
	if len(script) < 6 {
		return
	}
	s := script
	o := storetest.Oracle{Specs: []storetest.Spec{
		{N: 1 + int64(s[0]), Per: time.Second, Burst: 1 + int64(s[1]%9)},
		{N: 1 + int64(s[2]%16), Per: time.Minute, Burst: 1 + int64(s[3]%4), MaxDelay: time.Duration(s[4]) * time.Second},
		{Count: 1 + int64(s[5]%4)},
		{N: 1 + int64(s[5]), Per: 97 * time.Millisecond, Burst: 1},
	}}
	c := comparison{t: t, oracle: &o, store: bucket.NewMemory(maxKeys), exact: maxKeys > 2}
	for id, spec := range o.Specs {
		l, err := spec.Limit(uint16(id))
		if err != nil {
			t.Fatal(err)
		}
		c.limits = append(c.limits, l)
	}
	for s = s[6:]; len(s) >= 3; s = s[3:] {
		c.step(s[0], s[1], s[2])
	}
	for len(c.held) > 0 {
		c.release(0)
	}
	if n := c.store.Len(c.now + time.Hour*24*365); n != 0 {
		t.Errorf("%d buckets are left when all is over", n)
	}
}

type comparison struct {
	t      *testing.T
	oracle *storetest.Oracle
	store  *bucket.Memory
	limits []*bucket.Limit
	exact  bool
	now    time.Duration
	held   [][]storetest.Asked
}

func (c *comparison) step(which, key, pass byte) {
	c.now += time.Duration(pass) * time.Duration(pass) * 3 * time.Millisecond
	if which >= 0xe0 && len(c.held) > 0 {
		c.release(int(key) % len(c.held))
		return
	}
	var asked []storetest.Asked
	for id := range c.limits {
		if which>>id&1 == 1 {
			asked = append(asked, storetest.Asked{ID: uint16(id), Key: fmt.Sprint((int(key) + id) % 5)})
		}
	}
	if len(asked) == 0 {
		return
	}
	before := *c.oracle
	want := c.oracle.Decide(c.now, asked...)
	got := c.store.Decide(c.now, c.requests(asked))
	if got.Failed || got != want && (c.exact || want.Refused && !got.Refused) {
		c.t.Fatalf("at %v: %v\n got %+v\nwant %+v", c.now, asked, got, want)
	}
	if got.Refused {
		*c.oracle = before // what the store has refused did not happen
		return
	}
	c.held = append(c.held, asked)
}

func (c *comparison) release(i int) {
	c.oracle.Release(c.held[i]...)
	c.store.Release(c.now, c.requests(c.held[i]))
	c.held = append(c.held[:i], c.held[i+1:]...)
}

func (c *comparison) requests(asked []storetest.Asked) (all []bucket.Request) {
	for _, a := range asked {
		all = append(all, text(c.limits[a.ID], a.Key)...)
	}
	return all
}

// Many goroutines that decide about many keys in a small store, for the race detector.
func TestMemoryAtOnce(t *testing.T) {
	t.Parallel()
	m := bucket.NewMemory(50)
	rate, at := events(t, 0, 1, time.Millisecond, 2, 0), bucket.NewCount(1, 3)
	var c clock
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(g)))
			for range 3000 {
				key := fmt.Sprint(random.IntN(200))
				requests := append(text(rate, key), text(at, key)...)
				if d := m.Decide(c.now(), requests); !d.Refused {
					m.Release(c.now(), requests)
				}
				m.Charge(c.now(), &mustBytes(t)[0], 100)
				c.pass(10 * time.Microsecond)
			}
		})
	}
	all.Go(func() {
		for range 20 {
			m.Len(c.now())
			m.Nearest(c.now(), []*bucket.Limit{rate, at}, 5)
		}
	})
	all.Wait()
	if n := m.Len(time.Hour); n != 0 {
		t.Errorf("%d buckets are left", n)
	}
}

func mustBytes(t testing.TB) []bucket.Request {
	l, err := bucket.NewBytes(2, 1e9, time.Second, 1e6)
	if err != nil {
		t.Fatal(err)
	}
	return text(l, "bytes")
}

func TestNearest(t *testing.T) {
	t.Parallel()
	m := bucket.NewMemory(1000)
	rate, at, other := events(t, 0, 1, time.Hour, 10, 0), bucket.NewCount(1, 4), events(t, 2, 1, time.Hour, 1, 0)
	for i := range 9 {
		for range i {
			m.Decide(0, text(rate, fmt.Sprint("rate", i)))
		}
	}
	for range 3 {
		m.Decide(0, text(at, "count"))
	}
	m.Decide(0, text(other, "of another"))
	var got []string
	for _, usage := range m.Nearest(0, []*bucket.Limit{rate, at}, 4) {
		got = append(got, fmt.Sprintf("%s %.2f", usage.Key, usage.Used))
	}
	if want := "[rate8 0.80 count 0.75 rate7 0.70 rate6 0.60]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if left := m.Nearest(100*time.Hour, []*bucket.Limit{rate}, 4); len(left) > 0 {
		t.Errorf("buckets that are full: %v", left)
	}
}

// What was used under one limit is used under the one that takes its place.
func TestSlow(t *testing.T) {
	t.Parallel()
	quick, slow := events(t, 0, 100, time.Second, 200, 0), events(t, 0, 1, time.Second, 10, 0)
	for used, left := range map[int]int{200: 0, 5: 5, 0: 10} {
		m := bucket.NewMemory(10)
		for range used {
			m.Decide(0, text(quick, "a"))
		}
		m.Slow(0, quick, slow)
		m.Slow(0, slow, quick) // does not bring it back: that config may never have run
		admitted := 0
		for !m.Decide(0, text(slow, "a")).Refused {
			admitted++
		}
		if admitted != left {
			t.Errorf("%d used under 100/s, then %d admitted under 1/s with a burst of 10, want %d", used, admitted, left)
		}
	}
}

// What was decided elsewhere leaves no burst here.
func TestForce(t *testing.T) {
	t.Parallel()
	m := bucket.NewMemory(10)
	l := events(t, 0, 1, time.Hour, 3, 0)
	for range 5 {
		m.Force(0, text(l, "a"))
	}
	if d := m.Decide(0, text(l, "a")); !d.Refused || d.Retry != time.Hour {
		t.Errorf("%+v, want it refused for an hour", d)
	}
}

// A million keys take no more than 96 bytes each, also just after the tables have grown, and those of one /64 are one.
func TestMemoryPerKey(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before := heap()
	m := bucket.NewMemory(1_000_000)
	l := events(t, 0, 1, time.Hour, 3, 0)
	requests := make([]bucket.Request, 1)
	for i := range uint32(1_000_000) {
		v4 := netip.AddrFrom4([4]byte{byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)})
		requests[0] = bucket.Request{Limit: l, Key: l.ForAddr(v4, 32)}
		m.Decide(0, requests)
		if i < 500_000 || i%50_000 != 0 {
			continue
		}
		if each := float64(heap()-before) / float64(i+1); each > 96 {
			t.Errorf("%.1f bytes each of %d keys", each, i+1)
		}
	}
	if n := m.Len(0); n != 1_000_000 {
		t.Errorf("%d keys are kept", n)
	}
	m = bucket.NewMemory(1_000_000)
	site := netip.MustParseAddr("2001:db8::").As16()
	for i := range uint32(1_000_000) {
		binary.BigEndian.PutUint32(site[12:], i)
		requests[0] = bucket.Request{Limit: l, Key: l.ForAddr(netip.AddrFrom16(site), 64)}
		if d := m.Decide(0, requests); d.Refused != (i >= 3) {
			t.Fatalf("address %d of a /64: %+v", i, d)
		}
	}
	if n := m.Len(0); n != 1 {
		t.Errorf("a million addresses of one /64 are %d keys", n)
	}
}

func TestDecisionsAllocateNothing(t *testing.T) {
	m := bucket.NewMemory(10)
	rate, at := events(t, 0, 1, time.Nanosecond, 10, 0), bucket.NewCount(1, 3)
	requests := append(text(rate, "a"), text(at, "a")...)
	now := time.Duration(0)
	if n := testing.AllocsPerRun(1000, func() {
		now += time.Second
		if m.Decide(now, requests).Refused {
			t.Fatal("refused")
		}
		m.Release(now, requests)
		m.Decide(now, requests[:1])
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
