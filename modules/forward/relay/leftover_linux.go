package relay

import "sync"

// leftover holds a copy of what a socket did not take, until it does.
type leftover struct {
	data  []byte // to be sent
	small *[bufferSize]byte
	large *[loopBuffer]byte
}

var largeBuffers = sync.Pool{New: func() any { return new([loopBuffer]byte) }}

// keep copies b, which is not longer than a loop's buffer.
func (l *leftover) keep(b []byte) {
	if len(b) <= bufferSize {
		l.small = borrow()
		l.data = l.small[:copy(l.small[:], b)]
		return
	}
	borrowed.Add(1)
	l.large = largeBuffers.Get().(*[loopBuffer]byte)
	l.data = l.large[:copy(l.large[:], b)]
}

// sent drops the first n bytes.
func (l *leftover) sent(n int) {
	if l.data = l.data[n:]; len(l.data) == 0 {
		l.drop()
	}
}

func (l *leftover) drop() {
	if l.small != nil {
		giveBack(l.small)
	}
	if l.large != nil {
		borrowed.Add(-1)
		largeBuffers.Put(l.large)
	}
	*l = leftover{}
}
