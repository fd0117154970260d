package bucket

import "time"

// MaxRequests is how many limits may be asked at once.
const MaxRequests = 16

// Request asks a limit for one more of a key.
type Request struct {
	Limit *Limit
	Key   Key
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
}
