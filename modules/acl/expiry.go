package acl

import "container/heap"

// timed is an entry that knows its place among those that expire.
type timed struct {
	entry
	at int // in the queue
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

func (q expiryQueue) Less(i, j int) bool { return q[i].Expires.Before(*q[j].Expires) }

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
