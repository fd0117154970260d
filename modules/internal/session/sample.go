package session

import (
	"sync"
	"time"
)

// sampler bounds the access log entries of sessions that nobody was served in, so that a flood of clients that are denied, of
// forged datagrams, or of clients of a dead upstream can't fill the disk. The metrics count them all.
type sampler struct {
	perSecond map[int]float64 // by status, where the config says so: then it bounds all sessions of that status

	mu      sync.Mutex
	allowed map[kind]*allowance
}

// kind is what sessions have in common that share a bound. There are few: reasons are words of the code.
type kind struct {
	status int
	reason string // "" where the config bounds a status
}

// allowance is a token bucket of entries.
type allowance struct {
	left    float64 // entries that may be written now
	at      time.Time
	skipped int64 // since the last entry
}

// The bounds of a kind where the config says nothing.
const (
	samplesPerSecond = 10
	samplesBurst     = 100
)

// take tells whether a session may have an entry, and how many of its kind have had none since the last one.
func (sp *sampler) take(e *End, served bool, now time.Time) (skipped int64, ok bool) {
	k, perSecond, burst := kind{e.Status, e.Reason}, float64(samplesPerSecond), float64(samplesBurst)
	if configured, is := sp.perSecond[e.Status]; is {
		k.reason, perSecond, burst = "", configured, max(configured, 1)
		if configured == 0 {
			return 0, false
		}
	} else if served {
		return 0, true
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	a := sp.allowed[k]
	if a == nil {
		if sp.allowed == nil {
			sp.allowed = make(map[kind]*allowance)
		}
		a = &allowance{left: burst, at: now}
		sp.allowed[k] = a
	}
	return a.take(perSecond, burst, now)
}

func (a *allowance) take(perSecond, burst float64, now time.Time) (skipped int64, ok bool) {
	a.left = min(a.left+now.Sub(a.at).Seconds()*perSecond, burst)
	if a.at = now; a.left < 1 {
		a.skipped++
		return 0, false
	}
	a.left--
	skipped, a.skipped = a.skipped, 0
	return skipped, true
}

// served tells whether anybody was: the upstream was reached, and over UDP, where that means nothing, has replied.
func (s *Session) served(e *End) bool {
	if _, ok := s.mover.(DatagramMover); ok {
		return s.datagramsDown > 0
	}
	return e.Connected
}
