package relay

import (
	"sync"
	"sync/atomic"
)

// bufferSize holds a TLS record, and a burst of small messages.
const bufferSize = 16 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// borrowed counts the buffers in use. Idle sessions hold none.
var borrowed atomic.Int64

func borrow() *[bufferSize]byte {
	borrowed.Add(1)
	return buffers.Get().(*[bufferSize]byte)
}

func giveBack(b *[bufferSize]byte) {
	borrowed.Add(-1)
	buffers.Put(b)
}

// packetSize holds any datagram.
const packetSize = 64 << 10

var packetBuffers = sync.Pool{New: func() any { return new([packetSize]byte) }}

func borrowPacket() *[packetSize]byte {
	borrowed.Add(1)
	return packetBuffers.Get().(*[packetSize]byte)
}

func giveBackPacket(b *[packetSize]byte) {
	borrowed.Add(-1)
	packetBuffers.Put(b)
}
