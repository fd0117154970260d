package ratelimit

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// waiting is a queue of its own, in the time of a bubble.
type waiting struct {
	*queue
	store  *forgetful
	limits []*bucket.Limit
}

// forgetful is a store that may lose what it knows.
type forgetful struct{ *bucket.Memory }

const every = 100 * time.Millisecond

func newWaiting(t *testing.T, maxDelay time.Duration, rates ...int64) *waiting {
	t.Helper()
	start := time.Now()
	w := &waiting{queue: newQueue(func() time.Duration { return time.Since(start) }), store: &forgetful{bucket.NewMemory(100_000)}}
	for i, rate := range rates {
		limit, err := bucket.NewEvents(uint16(i), rate, time.Second, 1, maxDelay)
		if err != nil {
			t.Fatal(err)
		}
		w.limits = append(w.limits, limit)
	}
	return w
}

// come has a client come, with a key for each limit. It returns nil where the client is refused, and how long it would wait.
func (w *waiting) come(keys ...string) (*waiter, time.Duration) {
	var requests []bucket.Request
	for i, key := range keys {
		requests = append(requests, bucket.Request{Limit: w.limits[i], Key: w.limits[i].ForText(key)})
	}
	d := w.store.Decide(w.now(), requests)
	if d.Refused {
		return nil, 0
	}
	if d.Delay == 0 {
		return &waiter{queue: w.queue}, 0
	}
	return w.join(w.store, requests), d.Delay
}

// left is how many waiters and lines there are.
func (w *waiting) left() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count + len(w.lines)
}

// A client that comes when 400 others have gone waits as if they had not come.
func TestTheGoneLeaveTheirTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWaiting(t, time.Minute, 10)
		w.come("x")
		var all []*waiter
		for range 400 {
			one, _ := w.come("x")
			all = append(all, one)
		}
		if n := w.len(); n != 400 {
			t.Fatalf("%d wait", n)
		}
		for _, one := range all {
			one.leave()
			one.leave() // does nothing more
		}
		next, delay := w.come("x")
		if delay > every {
			t.Errorf("the next one waits %v, want %v", delay, every)
		}
		<-next.ready
		if took := w.now(); took != every {
			t.Errorf("it goes after %v", took)
		}
		synctest.Wait()
		if n := w.left(); n > 0 || waitingNow.Load() != 0 {
			t.Errorf("%d waiters or lines are left, %d of all", n, waitingNow.Load())
		}
	})
}

// Whoever leaves, the others go in the order in which they came, at the rate and without a gap.
func TestOrderOfThoseWhoStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWaiting(t, time.Minute, 10)
		w.come("x")
		var mu sync.Mutex
		var went []string
		for i := range 60 {
			one, _ := w.come("x")
			switch {
			case i%3 == 0: // goes at once
				one.leave()
				continue
			case i%5 == 0: // goes later
				time.AfterFunc(550*time.Millisecond, one.leave)
				continue
			}
			go func() {
				<-one.ready
				mu.Lock()
				defer mu.Unlock()
				went = append(went, fmt.Sprint(i, " ", w.now()))
			}()
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		var want []string
		at := time.Duration(0)
		for i := range 60 {
			if i%3 == 0 {
				continue
			}
			if i%5 == 0 && at+every > 550*time.Millisecond {
				continue
			}
			if at += every; i%5 != 0 {
				want = append(want, fmt.Sprint(i, " ", at))
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(went, want) {
			t.Errorf("went %q\nwant %q", went, want)
		}
	})
}

// With several limits a client waits for the slowest. Those who wait for another bucket do not stand in its way, and when it
// leaves, they get its turn in what they share.
func TestSeveralLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWaiting(t, time.Minute, 1, 10) // for each client, and for all together
		w.come("a", "all")
		slow, delay := w.come("a", "all")
		if delay != time.Second {
			t.Fatalf("waits %v", delay)
		}
		b, _ := w.come("b", "all")
		c, _ := w.come("c", "all")
		<-b.ready
		if at := w.now(); at != 2*every {
			t.Errorf("another client goes after %v", at)
		}
		slow.leave()
		<-c.ready
		if at := w.now(); at != 3*every {
			t.Errorf("the last one goes after %v", at)
		}
		again, delay := w.come("a", "all")
		if delay != 7*every {
			t.Errorf("the client that has left waits %v when it comes again", delay)
		}
		again.leave()

		first, _ := w.come("d", "all")
		second, _ := w.come("e", "all")
		third, _ := w.come("f", "all")
		start := w.now()
		second.leave()
		<-first.ready
		<-third.ready
		if took := w.now() - start; took > 2*every {
			t.Errorf("the third goes after %v, want the turn of the second", took)
		}
	})
}

// No more may wait for a bucket than pass within max_delay, and no handler may take all places of the process.
func TestPlacesToWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWaiting(t, time.Second, 10)
		for i := range 11 {
			if one, _ := w.come("x"); one == nil {
				t.Fatalf("number %d is refused", i)
			}
		}
		if one, _ := w.come("x"); one != nil {
			t.Error("more wait than pass within max_delay")
		}
		// A store that has lost what it knew would let more in.
		w.store.Memory = bucket.NewMemory(1000)
		w.come("x")
		before := w.len()
		for range 5 {
			w.come("x")
		}
		if n := w.len(); n > w.limits[0].MaxWaiting() {
			t.Errorf("%d wait, %d before", n, before)
		}
		time.Sleep(time.Minute)
		if n := w.len(); n != 0 {
			t.Fatalf("%d wait for ever", n)
		}

		most := maxWaiting
		maxWaiting = 100
		defer func() { maxWaiting = most }()
		crowd, other := newWaiting(t, time.Minute, 1), newWaiting(t, time.Minute, 1)
		fill := func(w *waiting) (n int) {
			for i := range 300 {
				key := strconv.Itoa(i)
				w.come(key)
				if one, delay := w.come(key); one != nil && delay > 0 {
					n++
				}
			}
			return n
		}
		if n, m := fill(crowd), fill(other); n != 50 || m != 25 {
			t.Errorf("of 100 places one handler takes %d and another %d, want 50 and 25", n, m)
		}
		if n := crowd.store.Len(crowd.now()); n != 300 {
			t.Errorf("%d buckets", n)
		}
		// What was refused for want of room has its turn given back.
		if d := crowd.store.Decide(crowd.now(), []bucket.Request{{Limit: crowd.limits[0], Key: crowd.limits[0].ForText("299")}}); d.Delay != time.Second {
			t.Errorf("%+v, want it to wait for one", d)
		}
		time.Sleep(time.Minute)
	})
}

// Machines that share a store: what one of them can't give back, because another one has come since, goes to its own clients.
func TestTurnsThatCannotBeGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newWaiting(t, time.Minute, 10)
		b := &waiting{queue: newQueue(a.now), store: a.store, limits: a.limits}
		a.come("x")
		var leaves []*waiter
		for range 5 { // at 0.1s, 0.3s, ...
			one, _ := a.come("x")
			leaves = append(leaves, one)
			b.come("x")
		}
		for _, one := range leaves {
			one.leave()
		}
		if _, delay := b.come("x"); delay != 11*every { // behind its own
			t.Errorf("a client of the other machine waits %v", delay)
		}
		for i := range 5 {
			one, _ := a.come("x")
			<-one.ready
			if at, want := a.now(), time.Duration(2*i+1)*every; at != want {
				t.Errorf("number %d goes after %v, want %v", i, at, want)
			}
		}
		last, delay := a.come("x")
		if delay > 3*every {
			t.Errorf("the next one waits %v", delay)
		}
		<-last.ready
		time.Sleep(time.Minute)
		if n, m := a.left(), b.left(); n+m > 0 {
			t.Errorf("%d and %d waiters and lines are left", n, m)
		}
	})
}

// slow is a store that takes its time to have something given back.
type slow struct{ bucket.Store }

func (s slow) Cancel(now time.Duration, requests []bucket.Request, done func(kept []bucket.Request)) {
	time.Sleep(time.Minute)
	s.Store.Cancel(now, requests, done)
}

// The turn of a connection may come, in all of its lines, while what is left over in the first of them is given back.
func TestTurnThatComesWhileJoining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newWaiting(t, time.Minute, 10, 10)
		b := &waiting{queue: newQueue(a.now), store: a.store, limits: a.limits}
		a.come("x", "y")
		leaves, _ := a.come("x")
		b.come("x")
		leaves.leave() // which leaves a turn over, because the other machine's client came behind
		requests := []bucket.Request{
			{Limit: a.limits[0], Key: a.limits[0].ForText("x")},
			{Limit: a.limits[1], Key: a.limits[1].ForText("y")},
		}
		a.store.Decide(a.now(), requests)
		for _, l := range a.lines {
			l.store = slow{a.store}
		}
		one := a.join(slow{a.store}, requests)
		<-one.ready
		time.Sleep(time.Hour)
		if n, m := a.left(), b.left(); n+m > 0 {
			t.Errorf("%d and %d waiters and lines are left", n, m)
		}
	})
}

// Clients that come and go at random at two machines never go sooner than the limit allows, and none is forgotten.
func TestRandomComingAndLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newWaiting(t, 3*time.Second, 10, 7)
		b := &waiting{queue: newQueue(a.now), store: a.store, limits: a.limits}
		var mu sync.Mutex
		went := make(map[string][]time.Duration)
		var all sync.WaitGroup
		random := rand.New(rand.NewPCG(1, 2))
		for i := range 3000 {
			machine, key := a, fmt.Sprint(random.IntN(4))
			if random.IntN(2) == 0 {
				machine = b
			}
			one, delay := machine.come(key, "all")
			stays := time.Duration(random.IntN(4000)) * time.Millisecond
			if one != nil {
				all.Go(func() {
					if delay > 0 {
						select {
						case <-one.ready:
						case <-time.After(stays):
							one.leave()
							return
						}
					}
					mu.Lock()
					defer mu.Unlock()
					for _, each := range []string{key, "all"} {
						went[each] = append(went[each], machine.now())
					}
				})
			}
			if i%40 == 0 {
				time.Sleep(time.Duration(random.IntN(2000)) * time.Millisecond)
			}
		}
		all.Wait()
		mu.Lock()
		defer mu.Unlock()
		for key, times := range went {
			interval := every
			if key == "all" {
				interval = time.Second / 7
			}
			slices.Sort(times)
			for i := range times { // no more in any time than the rate has in it, and one
				for j := i; j < min(i+50, len(times)); j++ {
					if least := time.Duration(j-i) * interval; times[j]-times[i] < least-interval {
						t.Fatalf("%s: %d went within %v, which takes %v", key, j-i+1, times[j]-times[i], least)
					}
				}
			}
		}
		time.Sleep(time.Minute)
		if n := a.left() + b.left(); n > 0 || waitingNow.Load() != 0 {
			t.Errorf("%d waiters or lines are left, %d of all", n, waitingNow.Load())
		}
	})
}
