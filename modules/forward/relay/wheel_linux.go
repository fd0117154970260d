package relay

import "time"

// wheel is a coarse timer wheel: it holds sessions by the time at which their limits have to be looked
// at. Bytes that move do not touch it; one that is looked at too early is put back. (Varghese
// and Lauck, "Hashed and Hierarchical Timing Wheels", 1987, scheme 4.)
type wheel struct {
	slots [wheelSlots]*timer
	at    int64 // the last tick that was looked at
	count int
	soon  int64 // no slot before this tick has a timer
}

// A tick is how late a limit may be noticed. A session further ahead than the wheel reaches is looked at
// at its end, and put back.
const (
	wheelTick  = 50 * time.Millisecond
	wheelSlots = 1024
)

// timer is a session's place on the wheel.
type timer struct {
	of         served
	slot       **timer
	next, prev *timer
}

func (w *wheel) init(now time.Duration) { w.at = int64(now / wheelTick) }

// skip passes the time in which there was nothing on the wheel. A loop may have been idle for days.
func (w *wheel) skip(now time.Duration) {
	if w.count == 0 {
		w.at = int64(now / wheelTick)
	}
}

// set puts t where it is looked at as soon as due has passed.
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

// advance calls look for every session whose time has come by now, and takes it off the wheel before.
func (w *wheel) advance(now time.Duration, look func(served)) {
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

// next returns when advance has something to do, or never.
func (w *wheel) next() time.Duration {
	if w.count == 0 {
		return never
	}
	for w.soon = max(w.soon, w.at+1); w.slots[w.soon%wheelSlots] == nil; w.soon++ {
	}
	return time.Duration(w.soon) * wheelTick
}
