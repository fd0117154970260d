// Package delivery sends log entries to a collector that may be slow, away or broken. Entries wait in a queue that is bounded in number and
// size, and one goroutine sends them in batches, again and again with growing pauses until the collector has taken them. Whoever logs never
// waits. Each entry is counted once: as sent, or as dropped with the cause.
package delivery

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// Sender sends a batch of entries. One goroutine calls it.
type Sender interface {
	// Send returns what has become of the entries. It returns soon after ctx is done.
	Send(ctx context.Context, batch []Entry) Result
	// Close is called once, when nothing is to be sent any more.
	Close()
}

// Result is what has become of a batch. Entries that are in none of the fields were sent.
type Result struct {
	// Rejected is how many entries the collector will never take.
	Rejected int
	// Retry are entries that are to be sent again, in order.
	Retry []Entry
	// Err is why entries were rejected or are to be sent again. Its text has no secret.
	Err error
	// After is how long the collector asks to be left alone before the next attempt; 0 where it does not.
	After time.Duration
}

// Cause is why an entry was dropped.
type Cause string

// These are all causes.
const (
	Full     Cause = "queue_full" // the queue had no room for it
	Rejected Cause = "rejected"   // the collector will never take it
	Stopped  Cause = "stopped"    // it was not sent before the time for it ended
)

// Observer is told what becomes of entries. Its methods must not block, may be called by several goroutines, and may be nil.
type Observer struct {
	Put     func()
	Sent    func(n int)
	Dropped func(n int, cause Cause, err error)
	// Failed is told of each attempt after which entries have to be sent again.
	Failed func(err error)
	// Worked is told of each attempt after which no entry has to be sent again.
	Worked func()
}

// Options bound a queue. All are required, except that an Interval of 0 sends each entry at once.
type Options struct {
	// Entries and Bytes are what may wait at most, with the batch that is being sent. One entry may always.
	Entries, Bytes int
	// BatchEntries and BatchBytes are what is sent at a time at most. One entry may always.
	BatchEntries, BatchBytes int
	// Interval is how long an entry may wait for others to be sent with it.
	Interval time.Duration
	// Timeout is how long one attempt may take.
	Timeout time.Duration
	// MinPause and MaxPause bound the time between attempts that fail, which is doubled after each.
	MinPause, MaxPause time.Duration
}

// Queue has the entries that wait for one collector.
type Queue struct {
	sender   Sender
	options  Options
	observer Observer

	mu       sync.Mutex
	waiting  []Entry
	entries  int // waiting or being sent
	bytes    int
	nextID   uint64
	finished bool            // nothing is sent any more
	idle     []chan struct{} // closed when nothing waits or is being sent

	wake    chan struct{} // there is something to look at
	hurry   chan struct{} // closed when neither interval nor a long pause is to be waited for any more
	closing chan struct{} // closed when no more is to come
	end     context.Context
	expire  context.CancelFunc // ends all attempts
	done    chan struct{}

	hurryOnce, closeOnce sync.Once
}

// New starts a queue. Close ends it.
func New(sender Sender, options Options, observer Observer) *Queue {
	q := &Queue{
		sender: sender, options: options, observer: observer,
		wake: make(chan struct{}, 1), hurry: make(chan struct{}), closing: make(chan struct{}), done: make(chan struct{}),
	}
	q.end, q.expire = context.WithCancel(context.Background())
	go q.run()
	return q
}

// Put has a copy of the line sent soon, or drops it where there is no room. It does not block.
func (q *Queue) Put(line []byte) {
	q.observer.put()
	if cause := q.put(line); cause != "" {
		q.observer.dropped(1, cause, nil)
	}
}

func (q *Queue) put(line []byte) Cause {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.finished {
		return Stopped
	}
	if q.entries >= q.options.Entries || q.entries > 0 && q.bytes+len(line) > q.options.Bytes {
		return Full
	}
	q.nextID++
	q.waiting = append(q.waiting, Entry{Line: append([]byte(nil), line...), Arrived: time.Now(), ID: q.nextID})
	q.entries++
	q.bytes += len(line)
	if n := len(q.waiting); n == 1 || n == q.options.BatchEntries || q.bytes >= q.options.BatchBytes {
		q.signal()
	}
	return ""
}

// Waiting returns how many entries wait or are being sent.
func (q *Queue) Waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.entries
}

// Flush has what waits, and what comes from now on, sent at once. It returns when nothing is left, or how many entries are when the time is
// over.
func (q *Queue) Flush(within time.Duration) (left int) {
	q.hurryOnce.Do(func() { close(q.hurry) })
	q.mu.Lock()
	if q.entries == 0 {
		q.mu.Unlock()
		return 0
	}
	idle := make(chan struct{})
	q.idle = append(q.idle, idle)
	q.mu.Unlock()
	expired := time.NewTimer(within)
	defer expired.Stop()
	select {
	case <-idle:
		return 0
	case <-expired.C:
		return q.Waiting()
	}
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Close has what waits sent at once, and ends the queue when there is nothing left or the time is over: what is left then is dropped. It
// returns at once; done is closed at the end. Further calls change nothing.
func (q *Queue) Close(within time.Duration) (done <-chan struct{}) {
	q.hurryOnce.Do(func() { close(q.hurry) })
	q.closeOnce.Do(func() {
		close(q.closing)
		time.AfterFunc(within, q.expire)
	})
	return q.done
}

func (q *Queue) run() {
	defer close(q.done)
	defer q.expire()
	defer q.sender.Close()
	for {
		batch := q.next()
		if batch == nil {
			return
		}
		q.deliver(batch)
		clear(batch) // it shares its memory with what waits, which would keep the lines
	}
}

// deliver sends a batch until nothing of it is left or the time is over.
func (q *Queue) deliver(batch []Entry) {
	pause := q.options.MinPause
	for len(batch) > 0 {
		if q.end.Err() != nil {
			q.observer.dropped(len(batch), Stopped, nil)
			q.release(len(batch), size(batch))
			return
		}
		ctx, cancel := context.WithTimeout(q.end, q.options.Timeout)
		result := q.sender.Send(ctx, batch)
		cancel()
		if q.account(batch, result); len(result.Retry) == 0 {
			return
		}
		if len(result.Retry) < len(batch) {
			pause = q.options.MinPause // it takes some
		}
		batch = result.Retry
		q.sleep(max(jittered(pause), min(result.After, q.options.MaxPause)))
		pause = min(2*pause, q.options.MaxPause)
	}
}

// account counts what was sent and what was rejected. Room is made after that: whoever has waited for it finds the counts right.
func (q *Queue) account(batch []Entry, r Result) {
	if sent := len(batch) - len(r.Retry) - r.Rejected; sent > 0 {
		q.observer.sent(sent)
	}
	if r.Rejected > 0 {
		q.observer.dropped(r.Rejected, Rejected, r.Err)
	}
	q.release(len(batch)-len(r.Retry), size(batch)-size(r.Retry))
	switch {
	case len(r.Retry) == 0:
		q.observer.worked()
	case q.end.Err() == nil: // an attempt that was cut off says nothing of the collector
		q.observer.failed(r.Err)
	}
}

// release makes room in the queue.
func (q *Queue) release(entries, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.entries -= entries
	q.bytes -= bytes
	if q.entries == 0 {
		for _, waiter := range q.idle {
			close(waiter)
		}
		q.idle = nil
	}
}

// next waits for a batch. It returns nil when the queue is closed and empty.
func (q *Queue) next() []Entry {
	hurry := q.hurry
	var due <-chan time.Time
	for {
		batch, first := q.take(isClosed(q.closing))
		if batch != nil || q.over() {
			return batch
		}
		if due == nil && !first.IsZero() {
			timer := time.NewTimer(time.Until(first.Add(q.options.Interval)))
			defer timer.Stop()
			due = timer.C
		}
		select {
		case <-q.wake:
		case <-due: // the first entry has waited for the interval
		case <-hurry:
			hurry = nil
		case <-q.closing:
		}
	}
}

func (q *Queue) over() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.finished
}

// take removes a batch where there is a whole one, or where no entry is to wait for others any more. Otherwise it returns when the first entry
// came. A queue that is closed and empty is finished.
func (q *Queue) take(closed bool) (batch []Entry, first time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.finished = closed
		return nil, time.Time{}
	}
	n, bytes := 0, 0
	for n < len(q.waiting) && n < q.options.BatchEntries {
		if bytes += len(q.waiting[n].Line); n > 0 && bytes > q.options.BatchBytes {
			break
		}
		n++
	}
	first = q.waiting[0].Arrived
	if whole := n < len(q.waiting) || n == q.options.BatchEntries || bytes >= q.options.BatchBytes; !whole && !isClosed(q.hurry) && time.Since(first) < q.options.Interval {
		return nil, first
	}
	batch = q.waiting[:n:n]
	if q.waiting = q.waiting[n:]; len(q.waiting) == 0 {
		q.waiting = nil
	}
	return batch, first
}

// sleep pauses between attempts, unless the time for all of them is over. Once there is a hurry, pauses are as at first.
func (q *Queue) sleep(pause time.Duration) {
	hurry := q.hurry
	if isClosed(hurry) {
		hurry = nil
		pause = min(pause, q.options.MinPause)
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-hurry:
	case <-q.end.Done():
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// jittered returns three quarters to five quarters of a pause, so that gateways do not come back all at once.
func jittered(pause time.Duration) time.Duration {
	return pause*3/4 + rand.N(pause/2+1)
}

func size(batch []Entry) (bytes int) {
	for i := range batch {
		bytes += len(batch[i].Line)
	}
	return bytes
}
