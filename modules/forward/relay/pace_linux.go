package relay

import (
	"container/heap"
	"time"
)

// pace is what holds the direction to a socket to its rate.
type pace struct {
	pacer Pacer
	flow  *flow
	due   time.Duration // of the loop's time, until when nothing is read for the socket
	place int           // in loop.paces, -1 where it is not there
}

// paced is the directions that pause, the one that is due next first. Unlike the wheel, on which limits are that
// nobody needs to be exact, it has them go on in time: a tick would be most of what a low rate allows.
type paced []*pace

func (p *paced) Len() int           { return len(*p) }
func (p *paced) Less(i, j int) bool { return (*p)[i].due < (*p)[j].due }

func (p *paced) Swap(i, j int) {
	(*p)[i], (*p)[j] = (*p)[j], (*p)[i]
	(*p)[i].place, (*p)[j].place = i, j
}

// Push and Pop are for package heap.
func (p *paced) Push(x any) {
	pc := x.(*pace)
	pc.place = len(*p)
	*p = append(*p, pc)
}

// Pop is for package heap.
func (p *paced) Pop() any {
	last := (*p)[len(*p)-1]
	(*p)[len(*p)-1] = nil
	*p = (*p)[:len(*p)-1]
	last.place = -1
	return last
}

// next returns when the first one is due, or never.
func (p *paced) next() time.Duration {
	if len(*p) == 0 {
		return never
	}
	return (*p)[0].due
}

// setPace has pacer hold what is sent to h to a rate, from the first byte on. A nil pacer does not.
func (f *flow) setPace(h *half, pacer Pacer) {
	if pacer == nil {
		return
	}
	h.pace = &pace{pacer: pacer, flow: f, place: -1}
	f.charge(h, 0)
}

// charge is called when n bytes were sent to h.
func (f *flow) charge(h *half, n int) {
	if h.pace == nil {
		return
	}
	pause := h.pace.pacer.Moved(n)
	if pause <= 0 {
		return
	}
	h.pace.due = f.loop.now + pause
	if h.pace.place >= 0 {
		heap.Fix(&f.loop.paces, h.pace.place)
	} else {
		heap.Push(&f.loop.paces, h.pace)
	}
	f.touch(f.age() + pause) // it is not the peers that are silent
}

// pauses reports whether nothing is to be read for h now.
func (h *half) pauses() bool { return h.pace != nil && h.pace.due > h.flow.loop.now }

// turn is how much may be read for h at once, of most.
func (h *half) turn(most int) int {
	if h.pace == nil {
		return most
	}
	return min(most, h.pace.pacer.Turn())
}

func (h *half) dropPace() {
	if h.pace != nil && h.pace.place >= 0 {
		heap.Remove(&h.flow.loop.paces, h.pace.place)
	}
}

// resume has those go on that have paused for long enough.
func (l *loop) resume() {
	for l.paces.next() <= l.now {
		f := heap.Pop(&l.paces).(*pace).flow
		l.current = f
		if !f.queued {
			f.step()
		}
	}
}
