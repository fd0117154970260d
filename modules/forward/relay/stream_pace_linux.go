package relay

import (
	"container/heap"
	"time"
)

// pace is the pacer of what is sent to a socket, and its pause.
type pace struct {
	pacer  Pacer
	stream *loopStream
	due    time.Duration // end of the pause, in the loop's time
	place  int           // index in loop.paused, -1 where it is not in there
}

// pausedStreams is a heap of the directions that pause, ordered by the end of the pause. The wheel is too coarse for them:
// at a low rate, a tick would be longer than most pauses.
type pausedStreams []*pace

func (p *pausedStreams) Len() int           { return len(*p) }
func (p *pausedStreams) Less(i, j int) bool { return (*p)[i].due < (*p)[j].due }

func (p *pausedStreams) Swap(i, j int) {
	(*p)[i], (*p)[j] = (*p)[j], (*p)[i]
	(*p)[i].place, (*p)[j].place = i, j
}

// Push and Pop are for package heap.
func (p *pausedStreams) Push(x any) {
	pc := x.(*pace)
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

// setPace limits the rate of what is sent to h, from the first byte on. Nil is no limit.
func (s *loopStream) setPace(h *half, pacer Pacer) {
	if pacer == nil {
		return
	}
	h.pace = &pace{pacer: pacer, stream: s, place: -1}
	s.charge(h, 0)
}

// charge tells the pacer of h that n bytes were sent, and begins a pause where it asks for one.
func (s *loopStream) charge(h *half, n int) {
	if h.pace == nil {
		return
	}
	pause := h.pace.pacer.Moved(n)
	if pause <= 0 {
		return
	}
	h.pace.due = later(s.loop.now, pause)
	if h.pace.place >= 0 {
		heap.Fix(&s.loop.paused, h.pace.place)
	} else {
		heap.Push(&s.loop.paused, h.pace)
	}
	s.touch(later(s.age(), pause)) // the pause is ours: it does not count as silence of the peers
}

// pauses reports whether h is in a pause: nothing is read for it.
func (h *half) pauses() bool { return h.pace != nil && h.pace.due > h.stream.loop.now }

// allowance is how many bytes may be read for h at once, at most most.
func (h *half) allowance(most int) int {
	if h.pace == nil {
		return most
	}
	return min(most, h.pace.pacer.Quantum())
}

func (h *half) dropPace() {
	if h.pace != nil && h.pace.place >= 0 {
		heap.Remove(&h.stream.loop.paused, h.pace.place)
	}
}

// resume serves the sessions whose pause has ended.
func (l *loop) resume() {
	for l.paused.next() <= l.now {
		s := heap.Pop(&l.paused).(*pace).stream
		l.current = s
		if !s.queued {
			s.serve()
		}
	}
}
