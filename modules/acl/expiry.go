package acl

import (
	"container/heap"
	"math"
	"time"
)

// clock is what a list measures time by. The system's clock, which now returns, may be set at any time. So what is left of an
// entry's time is measured by passed, from when the entry comes into memory; the system's clock counts when the entry is stored,
// read again or shown.
type clock struct {
	now    func() time.Time
	passed func() time.Duration
}

func systemClock() clock {
	return clock{time.Now, func() time.Duration { return time.Since(started) }}
}

// end returns what passed will return at this time, as far as is known now.
func (c clock) end(at time.Time) time.Duration {
	left, passed := at.Sub(c.now()), c.passed()
	if passed > 0 {
		left = min(left, math.MaxInt64-passed)
	}
	return passed + left
}

// clockSlack is how far the time of an entry may be from what the system's clock says now before it is shown and stored anew:
// the clock was set, and has not just run a little faster or slower.
const clockSlack = time.Second

// timed is an entry that knows when its time is over, and its place among those that expire.
type timed struct {
	entry
	ends time.Duration // if it expires
	at   int           // in the queue
}

// byTheClock returns the entry as it is to be shown and stored.
func (t *timed) byTheClock(c clock) entry {
	e := t.entry
	if e.Expires != nil {
		expires := c.now().Add(t.ends - c.passed()).UTC().Truncate(time.Millisecond)
		if expires.Sub(*e.Expires).Abs() > clockSlack {
			e.Expires = &expires
		}
	}
	return e
}

// notQueued is the place of an entry that does not expire.
const notQueued = -1

// expiryQueue is a heap of the entries that expire, the next one first.
type expiryQueue []*timed

// remove takes an entry out, unless it is not there.
func (q *expiryQueue) remove(t *timed) {
	if t.at != notQueued {
		heap.Remove(q, t.at)
	}
}

// Len is part of heap.Interface, as are the methods below.
func (q expiryQueue) Len() int { return len(q) }

func (q expiryQueue) Less(i, j int) bool { return q[i].ends < q[j].ends }

func (q expiryQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

func (q *expiryQueue) Push(x any) {
	t := x.(*timed)
	t.at = len(*q)
	*q = append(*q, t)
}

func (q *expiryQueue) Pop() any {
	last := len(*q) - 1
	t := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	t.at = notQueued
	return t
}
