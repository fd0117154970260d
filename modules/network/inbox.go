package network

import (
	"bytes"
	"sync"
	"time"
)

const (
	// What waits in a session that no relay has attached itself to. It is there for a handler that is yet
	// to begin, or that looks at the first datagrams; one that reads too slowly loses datagrams.
	maxWaiting      = 64
	maxWaitingBytes = 128 << 10

	// maxHeldBytes bounds what all sessions of a socket have waiting. A session that has nothing waiting
	// may always have one datagram.
	maxHeldBytes = 64 << 20

	// maxGivenBytes is how much may have been read when a relay attaches itself and wants it all again. It
	// is a little more than matchers may read (layer4.MaxBufLen).
	maxGivenBytes = 20 << 10
)

// inbox has the datagrams of a session that no relay has attached itself to. The session's mutex guards it.
type inbox struct {
	datagrams [][]byte // those before next have been read, and are kept until too much has been
	next      int
	offset    int // how much of the next one has been read
	waiting   int // bytes from next on
	held      int // bytes of all
	given     int // bytes that were read
	forgot    bool

	arrived  sync.Cond // of the session's mutex
	timer    *time.Timer
	deadline time.Time
}

// put appends a copy of b. It reports false where b does not fit; tight is set where only a first one does.
func (in *inbox) put(b []byte, tight bool) bool {
	if n := len(in.datagrams) - in.next; n > 0 && (tight || n >= maxWaiting || in.waiting+len(b) > maxWaitingBytes) {
		return false
	}
	in.datagrams = append(in.datagrams, bytes.Clone(b))
	in.waiting += len(b)
	in.held += len(b)
	in.arrived.Broadcast()
	return true
}

// empty tells whether there is nothing to read.
func (in *inbox) empty() bool { return in.next == len(in.datagrams) }

// read gives the next datagram, or what is left of it.
func (in *inbox) read(b []byte) int {
	datagram := in.datagrams[in.next]
	n := copy(b, datagram[in.offset:])
	in.given += n
	if in.offset += n; in.offset == len(datagram) {
		in.next++
		in.offset = 0
		in.waiting -= len(datagram)
	}
	in.forgot = in.forgot || in.given > maxGivenBytes || in.next > maxWaiting
	if in.forgot {
		in.forget()
	}
	return n
}

func (in *inbox) forget() {
	left := copy(in.datagrams, in.datagrams[in.next:])
	clear(in.datagrams[left:])
	in.datagrams = in.datagrams[:left]
	in.next, in.held = 0, in.waiting
}
