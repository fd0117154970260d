package delivery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// collector is a sender that answers as a test says, and otherwise takes what it gets.
type collector struct {
	mu     sync.Mutex
	got    []string
	at     []time.Time // of each attempt
	batch  []int       // their sizes
	answer func(ctx context.Context, batch []Entry) Result
	closed int
}

func (c *collector) Send(ctx context.Context, batch []Entry) Result {
	c.mu.Lock()
	c.at = append(c.at, time.Now())
	c.batch = append(c.batch, len(batch))
	answer := c.answer
	c.mu.Unlock()
	var r Result
	if answer != nil {
		r = answer(ctx, batch)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range batch {
		if !slices.ContainsFunc(r.Retry, func(left Entry) bool { return left.ID == e.ID }) {
			c.got = append(c.got, string(e.Line))
		}
	}
	return r
}

func (c *collector) Close() { c.closed++ }

func (c *collector) answers(answer func(ctx context.Context, batch []Entry) Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = answer
}

func (c *collector) times() []time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.at)
}

func (c *collector) sizes() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.batch)
}

func (c *collector) lines() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

// counts are what an observer is told.
type counts struct {
	mu sync.Mutex
	counted
}

type counted struct {
	put     int
	sent    int
	dropped map[Cause]int
	failed  []error
	worked  int
}

func (c *counts) copy() counted {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.counted
	now.dropped = maps.Clone(now.dropped)
	return now
}

func (c *counts) observer() Observer {
	c.counted.dropped = make(map[Cause]int)
	locked := func(f func()) { c.mu.Lock(); defer c.mu.Unlock(); f() }
	return Observer{
		Put:     func() { locked(func() { c.put++ }) },
		Sent:    func(n int) { locked(func() { c.sent += n }) },
		Dropped: func(n int, cause Cause, _ error) { locked(func() { c.dropped[cause] += n }) },
		Failed:  func(err error) { locked(func() { c.failed = append(c.failed, err) }) },
		Worked:  func() { locked(func() { c.worked++ }) },
	}
}

// balance tells whether each entry is counted once.
func (c *counts) balance(t *testing.T, q *Queue) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if dropped := c.dropped[Full] + c.dropped[Rejected] + c.dropped[Stopped]; c.put != c.sent+dropped+q.Waiting() {
		t.Errorf("%d put, but %d sent, %v dropped, %d waiting", c.put, c.sent, c.dropped, q.Waiting())
	}
}

func options() Options {
	return Options{
		Entries: 100, Bytes: 1 << 20, BatchEntries: 10, BatchBytes: 1 << 10, Interval: time.Second, Timeout: 5 * time.Second,
		MinPause: time.Second, MaxPause: 8 * time.Second,
	}
}

// settle lets time pass, and all that is due happen.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// open starts a queue that ends with the test.
func open(t *testing.T, c *collector, o Options) (*Queue, *counts) {
	t.Helper()
	counted := new(counts)
	q := New(c, o, counted.observer())
	t.Cleanup(func() {
		<-q.Close(time.Minute)
		counted.balance(t, q)
		if c.closed != 1 || q.Waiting() != 0 {
			t.Errorf("the sender was closed %d times, %d entries wait", c.closed, q.Waiting())
		}
	})
	return q, counted
}

func put(q *Queue, from, to int) {
	for i := from; i < to; i++ {
		q.Put(fmt.Appendf(nil, "%d", i))
	}
}

func numbers(from, to int) (all []string) {
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprint(i))
	}
	return all
}

// An entry waits for others, but not for longer than the interval; a whole batch does not wait.
func TestBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := new(collector)
		q, _ := open(t, c, options())
		start := time.Now()
		put(q, 0, 3)
		settle(500 * time.Millisecond)
		put(q, 3, 4)
		settle(time.Second)
		put(q, 4, 29)
		synctest.Wait()
		if !slices.Equal(c.sizes(), []int{4, 10, 10}) || c.times()[0].Sub(start) != time.Second || c.times()[2].Sub(start) != 1500*time.Millisecond {
			t.Errorf("batches of %v after %v", c.sizes(), c.times())
		}
		settle(time.Second)
		synctest.Wait()
		if !slices.Equal(c.lines(), numbers(0, 29)) {
			t.Errorf("got %v", c.lines())
		}
	})
}

// A batch is bounded in bytes, too, and an entry that is larger than that goes alone.
func TestBatchesAreBoundedInBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := new(collector)
		q, _ := open(t, c, options())
		for _, n := range []int{400, 400, 400, 3000, 1} {
			q.Put(make([]byte, n))
		}
		settle(time.Minute)
		if !slices.Equal(c.sizes(), []int{2, 1, 1, 1}) && !slices.Equal(c.sizes(), []int{2, 1, 1, 1, 1}) {
			t.Errorf("batches of %v", c.sizes())
		}
	})
}

// With an interval of 0 an entry is sent at once.
func TestNoInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := new(collector)
		o := options()
		o.Interval = 0
		q, _ := open(t, c, o)
		put(q, 0, 1)
		synctest.Wait()
		if len(c.lines()) != 1 {
			t.Errorf("got %v", c.lines())
		}
	})
}

// What a queue has no room for is dropped and counted exactly, and who puts it does not wait.
func TestAFullQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := new(collector)
		c.answers(func(ctx context.Context, batch []Entry) Result {
			<-ctx.Done() // accepts and never reads
			return Result{Retry: batch, Err: ctx.Err()}
		})
		q, counted := open(t, c, options())
		start := time.Now()
		put(q, 0, 1000)
		if took := time.Since(start); took != 0 {
			t.Errorf("took %v", took)
		}
		synctest.Wait()
		if counted.copy().dropped[Full] != 900 || q.Waiting() != 100 {
			t.Errorf("%v dropped, %d waiting", counted.copy().dropped, q.Waiting())
		}
		settle(time.Minute)
		c.answers(nil)
		settle(time.Minute)
		if !slices.Equal(c.lines(), numbers(0, 100)) || counted.copy().sent != 100 || counted.copy().worked == 0 {
			t.Errorf("got %d: %v", len(c.lines()), c.lines())
		}
	})
}

func TestAQueueIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := new(collector)
		o := options()
		o.Bytes, o.BatchBytes, o.Interval = 1000, 1000, time.Hour
		q, counted := open(t, c, o)
		q.Put(make([]byte, 600))
		q.Put(make([]byte, 600))
		q.Put(make([]byte, 400))
		synctest.Wait()
		if counted.copy().dropped[Full] != 1 || !slices.Equal(c.sizes(), []int{2}) {
			t.Errorf("%v dropped, batches of %v", counted.copy().dropped, c.sizes())
		}
		q.Put(make([]byte, 5000)) // one may always
		synctest.Wait()
		if counted.copy().sent != 3 {
			t.Errorf("%d sent", counted.copy().sent)
		}
	})
}

// Attempts that fail are made again after pauses that grow, the collector's wish is heeded, and what comes first arrives first.
func TestRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := new(collector)
		failure := errors.New("refused")
		c.answers(func(_ context.Context, batch []Entry) Result { return Result{Retry: batch, Err: failure} })
		o := options()
		o.Interval = 0
		q, counted := open(t, c, o)
		put(q, 0, 1)
		settle(50 * time.Second)
		for i := 1; i < len(c.times()); i++ {
			base := min(time.Second<<(i-1), 8*time.Second)
			if pause := c.times()[i].Sub(c.times()[i-1]); pause < base*3/4 || pause > base*5/4 {
				t.Errorf("pause %d is %v, want %v", i, pause, base)
			}
		}
		if n := len(c.times()); n < 6 || n > 10 || !errors.Is(counted.copy().failed[0], failure) || len(counted.copy().failed) != n {
			t.Errorf("%d attempts, %v", n, counted.copy().failed)
		}
		c.answers(func(_ context.Context, batch []Entry) Result {
			return Result{Retry: batch, Err: failure, After: time.Hour} // which is bounded
		})
		settle(20 * time.Second)
		if n := len(c.times()); c.times()[n-1].Sub(c.times()[n-2]) < 6*time.Second {
			t.Error("a wish is not heeded")
		}
		c.answers(func(_ context.Context, batch []Entry) Result {
			return Result{Retry: batch[1:], Rejected: 1, Err: failure}
		})
		put(q, 1, 4)
		settle(time.Minute)
		c.answers(nil)
		settle(time.Minute)
		if counted.copy().dropped[Rejected] == 0 || counted.copy().dropped[Rejected]+counted.copy().sent != 4 || !slices.Equal(c.lines(), numbers(0, 4)) {
			t.Errorf("%v dropped, %d sent, got %v", counted.copy().dropped, counted.copy().sent, c.lines())
		}
	})
}

// A queue that is closed sends what it has, and ends when that is done.
func TestClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := new(collector)
		o := options()
		o.Interval = time.Hour
		q, counted := open(t, c, o)
		put(q, 0, 25)
		start := time.Now()
		<-q.Close(10 * time.Second)
		if len(c.lines()) != 25 || time.Since(start) != 0 {
			t.Errorf("got %v after %v", c.lines(), time.Since(start))
		}
		put(q, 25, 27)
		if counted.copy().dropped[Stopped] != 2 {
			t.Errorf("%v dropped", counted.copy().dropped)
		}
	})
}

// One that can't be sent ends in time, whether the collector stalls or refuses, and what is left is counted.
func TestCloseIsBounded(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(ctx context.Context, batch []Entry) Result{
		"stalls": func(ctx context.Context, batch []Entry) Result {
			<-ctx.Done()
			return Result{Retry: batch, Err: ctx.Err()}
		},
		"refuses": func(_ context.Context, batch []Entry) Result { return Result{Retry: batch, Err: errors.New("refused")} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := new(collector)
				c.answers(answer)
				o := options()
				o.MaxPause = time.Hour
				q, counted := open(t, c, o)
				put(q, 0, 50)
				time.Sleep(time.Hour) // the pause is long by now
				attempts := len(c.times())
				start := time.Now()
				<-q.Close(10 * time.Second)
				if took := time.Since(start); took != 10*time.Second || counted.copy().dropped[Stopped] != 50 {
					t.Errorf("took %v, %v dropped", took, counted.copy().dropped)
				}
				if len(c.times()) == attempts {
					t.Error("no last attempt")
				}
			})
		})
	}
}

// Flush sends at once what there is and what comes after it, and gives up in time.
func TestFlush(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := new(collector)
		o := options()
		o.Interval = time.Hour
		q, _ := open(t, c, o)
		if left := q.Flush(time.Minute); left != 0 {
			t.Errorf("%d left of nothing", left)
		}
		put(q, 0, 5)
		start := time.Now()
		if left := q.Flush(time.Minute); left != 0 || len(c.lines()) != 5 || time.Since(start) != 0 {
			t.Errorf("%d left, got %v", left, c.lines())
		}
		c.answers(func(_ context.Context, batch []Entry) Result { return Result{Retry: batch, Err: errors.New("refused")} })
		put(q, 5, 7)
		start = time.Now()
		if left := q.Flush(3 * time.Second); left != 2 || time.Since(start) != 3*time.Second {
			t.Errorf("%d left after %v", left, time.Since(start))
		}
		c.answers(nil)
	})
}

// Many put at the same time as a collector fails now and then, and as the queue closes: each entry is counted once.
func TestEachEntryIsCountedOnce(t *testing.T) {
	t.Parallel()
	c := new(collector)
	n := 0
	c.answers(func(_ context.Context, batch []Entry) Result {
		switch n++; n % 4 {
		case 0:
			return Result{Retry: batch, Err: errors.New("refused")}
		case 1:
			return Result{Retry: batch[len(batch)/2:], Rejected: len(batch) / 4, Err: errors.New("rejected")}
		}
		return Result{}
	})
	o := options()
	o.Interval, o.MinPause, o.MaxPause = 0, time.Microsecond, time.Millisecond
	counted := new(counts)
	q := New(c, o, counted.observer())
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { put(q, 0, 5000) })
	}
	all.Go(func() {
		for q.Waiting() == 0 { // until the first is put
			time.Sleep(time.Microsecond)
		}
		<-q.Close(20 * time.Millisecond)
	})
	all.Wait()
	<-q.Close(0)
	counted.balance(t, q)
	if counted.copy().put != 40000 || q.Waiting() != 0 {
		t.Errorf("%d put, %d waiting", counted.copy().put, q.Waiting())
	}
}

func BenchmarkPut(b *testing.B) {
	o := options()
	o.Entries, o.Bytes, o.BatchEntries, o.BatchBytes = 1<<30, 1<<40, 1000, 1<<20
	q := New(new(taker), o, Observer{})
	line := make([]byte, 500)
	b.ReportAllocs()
	for b.Loop() {
		q.Put(line)
	}
	<-q.Close(time.Minute)
}

type taker struct{}

func (*taker) Send(context.Context, []Entry) Result { return Result{} }
func (*taker) Close()                               {}
