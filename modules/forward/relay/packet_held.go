package relay

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// held keeps the last datagrams of a client to which the upstream has not answered yet. If it refuses them they are sent to
// the next upstream, so that a dead upstream costs no question. Nothing is kept any more once an upstream has answered.
//
// A nil *held keeps nothing.
type held struct {
	data     []byte // the datagrams, one after the other
	sizes    [heldMax]uint16
	prefaced [heldMax]bool // were sent behind the Preface
	count    int
	at       time.Duration  // age of the relay when the last one was sent by the client
	refusals int            // of datagrams in data, which are not lost yet
	refusers []*net.UDPAddr // upstreams that have refused since Next was last asked in its time
	smaller  bool           // what was too large for the way to this upstream was sent again
	room     [heldMinBytes]byte
}

// spareHeld has those of sessions that were answered: each session needs one for the time of its first exchange.
var spareHeld = sync.Pool{New: func() any { return new(held) }}

// A session keeps at most heldMax datagrams of heldMaxBytes together, and all sessions heldTotalMax bytes: a flood of forged
// addresses would else take much memory. A client sends some questions in pairs (A and AAAA), few more before the first answer.
const (
	heldMax      = 4
	heldMaxBytes = 4 << 10
	heldMinBytes = 128
	heldTotalMax = 32 << 20
	refusersMax  = 16
)

// heldFor is how old a datagram may be that is sent again: a client that waits for longer has asked again. Only tests change it.
var heldFor = time.Second

// heldTotal is how many bytes all sessions have reserved.
var heldTotal atomic.Int64

// add keeps a copy of b, and drops older ones where there is no room. It returns how many of them were refused. prefaced tells whether b
// was sent behind the Preface.
func (h *held) add(b []byte, prefaced bool, age time.Duration) (lost int) {
	if age-h.at > heldFor {
		lost = h.giveUp()
	}
	h.at = age
	for h.count > 0 && (h.count == heldMax || h.size()+len(b) > heldMaxBytes) {
		copy(h.data, h.data[h.sizes[0]:])
		copy(h.sizes[:], h.sizes[1:])
		copy(h.prefaced[:], h.prefaced[1:])
		h.count--
		if h.refusals > h.count {
			h.refusals--
			lost++
		}
	}
	size := h.size()
	if !h.reserve(size + len(b)) {
		return lost
	}
	copy(h.data[size:], b)
	h.sizes[h.count], h.prefaced[h.count] = uint16(len(b)), prefaced
	h.count++
	return lost
}

// size is how many bytes are kept.
func (h *held) size() (n int) {
	for _, size := range h.sizes[:h.count] {
		n += int(size)
	}
	return n
}

// reserve makes room for n bytes. It reports false where they may not be kept.
func (h *held) reserve(n int) bool {
	if n <= len(h.data) {
		return true
	}
	if n > heldMaxBytes {
		return false
	}
	size := heldMinBytes
	for size < n {
		size *= 2
	}
	more := int64(size - len(h.data))
	if heldTotal.Add(more) > heldTotalMax {
		heldTotal.Add(-more)
		return false
	}
	data := h.room[:]
	if size > len(data) {
		data = make([]byte, size)
		copy(data, h.data)
	}
	h.data = data
	return true
}

// release gives the memory back. It returns what the session has then: nothing.
func (h *held) release() *held {
	if h != nil {
		heldTotal.Add(-int64(len(h.data)))
		*h = held{}
		spareHeld.Put(h)
	}
	return nil
}

// refused notes a refusal. It reports whether the refused datagram is kept: then it is not lost yet.
func (h *held) refused() bool {
	if h == nil || h.refusals >= h.count {
		return false
	}
	h.refusals++
	return true
}

// asks reports whether Next is to be asked now because target has refused. due is whether askInterval has passed. Before,
// only an upstream that has not refused yet leads to the next one at once: not two dead ones to each other, for ever.
func (h *held) asks(target *net.UDPAddr, age time.Duration, due bool) bool {
	if h == nil {
		return due
	}
	if due {
		h.refusers = append(h.refusers[:0], target)
		return true
	}
	known := slices.ContainsFunc(h.refusers, func(a *net.UDPAddr) bool { return sameAddr(a, target) })
	if known || len(h.refusers) == refusersMax || h.count == 0 || age-h.at > heldFor {
		return false
	}
	h.refusers = append(h.refusers, target)
	return true
}

// resend calls send for each datagram that is kept, which reports whether it was sent behind the Preface. It returns how many that were
// refused are too old for that.
func (h *held) resend(age time.Duration, send func([]byte) (prefaced bool)) (lost int) {
	if h == nil {
		return 0
	}
	if age-h.at > heldFor {
		return h.giveUp()
	}
	h.refusals, h.smaller = 0, false
	h.each(func(i int, b []byte) { h.prefaced[i] = send(b) })
	return 0
}

func (h *held) each(take func(i int, b []byte)) {
	from := 0
	for i, size := range h.sizes[:h.count] {
		take(i, h.data[from:from+int(size)])
		from += int(size)
	}
}

// resendLarge calls send for each datagram that is kept and larger than whole, with the Preface that it was sent behind, once for an
// upstream. It reports whether there is one that is not too old for that.
func (h *held) resendLarge(age time.Duration, whole int, preface *Preface, send func(b []byte, prefaced bool)) (kept bool) {
	if h == nil || age-h.at > heldFor {
		return false
	}
	h.each(func(i int, b []byte) {
		size := len(b)
		if h.prefaced[i] {
			size += len(preface.Header)
		}
		if size > whole {
			kept = true
			if !h.smaller {
				send(b, h.prefaced[i])
			}
		}
	})
	h.smaller = h.smaller || kept
	return kept
}

// giveUp drops what is kept because there is no other upstream. It returns how many datagrams were refused.
func (h *held) giveUp() (lost int) {
	if h == nil {
		return 0
	}
	lost = h.refusals
	h.refusals, h.count = 0, 0
	return lost
}

// orNew returns h, or an empty one where that is nil.
func (h *held) orNew() *held {
	if h == nil {
		return spareHeld.Get().(*held)
	}
	return h
}
