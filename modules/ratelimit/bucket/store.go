package bucket

import "time"

// MaxRequests is how many limits may be asked at once.
const MaxRequests = 16

// Request asks a limit for one more of a key.
type Request struct {
	Limit *Limit
	Key   Key

	// Reserved is set by Decide where what it admits has to wait for this limit, and else left as it is.
	Reserved Reservation
}

// Reservation is when a limit lets pass what it has admitted with a delay.
type Reservation struct {
	Delay  time.Duration // 0: there is nothing to wait for
	Mark   int64         // by which the store knows it; a later one has a higher mark
	Shared bool          // it was made by a store that several machines share
}

// Decision is what all limits together have said.
type Decision struct {
	// Refused says that at least one limit refuses. None has then been charged.
	Refused bool

	// Failed says that there was no decision, and that Refused is what is done in such a case.
	Failed bool

	// Limit is the request that was refused first, or else the one that delays most.
	Limit int

	// Delay is how long what was admitted has to be held.
	Delay time.Duration

	// Retry is the time after which what was refused might be admitted. Zero is unknown: of a count it
	// can't be told.
	Retry time.Duration
}

// Store keeps the buckets of many keys. Its methods may be called from several goroutines.
type Store interface {
	// Decide asks all limits at once, each for one more: what one refuses is charged to none. No two
	// requests may be of the same limit, none of [Bytes], and there may be up to MaxRequests.
	Decide(now time.Duration, requests []Request) Decision

	// Release gives back what Decide has counted of those requests that are of a Count. It is called
	// once for each time that Decide did not refuse.
	Release(now time.Duration, requests []Request)

	// Cancel gives reservations back, in this order. A bucket is then as if the request had never been made. That can't be
	// where something else has been admitted since: the latest reservation of a bucket has to be given back first. done
	// is called, now or soon, with those that could not be given back, and may be again.
	Cancel(now time.Duration, requests []Request, done func(kept []Request))
}
