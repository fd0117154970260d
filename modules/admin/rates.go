package admin

import (
	"sync"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

const (
	rateWindow = 10 * time.Second
	tickEvery  = time.Second
	// shortest is the least time over which a rate is taken from counts.
	shortest = tickEvery / 2
	// measureFor is how long after somebody has asked the sessions are measured.
	measureFor = time.Minute
	// slots are the ticks that are remembered, so that one is as old as the window when the next one is due.
	slots = int(rateWindow / tickEvery)
)

// rates knows how many bytes sessions have moved in the last seconds. It looks at their counts once a second while somebody asks, and does
// nothing else of the time: neither moving a byte nor an idle session costs anything for it. Only sessions that have moved something
// lately have their counts remembered.
type rates struct {
	each func(func(*session.Session))

	mu      sync.Mutex
	asked   time.Time
	running bool
	tick    int              // the current one
	times   [slots]time.Time // of the ticks, by their numbers modulo slots
	seen    map[*session.Session]record
}

// measured are those of all sessions.
var measured = &rates{each: session.EachLiving}

type counts struct{ up, down int64 }

// record is what is remembered of a session.
type record struct {
	first, last int            // ticks
	changed     int            // the last tick that has found other counts than the one before
	now         counts         // at the last tick
	past        *[slots]counts // by ticks modulo slots; nil: they were those of now
}

// look says that somebody asks. It reports whether the measurement has only begun.
func (r *rates) look() (begins bool) {
	r.mu.Lock()
	r.asked = time.Now()
	begins = !r.running
	if begins {
		r.running, r.seen, r.tick = true, make(map[*session.Session]record), 0
	}
	r.mu.Unlock()
	if begins {
		r.walk()
	}
	return begins
}

// walk is a tick. It has the next one done later.
func (r *rates) walk() {
	r.mu.Lock()
	if time.Since(r.asked) > measureFor {
		r.running, r.seen = false, nil
		r.mu.Unlock()
		return
	}
	r.tick++
	r.times[r.tick%slots] = time.Now()
	r.mu.Unlock()
	now := startOfPace(listedBetween)
	r.each(func(s *session.Session) {
		now.step()
		if up, down, _, living := s.Traffic(); living {
			r.note(s, counts{up, down})
		}
	})
	r.mu.Lock()
	for s, rec := range r.seen {
		if rec.last != r.tick {
			delete(r.seen, s) // it has ended
		}
	}
	r.mu.Unlock()
	time.AfterFunc(tickEvery, r.walk)
}

func (r *rates) note(s *session.Session, c counts) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, known := r.seen[s]
	if !known {
		rec = record{first: r.tick, changed: r.tick, now: c}
	}
	rec.last = r.tick
	switch {
	case rec.now != c && rec.past == nil:
		rec.past = new([slots]counts)
		for i := range rec.past {
			rec.past[i] = rec.now
		}
		fallthrough
	case rec.now != c:
		rec.changed, rec.now = r.tick, c
	case r.tick-rec.changed >= slots:
		rec.past = nil
	}
	if rec.past != nil {
		rec.past[r.tick%slots] = c
	}
	r.seen[s] = rec
}

// of returns bytes per second over the last 10 seconds, or over the life of a session that is younger, or since the measurement has begun.
// It reports false where that is not known yet.
func (r *rates) of(s *session.Session, up, down int64, lastActive time.Time) (upRate, downRate float64, known bool) {
	now := time.Now()
	if age := now.Sub(s.Start); age < rateWindow {
		return perSecond(up, down, max(age, tickEvery))
	}
	if now.Sub(lastActive) >= rateWindow {
		return 0, 0, true
	}
	since, before, ok := r.before(s)
	if elapsed := now.Sub(since); ok && elapsed >= shortest {
		return perSecond(up-before.up, down-before.down, elapsed)
	}
	return 0, 0, false
}

// before returns the oldest counts that are remembered of a session, and their time.
func (r *rates) before(s *session.Session) (since time.Time, c counts, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, ok := r.seen[s]
	if !ok {
		return since, c, false
	}
	oldest := max(rec.first, rec.last-slots+1, r.tick-slots+1)
	if c = rec.now; rec.past != nil {
		c = rec.past[oldest%slots]
	}
	return r.times[oldest%slots], c, true
}

func perSecond(up, down int64, elapsed time.Duration) (upRate, downRate float64, known bool) {
	return float64(up) / elapsed.Seconds(), float64(down) / elapsed.Seconds(), true
}
