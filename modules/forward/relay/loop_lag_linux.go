package relay

import (
	"math"
	"sync/atomic"
	"time"
)

// HasLoops tells whether there are event loops on this system.
const HasLoops = true

// lagWindow is for how long the longest round counts, and then for as long again.
const lagWindow = 15 * time.Second

// longestRounds is how long a loop's rounds take at most. While a round lasts the other sessions of the loop wait. The loop alone writes to it.
type longestRounds struct{ now, before atomic.Uint64 } // the number of a window, and microseconds in the lower half

func (l *longestRounds) note(at, took time.Duration) {
	longest := uint64(min(took.Microseconds(), math.MaxUint32))
	window, current := uint64(at/lagWindow), l.now.Load()
	switch {
	case current>>32 != window:
		l.before.Store(current)
		l.now.Store(window<<32 | longest)
	case longest > current&math.MaxUint32:
		l.now.Store(window<<32 | longest)
	}
}

// of returns the longest round of the last two windows.
func (l *longestRounds) of(at time.Duration) (longest time.Duration) {
	window := uint64(at / lagWindow)
	for _, one := range [...]uint64{l.now.Load(), l.before.Load()} { // in this order: what has become before meanwhile was read as now
		if window-one>>32 <= 1 {
			longest = max(longest, time.Duration(one&math.MaxUint32)*time.Microsecond)
		}
	}
	return longest
}

// running are the loops once they are started.
var running atomic.Pointer[[]*loop]

// Lag returns the longest time that a round of an event loop has taken in the last 15 to 30 seconds, or takes already. It starts no loops.
func Lag() (longest time.Duration) {
	all := running.Load()
	if all == nil {
		return 0
	}
	now := time.Since(epoch)
	for _, l := range *all {
		longest = max(longest, l.longest.of(now))
		if began := time.Duration(l.roundBegan.Load()); began != 0 {
			longest = max(longest, now-began)
		}
	}
	return longest
}
