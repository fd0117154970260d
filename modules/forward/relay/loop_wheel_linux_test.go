package relay

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// slowWheel is what a wheel does, the obvious way: a list of who is looked at in which tick.
type slowWheel struct {
	at    int64
	ticks map[*loopStream]int64
}

func (w *slowWheel) set(f *loopStream, due time.Duration) {
	w.ticks[f] = min(max(int64(due/wheelTick)+1, w.at+1), w.at+wheelSlots-1)
}

func (w *slowWheel) advance(now time.Duration, look func([]*loopStream)) {
	for last := int64(now / wheelTick); w.at < last; {
		w.at++
		var due []*loopStream
		for f, tick := range w.ticks {
			if tick == w.at {
				due = append(due, f)
			}
		}
		look(due)
	}
}

func (w *slowWheel) next() time.Duration {
	if len(w.ticks) == 0 {
		return never
	}
	return time.Duration(slices.Min(slices.Collect(maps.Values(w.ticks)))) * wheelTick
}

// wheels does the same to both and compares.
type wheels struct {
	*testing.T
	random   *rand.Rand
	fast     wheel
	slow     slowWheel
	sessions [20]loopStream
	now      time.Duration
	looked   int
}

func newWheels(t *testing.T, seed uint64) *wheels {
	w := &wheels{T: t, random: rand.New(rand.NewPCG(seed, 0))}
	for i := range w.sessions {
		w.sessions[i].timer.of = &w.sessions[i]
	}
	w.now = time.Duration(w.random.Int64N(int64(time.Hour)))
	w.fast.init(w.now)
	w.slow = slowWheel{at: int64(w.now / wheelTick), ticks: map[*loopStream]int64{}}
	return w
}

func (w *wheels) stream() *loopStream { return &w.sessions[w.random.IntN(len(w.sessions))] }

// set is for a time that has passed, is near, or is further than the wheel reaches.
func (w *wheels) set(f *loopStream) {
	due := never
	if reach := []time.Duration{time.Second, time.Minute, time.Hour, 0}[w.random.IntN(4)]; reach > 0 {
		due = w.now - time.Second + time.Duration(w.random.Int64N(int64(reach+time.Second)))
	}
	w.fast.set(&f.timer, due)
	w.slow.set(f, due)
}

func (w *wheels) remove(f *loopStream) {
	w.fast.remove(&f.timer)
	delete(w.slow.ticks, f)
}

// advance looks at what is due. As in a loop, who is looked at may be put back, and may end another.
func (w *wheels) advance(by time.Duration) {
	w.now += by
	var due []*loopStream
	w.fast.advance(w.now, func(looked loopSession) {
		f := looked.(*loopStream)
		w.looked++
		for len(due) == 0 {
			w.slow.advance(min(w.now, time.Duration(w.slow.at+1)*wheelTick), func(fs []*loopStream) { due = fs })
			if w.slow.at > int64(w.now/wheelTick) {
				w.Fatalf("looked at a session that is not due")
			}
		}
		i := slices.Index(due, f)
		if i < 0 {
			w.Fatalf("looked at a session in tick %d that is due in %d", w.slow.at, w.slow.ticks[f])
		}
		due = slices.Delete(due, i, i+1)
		delete(w.slow.ticks, f)
		switch w.random.IntN(4) {
		case 0:
			w.set(f)
		case 1:
			other := w.stream()
			w.remove(other)
			due = slices.DeleteFunc(due, func(f *loopStream) bool { return f == other })
		}
	})
	w.slow.advance(w.now, func(fs []*loopStream) { due = append(due, fs...) })
	if len(due) > 0 {
		w.Fatalf("%d sessions that are due were not looked at", len(due))
	}
}

func TestWheelAgainstAnObviousOne(t *testing.T) {
	for seed := range uint64(50) {
		w := newWheels(t, seed)
		for range 2000 {
			switch w.random.IntN(4) {
			case 0, 1:
				w.set(w.stream())
			case 2:
				w.remove(w.stream())
			case 3:
				w.fast.skip(w.now) // at the beginning of a round
				if w.fast.count == 0 {
					w.slow.at = int64(w.now / wheelTick)
				}
				w.advance(time.Duration(w.random.ExpFloat64() * float64(2*time.Second)))
			}
			if got, want := w.fast.next(), w.slow.next(); got != want {
				t.Fatalf("seed %d: next: got %s, want %s", seed, got, want)
			}
			if w.fast.count != len(w.slow.ticks) {
				t.Fatalf("seed %d: count: got %d, want %d", seed, w.fast.count, len(w.slow.ticks))
			}
		}
		if w.looked < 100 {
			t.Errorf("seed %d: only %d looks", seed, w.looked)
		}
	}
}

// A session is checked once its time has passed, never before, and at most a tick later.
func TestWheelIsOnTime(t *testing.T) {
	for seed := range uint64(50) {
		w := newWheels(t, seed)
		f, due := &loopStream{}, w.now+time.Duration(w.random.Int64N(int64(50*time.Second)))
		w.fast.set(&f.timer, due)
		for looked := false; !looked; w.now += time.Duration(w.random.Int64N(int64(10 * time.Millisecond))) {
			w.fast.advance(w.now, func(loopSession) { looked = true })
			if looked && w.now < due {
				t.Fatalf("seed %d: looked %s early", seed, due-w.now)
			}
			if w.now > due+wheelTick && !looked {
				t.Fatalf("seed %d: not looked at %s after its time", seed, w.now-due)
			}
		}
	}
}

// However far ahead it is due, a session is checked within one revolution of the wheel.
func TestWheelComesRound(t *testing.T) {
	var w wheel
	w.init(0)
	w.set(&timer{}, never)
	if next := w.next(); next > wheelSlots*wheelTick {
		t.Errorf("next look after %s", next)
	}
}

// A loop that was idle for a year does not go through all its ticks when it has something to do again.
func TestWheelSkipsWhatItSlept(t *testing.T) {
	const year = 365 * 24 * time.Hour
	var w wheel
	w.init(0)
	w.skip(year)
	w.set(&timer{}, year+time.Second)
	if next := w.next(); next < year+time.Second || next > year+time.Second+wheelTick {
		t.Errorf("next look after %s", next)
	}
}
