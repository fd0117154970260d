package relay

import (
	"container/heap"
	"time"
)

// throttled is the throttle of what is sent to a socket, and its pause.
type throttled struct {
	throttle Throttle
	stream   *loopStream
	due      time.Duration // end of the pause, in the loop's time
	place    int           // index in loop.paused, -1 where it is not in there
}

// pausedStreams is a heap of the directions that pause, ordered by the end of the pause. The wheel is too coarse for them:
// at a low rate, a tick would be longer than most pauses.
type pausedStreams []*throttled

func (p *pausedStreams) Len() int           { return len(*p) }
func (p *pausedStreams) Less(i, j int) bool { return (*p)[i].due < (*p)[j].due }

func (p *pausedStreams) Swap(i, j int) {
	(*p)[i], (*p)[j] = (*p)[j], (*p)[i]
	(*p)[i].place, (*p)[j].place = i, j
}

// Push and Pop are for package heap.
func (p *pausedStreams) Push(x any) {
	pc := x.(*throttled)
	pc.place = len(*p)
	*p = append(*p, pc)
}

// Pop is for package heap.
func (p *pausedStreams) Pop() any {
	last := (*p)[len(*p)-1]
	(*p)[len(*p)-1] = nil
	*p = (*p)[:len(*p)-1]
	last.place = -1
	return last
}

// next returns when the first pause ends, or never.
func (p *pausedStreams) next() time.Duration {
	if len(*p) == 0 {
		return never
	}
	return (*p)[0].due
}

// setThrottle limits the rate of what is sent to h, from the first byte on. Nil is no limit.
func (s *loopStream) setThrottle(h *half, throttle Throttle) {
	if throttle == nil {
		return
	}
	h.throttled = &throttled{throttle: throttle, stream: s, place: -1}
	s.charge(h, 0)
}

// charge tells the throttle of h that n bytes were sent, and begins a pause where it asks for one.
func (s *loopStream) charge(h *half, n int) {
	if h.throttled == nil {
		return
	}
	pause := h.throttled.throttle.Moved(n)
	if pause <= 0 {
		return
	}
	h.throttled.due = s.loop.now + pause
	if h.throttled.place >= 0 {
		heap.Fix(&s.loop.paused, h.throttled.place)
	} else {
		heap.Push(&s.loop.paused, h.throttled)
	}
	s.touch(s.age() + pause) // the pause is ours: it does not count as silence of the peers
}

// pauses reports whether h is in a pause: nothing is read for it.
func (h *half) pauses() bool { return h.throttled != nil && h.throttled.due > h.stream.loop.now }

// allowance is how many bytes may be read for h at once, at most most.
func (h *half) allowance(most int) int {
	if h.throttled == nil {
		return most
	}
	return min(most, h.throttled.throttle.Turn())
}

func (h *half) dropThrottle() {
	if h.throttled != nil && h.throttled.place >= 0 {
		heap.Remove(&h.stream.loop.paused, h.throttled.place)
	}
}

// resume serves the sessions whose pause has ended.
func (l *loop) resume() {
	for l.paused.next() <= l.now {
		s := heap.Pop(&l.paused).(*throttled).stream
		l.current = s
		if !s.queued {
			s.serve()
		}
	}
}
