package relay

import (
	"net"
	"time"
)

// rival is a second connection attempt of a stream, which begins while the first one is under way. A stream has one at most.
// Whichever is connected first wins, and the other one is closed.
type rival struct {
	half    // without a stream while there is no descriptor for its socket
	of      *loopStream
	addr    net.Addr
	tracked TrackedSocket
	at, by  time.Duration // as loopState.connectAt and connectBy
}

// race begins a second attempt, if there is another address and a descriptor to spare. failed is what became of one of two attempts, whose
// descriptor is still taken, or nil.
func (s *loopStream) race(failed error) {
	if failed == nil && !s.cfg.takeSpare() {
		s.raceAt = s.loop.now + raceDelay
		return
	}
	s.raceAt = never
	addr := s.cfg.Another(failed)
	if addr == nil {
		s.cfg.releaseSpare()
		return
	}
	s.rival = &rival{of: s, addr: addr, at: s.loop.now, by: never}
	if s.limits.Connect > 0 {
		s.rival.by = later(s.loop.now, s.limits.Connect)
	}
	s.rival.tryConnect()
}

// tryConnect opens the socket and begins to connect. Where the process has no descriptor left it is tried again with every tick of
// the wheel.
func (r *rival) tryConnect() {
	s := r.of
	fd, tracked, err := s.openSocket(r.addr)
	switch {
	case isShortage(err) && s.loop.now < r.by:
		return
	case err != nil:
		s.rivalFailed(err)
		return
	}
	r.tracked = tracked
	r.half = half{stream: s, fd: fd, generation: generations.Add(1)}
	if r.slot, err = s.loop.watch(fd, r, streamEvents, r.generation); err != nil {
		s.rivalFailed(err)
	}
}

// onEvents is called when the rival is connected, or has failed: connected finds out.
func (r *rival) onEvents(events, generation uint32) {
	if r.generation != generation {
		return
	}
	r.note(events)
	if s := r.of; r.writable {
		s.loop.current = s
		s.swap()
		s.connected()
	}
}

// rivalFailed reports the failure of the rival, and goes on to another address.
func (s *loopStream) rivalFailed(err error) {
	r := s.rival
	r.close()
	s.rival = nil
	failed := dialError(r.addr, err)
	attemptFunc(s.cfg.Attempt).report(r.addr, s.loop.now-r.at, failed)
	s.race(failed)
}

// swap makes the rival the first attempt, and the first attempt the rival.
func (s *loopStream) swap() {
	r := s.rival
	s.upstream, r.half = r.half, s.upstream
	s.target, r.addr = r.addr, s.target
	s.tracked, r.tracked = r.tracked, s.tracked
	s.connectAt, r.at = r.at, s.connectAt
	s.connectBy, r.by = r.by, s.connectBy
	if s.upstream.slot > 0 {
		s.loop.sockets.replace(s.upstream.slot, &s.upstream)
	}
	if r.slot > 0 {
		s.loop.sockets.replace(r.slot, r)
	}
}

// takeRival goes on with the rival alone, after the first attempt has failed, and lets another address compete.
func (s *loopStream) takeRival(failed error) {
	s.swap()
	s.rival = nil
	s.race(failed)
	if s.upstream.stream == nil {
		s.tryConnect() // there was no descriptor
		return
	}
	s.setTimer()
}

// dropRival closes the rival, of which nobody hears: it has not failed.
func (s *loopStream) dropRival() {
	if s.rival == nil {
		return
	}
	s.rival.close()
	s.rival = nil
	s.cfg.releaseSpare()
}

func (r *rival) close() {
	if r.stream == nil {
		return // there was no descriptor
	}
	r.of.loop.unwatch(r.slot)
	if r.tracked != nil {
		r.tracked.Closed()
	}
	closeFD(r.fd)
}

// checkAttempts does what is due while a stream connects.
func (s *loopStream) checkAttempts() {
	switch {
	case s.upstream.stream == nil:
		s.tryConnect() // there was no descriptor
		return
	case s.loop.now >= s.connectBy:
		s.redial(errTimeout)
		return
	case s.rival == nil && s.loop.now >= s.raceAt:
		s.race(nil)
	case s.rival == nil:
	case s.loop.now >= s.rival.by:
		s.rivalFailed(errTimeout)
	case s.rival.stream == nil:
		s.rival.tryConnect()
	}
	s.setTimer()
}

// attemptsDue is when checkAttempts has something to do.
func (s *loopStream) attemptsDue() time.Duration {
	due := min(s.connectBy, s.raceAt)
	if r := s.rival; r != nil {
		due = min(due, r.by)
		if r.stream == nil {
			due = s.loop.now
		}
	}
	return due
}
