package relay

import "time"

// Pacer limits the rate of one direction of a stream. One goroutine uses it at a time.
type Pacer interface {
	// Quantum returns how many bytes may be moved before the next call of Moved: at least one.
	Quantum() int
	// Moved notes that n bytes were moved, and returns how long to wait before more are. It is called with 0 before
	// the first byte.
	Moved(n int) (pause time.Duration)
}
