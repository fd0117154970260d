package relay

import "sync"

// leftover is a copy of bytes that were read and that the other socket did not take yet. Most sockets never need one.
type leftover struct {
	data    []byte // to be sent
	preface int    // how many bytes of data are a [Config.Preface]
	small   *[bufferSize]byte
	large   *[loopBuffer]byte
}

var largeBuffers = sync.Pool{New: func() any { return new([loopBuffer]byte) }}

// keepLeft copies b, to be sent to h later. What is longer than a loop's buffer was prefetched: that is the relay's own
// and is not copied.
func (h *half) keepLeft(b []byte) {
	borrowed.Add(1)
	switch {
	case len(b) <= bufferSize:
		small := buffers.Get().(*[bufferSize]byte)
		h.left = &leftover{small: small, data: small[:copy(small[:], b)]}
	case len(b) <= loopBuffer:
		large := largeBuffers.Get().(*[loopBuffer]byte)
		h.left = &leftover{large: large, data: large[:copy(large[:], b)]}
	default:
		h.left = &leftover{data: b}
	}
}

// sentLeft drops the first n bytes. It returns how many of them do not belong to a [Config.Preface].
func (h *half) sentLeft(n int) (moved int) {
	preface := min(n, h.left.preface)
	h.left.preface -= preface
	if h.left.data = h.left.data[n:]; len(h.left.data) == 0 {
		h.dropLeft()
	}
	return n - preface
}

func (h *half) dropLeft() {
	if h.left == nil {
		return
	}
	borrowed.Add(-1)
	switch {
	case h.left.small != nil:
		buffers.Put(h.left.small)
	case h.left.large != nil:
		largeBuffers.Put(h.left.large)
	}
	h.left = nil
}
