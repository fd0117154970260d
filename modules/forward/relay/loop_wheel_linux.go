package relay

import "time"

// wheel is a coarse timer wheel. It holds each session at the time at which its time limits have to be checked. Bytes that
// move do not touch it: a session that is checked too early is put back. (Varghese and Lauck, "Hashed and
// Hierarchical Timing Wheels", 1987, scheme 4.)
type wheel struct {
	slots [wheelSlots]*timer
	at    int64 // the last tick that has been checked
	count int
	soon  int64 // the slots before this tick are empty
}

// A limit is noticed up to one tick late. A session that is due later than the wheel reaches is checked at the end of the
// wheel and put back.
const (
	wheelTick  = 50 * time.Millisecond
	wheelSlots = 1024
)

// timer is the entry of one session.
type timer struct {
	of         loopSession
	slot       **timer
	next, prev *timer
}

func (w *wheel) init(now time.Duration) { w.at = int64(now / wheelTick) }

// skip moves an empty wheel to now at once: a loop may have been idle for days.
func (w *wheel) skip(now time.Duration) {
	if w.count == 0 {
		w.at = int64(now / wheelTick)
	}
}

// set has t checked in the first tick after due.
func (w *wheel) set(t *timer, due time.Duration) {
	w.remove(t)
	tick := int64(due/wheelTick) + 1
	tick = min(max(tick, w.at+1), w.at+wheelSlots-1)
	if w.count == 0 || tick < w.soon {
		w.soon = tick
	}
	w.count++
	head := &w.slots[tick%wheelSlots]
	t.slot, t.next, t.prev = head, *head, nil
	if t.next != nil {
		t.next.prev = t
	}
	*head = t
}

func (w *wheel) remove(t *timer) {
	if t.slot == nil {
		return
	}
	w.count--
	if t.next != nil {
		t.next.prev = t.prev
	}
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		*t.slot = t.next
	}
	t.slot, t.next, t.prev = nil, nil, nil
}

// advance removes every session that is due by now and calls look for it.
func (w *wheel) advance(now time.Duration, look func(loopSession)) {
	for last := int64(now / wheelTick); w.at < last; {
		if w.count == 0 {
			w.at = last
			return
		}
		w.at++
		for head := &w.slots[w.at%wheelSlots]; *head != nil; {
			t := *head
			w.remove(t)
			look(t.of)
		}
	}
}

// next returns the time of the next tick that has a session, or never.
func (w *wheel) next() time.Duration {
	if w.count == 0 {
		return never
	}
	for w.soon = max(w.soon, w.at+1); w.slots[w.soon%wheelSlots] == nil; w.soon++ {
	}
	return time.Duration(w.soon) * wheelTick
}
