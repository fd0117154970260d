package upstream

import (
	"math"
	"net"
	"slices"
	"time"
)

// Cause is what opens a breaker. The terms are those of Alibaba Sentinel.
type Cause uint8

// The causes.
const (
	CauseSlow     Cause = iota // the share of sessions that were slow
	CauseErrors                // the share of sessions that have failed
	CauseFailures              // how many sessions have failed
)

var causes = [...]string{"slow", "errors", "failures"}

func (c Cause) String() string { return causes[c] }

// Terms say when a breaker opens, and when it closes again. Handlers with the same Terms share what they find out.
type Terms struct {
	Cause Cause
	// Ratio is the share of sessions above which the breaker opens, from 0 to 1. 1: it opens when all are slow, or all have failed.
	Ratio float64
	// Count is the number of failed sessions above which it opens.
	Count int
	// Slow is how long an upstream may take to be connected, and to send its first byte, until its session counts as slow.
	Slow time.Duration
	// Window is how long the sessions count by which it is judged. It moves in steps of a tenth.
	Window time.Duration
	// MinSessions is how many there have to be, until it is judged.
	MinSessions int
	// Open is how long it stays open.
	Open time.Duration
	// HalfOpen is how many sessions may try the upstream after that, as probes.
	HalfOpen int
}

// exceeded reports whether so many sessions open the breaker.
func (t *Terms) exceeded(c cell) bool {
	switch {
	case c.sessions < uint32(t.MinSessions):
		return false
	case t.Cause == CauseFailures:
		return c.bad > uint32(t.Count)
	case t.Ratio >= 1:
		return c.sessions > 0 && c.bad == c.sessions
	}
	return float64(c.bad)/float64(c.sessions) > t.Ratio // 0.29 times 100 would be less than 29
}

// outcome is how the attempt of a session to use an upstream went.
type outcome struct {
	failed bool          // there was no connection, or it was reset before the first byte
	took   time.Duration // to connect, or until the first byte, whichever was longer
}

// bad reports whether an outcome counts against an upstream. A probe has to work, too, where it is only to be fast.
func (t *Terms) bad(o outcome, probe bool) bool {
	if t.Cause == CauseSlow {
		return o.took > t.Slow || probe && o.failed
	}
	return o.failed
}

// BreakerState says whether an upstream gets sessions.
type BreakerState uint8

// The states.
const (
	BreakerClosed   BreakerState = iota // it gets sessions
	BreakerOpen                         // it gets none
	BreakerHalfOpen                     // it gets probes
)

var breakerStates = [...]string{"closed", "open", "half_open"}

func (s BreakerState) String() string { return breakerStates[s] }

// windowSteps is how many parts a window moves in.
const windowSteps = 10

// window counts the sessions of the last time.
type window struct {
	cells  [windowSteps]cell
	newest int64 // the step that the last session belongs to
}

type cell struct{ sessions, bad uint32 }

// add counts a session. step is the number of the step that it belongs to.
func (w *window) add(step int64, bad bool) {
	for w.newest < step {
		if step-w.newest >= windowSteps {
			*w = window{newest: step}
			break
		}
		w.newest++
		w.cells[w.newest%windowSteps] = cell{}
	}
	c := &w.cells[w.newest%windowSteps]
	c.sessions++
	if bad {
		c.bad++
	}
}

func (w *window) sum() (all cell) {
	for _, c := range w.cells {
		all.sessions, all.bad = all.sessions+c.sessions, all.bad+c.bad
	}
	return all
}

// breaker is the breaker of one address. It is guarded by its [Breakers].
type breaker struct {
	name   string // of the upstream as configured
	addr   net.Addr
	state  BreakerState
	epoch  uint32    // changes with the state: what began before does not count any more
	since  time.Time // when the state began
	used   time.Time // when a session was admitted or heard of
	window window
	probes []probe // those of a half-open breaker that nothing was heard of yet
	good   int     // probes that went well
	last   uint32  // the number of the last probe
	err    error   // of the last session that has failed

	recent [2]uint64 // the last two clients whose sessions have asked, 0 where there were not so many
	silent []silent  // clients that are no probes for some time, the one that came first in front
}

// probe is a session that tries an upstream whose breaker is half open.
type probe struct {
	number uint32
	client uint64
	at     time.Time
}

// silent is a client whose probe has said nothing. Until then others are probes in its place.
type silent struct {
	client uint64
	until  time.Time
}

const (
	// silentFor is how many times as long as a probe has said nothing its client is no probe. So one client has the place for a fifth of the time
	// at most, whatever it does, and five have to work together to keep an upstream from all others.
	silentFor = 4
	// maxSilent bounds the clients that are remembered for that.
	maxSilent = 64
)

// pass is what a session is admitted with. The zero pass is that of a session that no breaker watches.
type pass struct {
	of    *breaker
	epoch uint32
	probe uint32 // number of the probe, 0 where it is none
}

// admit reports whether a session may try the upstream now. A probe that nothing is heard of for as long as the breaker is open is not waited for:
// another session takes its place. client tells clients apart; 0: it is not known.
func (b *breaker) admit(t *Terms, client uint64, now time.Time) (p pass, ok bool) {
	b.used = now
	if client != 0 && client != b.recent[0] {
		b.recent = [2]uint64{client, b.recent[0]}
	}
	switch b.state {
	case BreakerClosed:
		return pass{of: b, epoch: b.epoch}, true
	case BreakerOpen:
		if now.Before(b.since.Add(t.Open)) {
			return pass{}, false
		}
		b.become(BreakerHalfOpen, now)
	case BreakerHalfOpen:
		if b.expire(t, now); !b.hasRoom(t) || b.isSilent(client, now) {
			return pass{}, false
		}
	}
	b.last++
	b.probes = append(b.probes, probe{b.last, client, now})
	return pass{b, b.epoch, b.last}, true
}

// hasRoom reports whether a half-open breaker admits one more probe.
func (b *breaker) hasRoom(t *Terms) bool { return b.good+len(b.probes) < t.HalfOpen }

// expire drops the probes that nothing was heard of for too long.
func (b *breaker) expire(t *Terms, now time.Time) {
	for len(b.probes) > 0 && !now.Before(b.probes[0].at.Add(t.Open)) {
		b.saidNothing(b.probes[0], b.probes[0].at.Add(t.Open))
		b.probes = b.probes[1:]
	}
}

// saidNothing has others be probes, after one that has said nothing until then. Where there are no others its client goes on.
func (b *breaker) saidNothing(p probe, until time.Time) {
	lasted := until.Sub(p.at)
	if p.client == 0 || b.recent[1] == 0 || lasted <= 0 {
		return
	}
	if len(b.silent) == maxSilent {
		b.silent = b.silent[1:]
	}
	b.silent = append(b.silent, silent{p.client, until.Add(silentFor * min(lasted, math.MaxInt64/silentFor))})
}

func (b *breaker) isSilent(client uint64, now time.Time) bool {
	return slices.ContainsFunc(b.silent, func(s silent) bool { return s.client == client && now.Before(s.until) })
}

// refusesUntil reports whether the breaker admits no session now, and until when.
func (b *breaker) refusesUntil(t *Terms, now time.Time) (until time.Time, refuses bool) {
	switch {
	case b.state == BreakerOpen:
		until = b.since.Add(t.Open)
	case b.state == BreakerHalfOpen && b.good+len(b.probes) >= t.HalfOpen:
		until = b.probes[0].at.Add(t.Open)
	default:
		return until, false
	}
	return until, now.Before(until)
}

// hear takes the outcome of a session that was admitted. step is that of the window. It returns what was counted where that has opened the breaker,
// and whether it admits others than before.
func (b *breaker) hear(t *Terms, p pass, o outcome, step int64, now time.Time) (counted cell, changed bool) {
	bad := t.bad(o, p.probe > 0)
	switch {
	case p.epoch != b.epoch:
		return cell{}, false
	case p.probe == 0:
		b.used = now
		b.window.add(step, bad)
		if !bad {
			return cell{}, false
		}
		if counted = b.window.sum(); !t.exceeded(counted) {
			return cell{}, false
		}
		b.become(BreakerOpen, now)
	case !b.drop(p.probe, time.Time{}): // it took too long
		return cell{}, false
	case bad:
		b.become(BreakerOpen, now)
	default:
		if b.good++; b.good >= t.HalfOpen {
			b.become(BreakerClosed, now)
		}
	}
	return counted, true
}

// release takes back the pass of a session that says nothing about the upstream: it never tried it, or left before it could tell.
func (b *breaker) release(p pass, now time.Time) (changed bool) {
	return p.epoch == b.epoch && p.probe > 0 && b.drop(p.probe, now)
}

// drop removes a probe. silentUntil is when one ended that has said nothing, zero for the others.
func (b *breaker) drop(number uint32, silentUntil time.Time) bool {
	for i, p := range b.probes {
		if p.number == number {
			b.probes = append(b.probes[:i:i], b.probes[i+1:]...)
			if !silentUntil.IsZero() {
				b.saidNothing(p, silentUntil)
			}
			return true
		}
	}
	return false
}

func (b *breaker) become(state BreakerState, now time.Time) {
	b.state, b.since = state, now
	b.epoch++
	b.window, b.probes, b.good, b.silent = window{newest: b.window.newest}, nil, 0, nil
}
