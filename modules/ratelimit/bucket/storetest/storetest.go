// Package storetest is what every [bucket.Store] has to pass.
package storetest

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// Subject is a store to be tested. Its clock may be a real one: the tests do not depend on how fast they run.
type Subject struct {
	bucket.Store
	Now  func() time.Duration
	Pass func(time.Duration) // returns when so much time has passed
}

// Run tests the stores that open returns, each of which must be empty.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for name, test := range map[string]func(*testing.T, Subject){
		"a burst passes and no more":             burst,
		"a bucket fills with time":               refill,
		"what one limit refuses is not charged":  refusalChargesNobody,
		"a leaky bucket delays in order":         leaky,
		"a reservation is given back":            cancelled,
		"a count is given back":                  count,
		"a refused count charges no rate":        countAndRate,
		"keys and limits are apart":              apart,
		"at once as one after another":           atOnce,
		"a count holds at once":                  countAtOnce,
		"a limit that was changed holds at once": changed,
		"like the oracle":                        likeOracle,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

// hourly is a limit for which the time of a test stands still.
func hourly(burst int64) Spec { return Spec{N: 1, Per: time.Hour, Burst: burst} }

func limit(t testing.TB, id uint16, spec Spec) *bucket.Limit {
	t.Helper()
	l, err := spec.Limit(id)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func one(l *bucket.Limit, key string) []bucket.Request {
	return []bucket.Request{{Limit: l, Key: l.ForText(key)}}
}

func (s Subject) decide(requests []bucket.Request) bucket.Decision {
	return s.Decide(s.Now(), requests)
}

// admits requires that n are admitted, and the next is not, because of the request with that index.
func (s Subject) admits(t testing.TB, n int, requests []bucket.Request, because int) {
	t.Helper()
	for i := range n {
		if d := s.decide(requests); d.Refused || d.Failed || d.Delay != 0 {
			t.Fatalf("%d of %d: %+v", i+1, n, d)
		}
	}
	if d := s.decide(requests); !d.Refused || d.Failed || d.Limit != because {
		t.Fatalf("one more than %d: %+v, want it refused by limit %d", n, d, because)
	}
}

func burst(t *testing.T, s Subject) {
	l := limit(t, 1, hourly(5))
	s.admits(t, 5, one(l, "a"), 0)
	d := s.decide(one(l, "a"))
	if d.Retry <= 59*time.Minute || d.Retry > time.Hour {
		t.Errorf("the next after %v, want nearly an hour", d.Retry)
	}
}

func refill(t *testing.T, s Subject) {
	const interval = 50 * time.Millisecond
	l := limit(t, 1, Spec{N: 1, Per: interval, Burst: 3})
	start, admitted := s.Now(), 0
	for range 12 {
		d := s.decide(one(l, "a"))
		if !d.Refused {
			admitted++
			continue
		}
		if d.Retry <= 0 || d.Retry > interval {
			t.Fatalf("the next after %v, want at most %v", d.Retry, interval)
		}
		s.Pass(d.Retry)
		if d = s.decide(one(l, "a")); d.Refused {
			t.Fatalf("refused after the time it was told: %+v", d)
		}
		admitted++
	}
	if most := 3 + int((s.Now()-start)/interval) + 1; admitted > most {
		t.Errorf("admitted %d, want at most %d", admitted, most)
	}
}

func refusalChargesNobody(t *testing.T, s Subject) {
	wide, narrow := limit(t, 1, hourly(4)), limit(t, 2, hourly(1))
	both := append(one(wide, "a"), one(narrow, "a")...)
	s.admits(t, 1, both, 1)
	s.admits(t, 0, both, 1)
	s.admits(t, 3, one(wide, "a"), 0)
	// In the other order.
	both = append(one(narrow, "b"), one(wide, "b")...)
	s.admits(t, 1, both, 0)
	s.admits(t, 0, both, 0)
	s.admits(t, 3, one(wide, "b"), 0)
}

func leaky(t *testing.T, s Subject) {
	const interval = 200 * time.Millisecond
	l := limit(t, 1, Spec{N: 1, Per: interval, Burst: 2, MaxDelay: 3 * interval})
	start := s.Now()
	var due time.Duration // of the last one
	for i := range 5 {
		before := s.Now()
		d := s.decide(one(l, "a"))
		after := s.Now()
		want := time.Duration(max(i-1, 0)) * interval // after start
		if d.Refused || d.Delay > want-(before-start) && d.Delay > want {
			t.Fatalf("number %d: %+v, want at most %v", i, d, want)
		}
		// No sooner than its turn, which began no earlier than start.
		if before+d.Delay < due && after+d.Delay < due {
			t.Errorf("number %d goes %v before the one before it", i, due-after-d.Delay)
		}
		if at := after + d.Delay - start; at < want {
			t.Errorf("number %d goes after %v, want %v", i, at, want)
		}
		due = before + d.Delay
	}
	// All five have been given out unless time has passed meanwhile.
	if d := s.decide(one(l, "a")); !d.Refused && s.Now()-start < interval {
		t.Errorf("one more than may wait: %+v", d)
	}
}

// cancelled gives back what waits. The limits of an hour make the time of the test stand still, but for blur.
func cancelled(t *testing.T, s Subject) {
	const blur = time.Minute
	l, other := limit(t, 1, Spec{N: 1, Per: time.Hour, Burst: 1, MaxDelay: 200 * time.Hour}), limit(t, 2, hourly(1000))
	reserve := func(want time.Duration) []bucket.Request {
		t.Helper()
		requests := append(one(other, "a"), one(l, "a")...)
		d := s.decide(requests)
		if got := requests[1].Reserved.Delay; d.Refused || d.Delay != got || (got-want).Abs() > blur {
			t.Fatalf("%+v, with %+v, want a delay of %v", d, requests[1].Reserved, want)
		}
		if requests[0].Reserved.Delay != 0 {
			t.Fatalf("%+v of a limit that does not delay", requests[0].Reserved)
		}
		return requests
	}
	// giveBack requires that so many can't be given back.
	giveBack := func(kept int, requests ...bucket.Request) {
		t.Helper()
		done := make(chan int, 1)
		s.Cancel(s.Now(), requests, func(all []bucket.Request) { done <- len(all) })
		if n := <-done; n != kept {
			t.Fatalf("%d were kept, want %d", n, kept)
		}
	}
	// next requires that the next one would wait so long.
	next := func(want time.Duration) {
		t.Helper()
		giveBack(0, reserve(want)[1])
	}
	reserve(0)
	var all []bucket.Request
	for i := range 100 {
		all = append(all, reserve(time.Duration(i+1) * time.Hour)[1])
		if i > 0 && all[i].Reserved.Mark <= all[i-1].Reserved.Mark {
			t.Fatalf("the marks do not rise: %+v", all)
		}
	}
	slices.Reverse(all)
	giveBack(0, all[:90]...) // more than are told at once
	all = all[90:]
	slices.Reverse(all)
	next(11 * time.Hour)
	giveBack(0, all[9], all[8])
	next(9 * time.Hour)
	giveBack(1, all[9]) // twice
	giveBack(2, all[0], all[1])
	giveBack(0, all[7])
	next(8 * time.Hour)
	giveBack(0, all[6], all[5], all[4], all[3], all[2], all[1], all[0])
	next(time.Hour)
}

func count(t *testing.T, s Subject) {
	l := limit(t, 1, Spec{Count: 3})
	s.admits(t, 3, one(l, "a"), 0)
	s.Release(s.Now(), one(l, "a"))
	s.admits(t, 1, one(l, "a"), 0)
	for range 3 {
		s.Release(s.Now(), one(l, "a"))
	}
	for range 1000 {
		if d := s.decide(one(l, "a")); d.Refused {
			t.Fatalf("refused when nobody was there: %+v", d)
		}
		s.Release(s.Now(), one(l, "a"))
	}
	s.admits(t, 3, one(l, "a"), 0)
}

func countAndRate(t *testing.T, s Subject) {
	rate, at := limit(t, 1, hourly(4)), limit(t, 2, Spec{Count: 2})
	both := append(one(rate, "a"), one(at, "a")...)
	s.admits(t, 2, both, 1)
	s.Release(s.Now(), both)
	s.admits(t, 1, both, 1)
	s.Release(s.Now(), both)
	s.Release(s.Now(), both)
	s.admits(t, 1, both, 0) // the rate has admitted four
	s.admits(t, 1, one(at, "a"), 0)
}

func apart(t *testing.T, s Subject) {
	first, second := limit(t, 1, hourly(1)), limit(t, 2, hourly(1))
	third := limit(t, 3, Spec{Count: 1})
	for _, l := range []*bucket.Limit{first, second, third} {
		for _, key := range []string{"", "a", "b", "a text that does not fit into a key", "a text that does not fit into a key, either"} {
			s.admits(t, 1, one(l, key), 0)
		}
	}
}

func atOnce(t *testing.T, s Subject) {
	wide, narrow := limit(t, 1, hourly(1000)), limit(t, 2, hourly(40))
	var admitted atomic.Int64
	var clients sync.WaitGroup
	for client := range 8 {
		clients.Go(func() {
			// In turn in both orders, which must not make two wait for each other.
			requests := append(one(wide, "a"), one(narrow, "a")...)
			if client%2 == 0 {
				requests[0], requests[1] = requests[1], requests[0]
			}
			for range 50 {
				if d := s.decide(requests); !d.Refused {
					admitted.Add(1)
				}
			}
		})
	}
	clients.Wait()
	if n := admitted.Load(); n != 40 {
		t.Errorf("admitted %d, want 40", n)
	}
}

func countAtOnce(t *testing.T, s Subject) {
	l := limit(t, 1, Spec{Count: 3})
	var inside, served atomic.Int64
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for range 50 {
				if d := s.decide(one(l, "a")); d.Refused {
					continue
				}
				if n := inside.Add(1); n > 3 {
					t.Errorf("%d at once", n)
				}
				served.Add(1)
				inside.Add(-1)
				s.Release(s.Now(), one(l, "a"))
			}
		})
	}
	clients.Wait()
	if served.Load() == 0 {
		t.Error("nobody was served")
	}
	s.admits(t, 3, one(l, "a"), 0)
}

// A reload may bring a limit with other numbers.
func changed(t *testing.T, s Subject) {
	s.admits(t, 50, one(limit(t, 1, hourly(50)), "a"), 0)
	quick := limit(t, 1, Spec{N: 20, Per: time.Second, Burst: 2})
	d := s.decide(one(quick, "a"))
	if !d.Refused || d.Retry > 50*time.Millisecond {
		t.Fatalf("%+v, want it refused for at most 50ms: an empty bucket, but a quick one", d)
	}
	s.Pass(d.Retry)
	if d = s.decide(one(quick, "a")); d.Refused {
		t.Errorf("still refused: %+v", d)
	}
}

// likeOracle decides at random, in a time in which no bucket fills by one.
func likeOracle(t *testing.T, s Subject) {
	random := rand.New(rand.NewPCG(6, uint64(s.Now())))
	o := Oracle{Specs: []Spec{
		hourly(7), {N: 3, Per: 5 * time.Hour, Burst: 2, MaxDelay: 20 * time.Hour}, {Count: 4}, hourly(20), {Count: 1},
	}}
	limits := make([]*bucket.Limit, len(o.Specs))
	for id, spec := range o.Specs {
		limits[id] = limit(t, uint16(id), spec)
	}
	var held [][]Asked
	for step := range 400 {
		if len(held) > 0 && random.IntN(3) == 0 {
			i := random.IntN(len(held))
			o.Release(held[i]...)
			s.Release(s.Now(), requests(limits, held[i]))
			held = append(held[:i], held[i+1:]...)
			continue
		}
		var asked []Asked
		for _, id := range random.Perm(len(limits))[:1+random.IntN(len(limits))] {
			asked = append(asked, Asked{uint16(id), strconv.Itoa(random.IntN(5))})
		}
		want := o.Decide(0, asked...)
		got := s.decide(requests(limits, asked))
		const blur = 10 * time.Minute
		if got.Refused != want.Refused || got.Failed || got.Limit != want.Limit ||
			(got.Delay-want.Delay).Abs() > blur || (got.Retry-want.Retry).Abs() > blur {
			t.Fatalf("step %d: %v\n got %+v\nwant %+v", step, asked, got, want)
		}
		if !got.Refused {
			held = append(held, asked)
		}
	}
}

func requests(limits []*bucket.Limit, asked []Asked) (all []bucket.Request) {
	for _, a := range asked {
		all = append(all, one(limits[a.ID], a.Key)...)
	}
	return all
}
