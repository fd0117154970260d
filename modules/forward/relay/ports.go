package relay

import (
	"sync"
	"sync/atomic"
	"time"
)

// RoomMaker is a client whose network can end a session that is worth less than this one, as it does at its cap.
type RoomMaker interface {
	// MakeRoom is called where no port is left for a socket to the upstream. It may block.
	MakeRoom()
}

// portQueue is the sessions of datagrams that wait for a port of this system. To find out that there is none takes the kernel a millisecond, so they
// do not try again and again: each socket that is closed wakes the one that has waited longest.
type portQueue struct {
	waits   atomic.Int32 // 0 spares the lock
	outTill atomic.Int64 // for so long, in ns since portEpoch, nobody has to try

	mu      sync.Mutex
	waiting []*portWaiter
}

// portWaiter is one who waits.
type portWaiter struct{ wake func() }

var ports portQueue

var portEpoch = time.Now()

const (
	// portRetry is how often a session that waits looks whether another process has closed a socket.
	portRetry = 200 * time.Millisecond
	// portPause is how long it is taken for granted that there is still no port.
	portPause = 50 * time.Millisecond
	// portRooms is how often a session has others make room: somebody else may have taken the port that was for it.
	portRooms = 3
)

// noteOut notes that there is no port.
func (q *portQueue) noteOut() { q.outTill.Store(int64(time.Since(portEpoch) + portPause)) }

// areOut reports whether there was no port a moment ago.
func (q *portQueue) areOut() bool {
	till := q.outTill.Load()
	return till != 0 && int64(time.Since(portEpoch)) < till
}

// add adds one who waits. wake is called once, without locks, unless remove comes before. It must not block.
func (q *portQueue) add(wake func()) *portWaiter {
	w := &portWaiter{wake}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, w)
	q.waits.Store(int32(len(q.waiting)))
	return w
}

// remove reports false where w was woken.
func (q *portQueue) remove(w *portWaiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, other := range q.waiting {
		if other == w {
			q.waiting = append(q.waiting[:i], q.waiting[i+1:]...)
			q.waits.Store(int32(len(q.waiting)))
			return true
		}
	}
	return false
}

// freed is called when a socket was closed, and by one who was woken and does not need the port.
func (q *portQueue) freed() {
	if q.waits.Load() == 0 {
		if q.outTill.Load() != 0 {
			q.outTill.Store(0)
		}
		return
	}
	q.mu.Lock()
	if len(q.waiting) == 0 {
		q.mu.Unlock()
		return
	}
	w := q.waiting[0]
	q.waiting = q.waiting[1:]
	q.waits.Store(int32(len(q.waiting)))
	q.mu.Unlock()
	w.wake()
}
