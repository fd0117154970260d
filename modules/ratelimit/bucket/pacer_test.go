package bucket_test

import (
	"container/heap"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// bandwidth is a limit of so many bytes a second.
func bandwidth(t testing.TB, rate, burst int64) *bucket.Limit {
	t.Helper()
	l, err := bucket.NewBytes(9, rate, time.Second, burst)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// sender has so much to send through its pacer, and sends it as early as it may, up to tick late, as with a
// timer of that resolution.
type sender struct {
	pacer *bucket.Pacer
	left  int
	part  int           // moves at most so much at a time, where it is not 0
	at    time.Duration // of its next move
	done  time.Duration
}

type senders []*sender

func (s senders) Len() int           { return len(s) }
func (s senders) Less(i, j int) bool { return s[i].at < s[j].at }
func (s senders) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }
func (s *senders) Push(x any)        { *s = append(*s, x.(*sender)) }
func (s *senders) Pop() any {
	last := (*s)[len(*s)-1]
	*s = (*s)[:len(*s)-1]
	return last
}

// transfer runs them all to their end and returns when that was.
func transfer(tick time.Duration, all ...*sender) (end time.Duration) {
	queue := senders{}
	for _, s := range all {
		s.at = max(s.pacer.Moved(s.at, 0), s.at)
		heap.Push(&queue, s)
	}
	for len(queue) > 0 {
		s := heap.Pop(&queue).(*sender)
		n := min(s.left, s.pacer.Quantum())
		if s.part > 0 {
			n = min(n, s.part)
		}
		s.left -= n
		s.done = s.at
		end = max(end, s.at)
		until := s.pacer.Moved(s.at, n)
		if s.left == 0 {
			continue
		}
		if until > s.at {
			s.at = (until + tick - 1) / tick * tick
		}
		heap.Push(&queue, s)
	}
	return end
}

func TestBandwidth(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rate, burst int64
		bytes       int
		want        time.Duration
	}{
		"10 MB at 1 MB/s":                {1e6, 1e5, 10e6, 10 * time.Second},
		"10 MB at 1 MB/s, a large burst": {1e6, 5e6, 10e6, 5 * time.Second},
		"1 GB at 100 MB/s":               {100e6, 10e6, 1e9, 10 * time.Second},
		"2 GB at 5 GB/s":                 {5e9, 1e7, 2e9, 400 * time.Millisecond},
		"1,000 bytes at 250 B/s":         {250, 25, 1000, 4 * time.Second},
		"100 bytes at 1 B/s":             {1, 1, 100, 100 * time.Second},
	} {
		m := bucket.NewMemory(10)
		pacer := func() *bucket.Pacer {
			l := bandwidth(t, c.rate, c.burst)
			return bucket.NewPacer(m, bucket.Request{Limit: l, Key: l.ForText(name)})
		}
		const tick = time.Millisecond
		if got := transfer(tick, &sender{pacer: pacer(), left: c.bytes}); got < c.want*94/100 || got > c.want*105/100 {
			t.Errorf("%s: one took %v, want %v", name, got, c.want)
		}
		if c.rate < 1000 || c.burst > c.rate {
			continue // too little, or too early, to be shared
		}
		later := 1000 * time.Second
		var four []*sender
		for range 4 {
			four = append(four, &sender{pacer: pacer(), left: c.bytes / 4, at: later})
		}
		if got := transfer(tick, four...) - later; got < c.want*94/100 || got > c.want*105/100 {
			t.Errorf("%s: four took %v, want %v", name, got, c.want)
		}
		for _, s := range four {
			if s.done-later < c.want*8/10 {
				t.Errorf("%s: one of four had its share after %v of %v", name, s.done-later, c.want)
			}
		}
	}
}

// Sessions have the same share, however much they move at a time.
func TestFairShares(t *testing.T) {
	t.Parallel()
	m := bucket.NewMemory(10)
	l := bandwidth(t, 10e6, 1e5)
	var all []*sender
	for _, part := range []int{0, 16 << 10, 1 << 10, 100} {
		pacer := bucket.NewPacer(m, bucket.Request{Limit: l, Key: l.ForText("a")})
		all = append(all, &sender{pacer: pacer, left: 10e6, part: part})
	}
	end := transfer(time.Millisecond, all...)
	for _, s := range all {
		if s.done < end*95/100 {
			t.Errorf("one that moves %d bytes at a time was through after %v, all after %v", s.part, s.done, end)
		}
	}
	if want := 4 * time.Second; end < want*97/100 || end > want*102/100 {
		t.Errorf("all took %v, want %v", end, want)
	}
}

// Whoever sends less than the rate is never held up, and one that shares with a greedy one is held up by no
// more than that one's quantum.
func TestTinyWritesAreNotDelayed(t *testing.T) {
	t.Parallel()
	m := bucket.NewMemory(10)
	l := bandwidth(t, 10_000, 1000)
	pacer := bucket.NewPacer(m, bucket.Request{Limit: l, Key: l.ForText("a")})
	for now := time.Duration(0); now < 10*time.Second; now += 10 * time.Millisecond {
		if until := pacer.Moved(now, 90); until > now {
			t.Fatalf("at %v told to pause for %v", now, until-now)
		}
	}
}

// Sessions that are opened one after another share what there is too.
func TestShortSessionsDoNotEscape(t *testing.T) {
	t.Parallel()
	m := bucket.NewMemory(10)
	l := bandwidth(t, 1e6, 1e5)
	var now time.Duration
	moved := 0
	for moved < 10e6 {
		pacer := bucket.NewPacer(m, bucket.Request{Limit: l, Key: l.ForText("a")})
		now = max(now, pacer.Moved(now, 0))
		pacer.Moved(now, pacer.Quantum())
		moved += pacer.Quantum()
	}
	if now < 9500*time.Millisecond {
		t.Errorf("10 MB took %v, want 10s", now)
	}
}

// A limit for one direction and one for both: the slower holds.
func TestPacerOfSeveralLimits(t *testing.T) {
	t.Parallel()
	m := bucket.NewMemory(10)
	slow, quick := bandwidth(t, 1e5, 1e4), mustBytes(t)[0]
	pacer := bucket.NewPacer(m, quick, bucket.Request{Limit: slow, Key: slow.ForText("a")})
	if slow := bucket.NewPacer(m, bucket.Request{Limit: slow, Key: slow.ForText("a")}); pacer.Quantum() != slow.Quantum() {
		t.Errorf("a quantum of %d, want that of the slower one, %d", pacer.Quantum(), slow.Quantum())
	}
	if got := transfer(time.Millisecond, &sender{pacer: pacer, left: 1e6}); got < 9*time.Second || got > 11*time.Second {
		t.Errorf("1 MB at 100 kB/s took %v", got)
	}
}

// Times beyond the range are its end. A debt that lasts for longer than that is no debt of nothing.
func TestTimesDoNotOverflow(t *testing.T) {
	t.Parallel()
	slow, err := bucket.NewBytes(1, 1, 24*time.Hour, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, now := range []time.Duration{0, time.Hour, 200 * 365 * 24 * time.Hour} {
		store := bucket.NewMemory(10)
		request := bucket.Request{Limit: slow, Key: slow.ForText("x")}
		for _, n := range []int{1 << 10, 1 << 30, 1 << 20} {
			if until := store.Charge(now, &request, n); until <= now {
				t.Errorf("at %v, after %d bytes at 1 a day: no pause", now, n)
			}
		}
	}
}
