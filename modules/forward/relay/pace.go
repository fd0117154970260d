package relay

import "time"

// Pacer bounds the rate of one direction of a relay. It is used by one goroutine at a time.
type Pacer interface {
	// Turn is how many bytes may move before Moved is told: at least one.
	Turn() int
	// Moved is told that n bytes have moved, and returns for how long no more are to. With n of 0 it is asked
	// before anything has moved.
	Moved(n int) (pause time.Duration)
}
