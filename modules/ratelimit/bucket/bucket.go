// Package bucket decides about limits: on events in a time, on how many there are at once, and on bytes in a time.
//
// A rate is kept as in the generic cell rate algorithm (ITU-T I.371, "virtual scheduling"): one number per
// key, the time at which its bucket will be full again. That is all a key needs, adding to it is exact, and a
// bucket that is full is the same as one that was never seen, so it can be forgotten.
//
// Times are nanoseconds on a clock of the caller's, which must not go back: the time since the process began,
// for example. A step of the system's clock then changes nothing.
package bucket

import (
	"errors"
	"math"
	"math/bits"
	"time"
)

// Kind is what a limit counts.
type Kind uint8

// The kinds of limits.
const (
	Events Kind = iota + 1 // so many in a time
	Count                  // so many at once
	Bytes                  // so many in a time; what has moved is charged afterwards
)

// maxRefill bounds the time that an empty bucket takes to fill. In nanoseconds it still is an exact number in
// a double, which is all that Redis's scripts have.
const maxRefill = 100 * 24 * time.Hour

// ErrRefill is returned for a limit whose empty bucket would take too long to fill.
var ErrRefill = errors.New("expected a burst that is full again within 100 days")

// Limit is one limit. It does not change, and may be used by several goroutines.
type Limit struct {
	id   uint16
	kind Kind

	max       int64         // Count: how many
	interval  time.Duration // Events: the time in which one more may come
	tolerance time.Duration // the time in which an empty bucket fills
	maxDelay  time.Duration // Events: how long one that comes too early may be held

	rate    int64         // Bytes: so many
	per     time.Duration // in this time
	quantum int           // Bytes: how many to move at a time
}

// NewEvents returns a limit of n events per time, burst of them at once. The id tells the limits of one store
// apart. Where maxDelay is not zero, events that come too early are admitted with a delay of up to it.
//
// All three numbers must be above zero.
func NewEvents(id uint16, n int64, per time.Duration, burst int64, maxDelay time.Duration) (*Limit, error) {
	interval := span(1, per, n)
	hi, tolerance := bits.Mul64(uint64(interval), uint64(burst))
	if hi > 0 || tolerance > uint64(maxRefill) {
		return nil, ErrRefill
	}
	return &Limit{id: id, kind: Events, interval: interval, tolerance: time.Duration(tolerance), maxDelay: maxDelay}, nil
}

// NewCount returns a limit of n at once.
func NewCount(id uint16, n int64) *Limit {
	return &Limit{id: id, kind: Count, max: n}
}

// How much one session may move at a time, while others that share its rate wait: what moves in a 64th of a second, but
// not so little or so much that it costs more than it is worth.
const (
	quantaPerSecond = 64
	minQuantum      = 1 << 10
	maxQuantum      = 1 << 20 // as much as a pipe takes at once
)

// NewBytes returns a limit of n bytes per time, and burst bytes beyond that. All three must be above zero.
func NewBytes(id uint16, n int64, per time.Duration, burst int64) (*Limit, error) {
	tolerance := span(burst, per, n)
	if tolerance > maxRefill {
		return nil, ErrRefill
	}
	quantum := min(max(float64(n)/per.Seconds()/quantaPerSecond, minQuantum), maxQuantum)
	return &Limit{
		id: id, kind: Bytes, tolerance: tolerance, rate: n, per: per,
		quantum: int(min(burst, int64(quantum))),
	}, nil
}

// ID returns what tells the limit from others of its store.
func (l *Limit) ID() uint16 { return l.id }

// Kind returns what the limit counts.
func (l *Limit) Kind() Kind { return l.kind }

// Max returns how many a Count allows.
func (l *Limit) Max() int64 { return l.max }

// cost is the time that one event or byte takes from the bucket.
func (l *Limit) cost() float64 {
	if l.kind == Bytes {
		return float64(l.per) / float64(l.rate)
	}
	return float64(l.interval)
}

// Times returns what stores elsewhere need to decide as [Memory] does: the time that an event takes from the bucket, the
// time in which an empty bucket fills, and the longest delay.
func (l *Limit) Times() (interval, tolerance, maxDelay time.Duration) {
	return l.interval, l.tolerance, l.maxDelay
}

// MaxWaiting returns how many may wait for one bucket at once: as many as pass within the longest delay.
func (l *Limit) MaxWaiting() int { return int(l.maxDelay/l.interval) + 1 }

// span is the time in which a rate of n per time gives count, rounded up: a limit admits rather less than more.
func span(count int64, per time.Duration, n int64) time.Duration {
	hi, lo := bits.Mul64(uint64(count), uint64(per))
	if hi >= uint64(n) {
		return math.MaxInt64
	}
	quotient, rest := bits.Div64(hi, lo, uint64(n))
	if rest > 0 {
		quotient++
	}
	return time.Duration(min(quotient, math.MaxInt64))
}

// A value is what a store keeps for a key: of a rate, the time at which the bucket is full again; of a count,
// how many there are.
type value = int64

// verdict is what a limit says to one more.
type verdict struct {
	value value         // of the bucket, once the event is admitted
	delay time.Duration // for which the event is to be held
	retry time.Duration // refused: after which it might be admitted; at least 1
}

// reserve notes when the event passes, if that is later.
func (v *verdict) reserve(request *Request) {
	if v.delay > 0 {
		request.Reserved = Reservation{Delay: v.delay, Mark: v.value}
	}
}

// take judges one more event or one more at once, of a value that settle has returned.
func (l *Limit) take(now time.Duration, v value) verdict {
	if l.kind == Count {
		if v >= l.max {
			return verdict{retry: 1}
		}
		return verdict{value: v + 1}
	}
	debt := l.debt(now, v) + l.interval
	early := debt - l.tolerance
	if early > l.maxDelay {
		return verdict{retry: early - l.maxDelay}
	}
	return verdict{value: value(now + debt), delay: max(early, 0)}
}

// maxArrears bounds the pause after more bytes have moved than a limit allows.
const maxArrears = time.Minute

// settle returns the value with which l goes on from v. A stricter limit may have left v before a reload: it is cut to the
// longest time that l makes anybody wait.
func (l *Limit) settle(now time.Duration, v value) value {
	most := l.tolerance + l.maxDelay
	switch l.kind {
	case Count:
		return v
	case Bytes:
		most += maxArrears
	}
	return min(v, value(now+most))
}

// debt is the time in which the bucket fills.
func (l *Limit) debt(now time.Duration, v value) time.Duration {
	return max(time.Duration(v), now) - now
}

// charge adds n bytes that have moved to a value that settle has returned. It returns the value and the time
// until which no more are to move.
func (l *Limit) charge(now time.Duration, v value, n int) (value, time.Duration) {
	if n > 0 {
		v = value(add(now, add(l.debt(now, v), span(int64(n), l.per, l.rate))))
	}
	return v, now + (l.debt(now, v) - l.tolerance)
}

// add adds times that are not negative. What is beyond the range is its end, which is never reached.
func add(a, b time.Duration) time.Duration {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// used is how much of a limit is taken, in parts of 1.
func (l *Limit) used(now time.Duration, v value) float64 {
	if l.kind == Count {
		return float64(v) / float64(max(l.max, 1))
	}
	return float64(l.debt(now, l.settle(now, v))) / float64(l.tolerance)
}
