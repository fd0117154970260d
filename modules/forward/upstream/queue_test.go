package upstream

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// waiter is a session in a queue.
type waiter struct {
	id    int
	leave context.CancelFunc
	done  chan error
}

// room is a pretended upstream that has room for some sessions.
type room struct {
	queue  *Queue
	free   atomic.Int64
	mu     sync.Mutex
	served []int
}

func newRoom(most int, longest time.Duration) *room {
	return &room{queue: NewQueue(QueueConfig{Most: most, Longest: longest, Now: time.Now})}
}

// enter has a session wait.
func (r *room) enter(t *testing.T, id int) *waiter {
	t.Helper()
	p, err := r.queue.Enter()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := &waiter{id, cancel, make(chan error, 1)}
	go func() { w.done <- p.Wait(ctx, func() bool { return r.claim(id) }) }()
	return w
}

func (r *room) claim(id int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.free.Load() == 0 {
		return false
	}
	r.free.Add(-1)
	r.served = append(r.served, id)
	return true
}

// release makes room for some.
func (r *room) release(n int64) {
	r.free.Add(n)
	r.queue.Look()
}

func TestQueueIsInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(10, time.Hour)
		var all []*waiter
		for id := range 10 {
			all = append(all, r.enter(t, id))
		}
		if _, err := r.queue.Enter(); !errors.Is(err, ErrQueueFull) {
			t.Errorf("the eleventh: %v", err)
		}
		all[0].leave() // the first, one in the middle, the last
		all[4].leave()
		all[9].leave()
		synctest.Wait()
		if n := r.queue.Waiting(); n != 7 {
			t.Errorf("%d wait", n)
		}
		r.release(3)
		synctest.Wait()
		if !slices.Equal(r.served, []int{1, 2, 3}) {
			t.Errorf("served %v", r.served)
		}
		all = append(all, r.enter(t, 10))
		r.release(5)
		synctest.Wait()
		if want := []int{1, 2, 3, 5, 6, 7, 8, 10}; !slices.Equal(r.served, want) || r.queue.Waiting() != 0 {
			t.Errorf("served %v, want %v", r.served, want)
		}
		for _, w := range all {
			err := <-w.done
			if left := w.id == 0 || w.id == 4 || w.id == 9; left != errors.Is(err, context.Canceled) || !left && err != nil {
				t.Errorf("%d: %v", w.id, err)
			}
		}
	})
}

func TestQueueTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, start := newRoom(10, time.Second), time.Now()
		one := r.enter(t, 1)
		time.Sleep(400 * time.Millisecond)
		two := r.enter(t, 2)
		if err := <-one.done; !errors.Is(err, ErrQueueTimeout) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		r.release(1) // the one behind has its turn now
		if err := <-two.done; err != nil || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// What nobody tells the queue of is found a moment later.
func TestQueueLooksAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, start := newRoom(10, time.Hour), time.Now()
		one := r.enter(t, 1)
		synctest.Wait()
		r.free.Add(1)
		if err := <-one.done; err != nil || time.Since(start) > lookAgain {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// A queue says once that it is full, and once that it is not any more.
func TestQueueTellsThatItIsFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		full, over := 0, 0
		q := NewQueue(QueueConfig{
			Most: 4, Longest: time.Hour, Now: time.Now, Full: func() { full++ },
			Over: func(refused int64, lasted time.Duration) {
				if over++; refused != 3 || lasted != 3*time.Second {
					t.Errorf("%d refused in %v", refused, lasted)
				}
			},
		})
		var places []*Place
		enter := func() {
			if p, err := q.Enter(); err == nil {
				places = append(places, p)
			}
		}
		leave := func() {
			places[0].Leave()
			places[0].Leave()
			places = places[1:]
		}
		for range 6 {
			enter()
		}
		time.Sleep(3 * time.Second)
		leave()
		enter()
		enter()
		leave()
		if full != 1 || over != 0 {
			t.Fatalf("full: told %d times, and %d that it is over", full, over)
		}
		leave()
		leave()
		leave()
		if full != 1 || over != 1 {
			t.Errorf("full: told %d times, and %d that it is over", full, over)
		}
		for range 5 {
			enter()
		}
		if full != 2 {
			t.Errorf("the next time was told %d times", full-1)
		}
	})
}

// Random histories, against a list.
func TestQueueAgainstAnOracle(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			r := newRoom(5, time.Hour)
			var line []int // those that wait, in order
			var want []int // those that were served
			waiters, free := make(map[int]*waiter), 0
			for id := range 200 {
				switch random.IntN(3) {
				case 0:
					if len(line) == 5 {
						if _, err := r.queue.Enter(); !errors.Is(err, ErrQueueFull) {
							t.Fatal("more wait than may")
						}
						continue
					}
					waiters[id] = r.enter(t, id)
					line = append(line, id)
				case 1:
					if len(line) > 0 {
						i := random.IntN(len(line))
						waiters[line[i]].leave()
						line = slices.Delete(line, i, i+1)
					}
				case 2:
					n := random.IntN(3)
					free += n
					r.release(int64(n))
				}
				for free > 0 && len(line) > 0 {
					want = append(want, line[0])
					line, free = line[1:], free-1
				}
				synctest.Wait()
				if !slices.Equal(r.served, want) || r.queue.Waiting() != int64(len(line)) {
					t.Fatalf("seed %d: served %v, want %v; %d wait, want %d", seed, r.served, want, r.queue.Waiting(), len(line))
				}
			}
			for _, w := range waiters {
				w.leave()
			}
		})
	}
}
