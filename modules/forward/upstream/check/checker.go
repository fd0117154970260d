package check

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// tick is how long the goroutine of a Checker sleeps at least: what is due within it is done together. Where all intervals are long it is longer, up to
// longTick: to be woken up costs as much as some checks.
const (
	tick     = 20 * time.Millisecond
	longTick = 2 * tick
)

// Checker makes checks when they are due, as many as it may at the same time. Its goroutines end with Close.
type Checker struct {
	limit   int
	engines []engine
	wake    chan struct{}
	ended   chan struct{}

	mu      sync.Mutex
	queue   queue
	held    []*task // due, but there are as many under way as may be
	busy    int     // checks under way
	added   uint64
	least   time.Duration // the shortest interval so far
	until   time.Time     // the goroutine sleeps until then; zero where it is awake
	closing bool
}

// engine makes exchanges.
type engine interface {
	// serves reports whether it can make this one.
	serves(x *exchange) bool
	// begin does not block. It may call over before it returns.
	begin(all ...*exchange)
	// cancel ends an exchange, if it is one of the engine's, without a result.
	cancel(x *exchange)
	// close ends all.
	close()
}

// task is something that is done again and again.
type task struct {
	of             *Checker
	every, timeout time.Duration
	// begin makes a check of it. What returns nil is over at once.
	begin func() *exchange
	// over gets the result of the check, errTimeout where there was none in time.
	over func(err error)

	// Checker.mu guards the others.

	at      time.Time // when it is due, or when the check that is under way takes too long
	next    time.Time // when it is due after that
	index   int       // in the queue, -1: it is not
	running *exchange // nil: none is under way
	starts  bool      // begin is being called
	removed bool
}

// NewChecker returns a Checker that makes at most limit checks at the same time.
func NewChecker(limit int) *Checker {
	engines := []engine{newDialers()}
	if l, err := newLoop(); err == nil {
		engines = []engine{l, engines[0]}
	}
	return newChecker(limit, engines...)
}

func newChecker(limit int, engines ...engine) *Checker {
	c := &Checker{limit: max(limit, 1), engines: engines, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	go c.run()
	return c
}

// Close ends all checks. It must not be called by a result.
func (c *Checker) Close() {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.signal()
	<-c.ended
	for _, e := range c.engines {
		e.close()
	}
}

func (c *Checker) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// add has a task begin within its interval. Tasks that are added one after the other are spread over it evenly, whatever their number is: by
// multiples of the golden ratio (Knuth, volume 3, 6.4).
func (c *Checker) add(t *task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, part := math.Modf(float64(c.added) * (math.Sqrt(5) - 1) / 2)
	if c.added++; c.least == 0 || t.every < c.least {
		c.least = t.every
	}
	t.of, t.index, t.at = c, -1, time.Now().Add(time.Duration(part*float64(t.every)))
	c.put(t)
}

// put puts a task into the queue, or moves it there.
func (c *Checker) put(t *task) {
	if t.index >= 0 {
		heap.Fix(&c.queue, t.index)
	} else {
		heap.Push(&c.queue, t)
	}
	if c.queue[0].at.Before(c.until) {
		c.until = time.Time{}
		c.signal()
	}
}

// remove ends a task. What is under way has no result.
func (c *Checker) remove(t *task) {
	c.mu.Lock()
	running := t.running
	if !t.removed && (running != nil || t.starts) {
		c.free()
	}
	t.removed, t.running = true, nil
	if t.index >= 0 && !t.starts {
		heap.Remove(&c.queue, t.index)
	}
	c.mu.Unlock()
	if running != nil {
		c.cancel(running)
	}
}

// free gives the place of a check that is over to one that waits for that.
func (c *Checker) free() {
	for c.busy--; c.busy < c.limit && len(c.held) > 0; {
		t := c.held[0]
		c.held = c.held[1:]
		if t.removed {
			continue
		}
		c.put(t) // before what is due later
		return
	}
}

// run makes what is due.
func (c *Checker) run() {
	defer close(c.ended)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-c.wake:
		}
		begin, late, ok := c.due()
		if !ok {
			return
		}
		for _, t := range late {
			t.expire()
		}
		c.start(begin)
		timer.Reset(c.pause())
	}
}

// pause is how long nothing is due.
func (c *Checker) pause() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return 0
	}
	pause := time.Duration(math.MaxInt64)
	if len(c.queue) > 0 {
		pause = max(time.Until(c.queue[0].at), min(max(tick, c.least/100), longTick))
	}
	c.until = time.Now().Add(min(pause, 24*time.Hour))
	return pause
}

// due returns the tasks that are to begin, and those whose check takes too long.
func (c *Checker) due() (begin, late []*task, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.until = time.Time{}
	for !c.closing && len(c.queue) > 0 && !c.queue[0].at.After(now) {
		t := c.queue[0]
		switch {
		case t.running != nil:
			heap.Pop(&c.queue)
			late = append(late, t)
		case c.busy >= c.limit:
			heap.Pop(&c.queue)
			c.held = append(c.held, t)
		default:
			c.busy++
			t.starts = true
			t.next = now.Add(jittered(t.every))
			heap.Pop(&c.queue)
			begin = append(begin, t)
		}
	}
	return begin, late, !c.closing
}

// jittered returns an interval that is up to a tenth longer or shorter, so that gateways do not check together.
func jittered(every time.Duration) time.Duration {
	return every + time.Duration((rand.Float64()-0.5)/5*float64(every))
}

// start makes the checks of tasks.
func (c *Checker) start(tasks []*task) {
	exchanges := make([][]*exchange, len(c.engines))
	for _, t := range tasks {
		if x := t.start(); x != nil {
			i := slices.IndexFunc(c.engines, func(e engine) bool { return e.serves(x) })
			exchanges[i] = append(exchanges[i], x)
		}
	}
	for i, all := range exchanges {
		if len(all) > 0 {
			c.engines[i].begin(all...)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range tasks {
		if t.running != nil && t.index < 0 { // not answered at once
			c.put(t)
		}
	}
}

// start returns the exchange that is the check of a task; nil: it is over.
func (t *task) start() *exchange {
	c := t.of
	x := t.begin()
	c.mu.Lock()
	defer c.mu.Unlock()
	t.starts = false
	if t.removed {
		return nil // remove has given its place back
	}
	if x == nil {
		c.free()
		t.at = t.next
		c.put(t)
		return nil
	}
	x.over = func(err error) { t.end(x, err) }
	t.running = x
	t.at = time.Now().Add(t.timeout)
	return x
}

// end takes the result of a check.
func (t *task) end(x *exchange, err error) {
	c := t.of
	c.mu.Lock()
	if t.running != x {
		c.mu.Unlock()
		return // it took too long, or was removed
	}
	t.running = nil
	c.free()
	t.at = t.next
	if now := time.Now(); t.at.Before(now) {
		t.at = now
	}
	c.put(t)
	c.mu.Unlock()
	t.over(err)
}

// expire ends a check that takes too long.
func (t *task) expire() {
	t.of.mu.Lock()
	x := t.running
	t.of.mu.Unlock()
	if x != nil {
		t.of.cancel(x)
		t.end(x, x.timedOut())
	}
}

func (c *Checker) cancel(x *exchange) {
	x.cancelled.Store(true)
	for _, e := range c.engines {
		e.cancel(x)
	}
}

// queue has the tasks, the one that is due next first. It implements [heap.Interface].
type queue []*task

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(x any) {
	t := x.(*task)
	t.index = len(*q)
	*q = append(*q, t)
}

func (q *queue) Pop() any {
	t := (*q)[len(*q)-1]
	(*q)[len(*q)-1] = nil
	*q = (*q)[:len(*q)-1]
	t.index = -1
	return t
}
