package relay

import (
	"context"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// loopStream is a relay that an event loop serves. It belongs to the loop's goroutine; only ctx and what
// [Relay.Stats] reads are shared.
type loopStream struct {
	*Relay
	loopState

	ctx      context.Context // of dial, ends when the relay is cut
	target   net.Addr        // of the connection attempt that runs
	tracked  TrackedSocket   // the upstream's socket; nil where it is not tracked
	rival    *rival          // the second attempt; nil where none is under way
	raceAt   time.Duration   // when to begin one, in the loop's time
	firstFIN Reason
	first    *firstByte // nil where nobody wants to know, or does not any more
	waiting  bool       // Next has the client wait, see clientWaits
	leaving  bool       // the client has sent a FIN and nothing before it, see leaves

	client, upstream half
}

// half is one of the two sockets of a stream, and what waits to be sent to it.
type half struct {
	stream     *loopStream
	fd         int
	slot       int32 // 0 while the loop does not watch it
	generation uint32

	readable bool // there may be something to read: no read has returned EAGAIN since the last event
	writable bool // there may be room: no write has returned EAGAIN since the last event
	ending   bool // read until EAGAIN or the end: behind a short read there is a FIN, an error or urgent data
	partial  bool // a short read does not mean that there is no more, see connected
	erred    bool // epoll has reported an error, which a read returns unless a FIN came first
	eof      bool // nothing more will be read
	gone     bool // reset
	finished bool // we have sent it a FIN

	keptAlive, stalled bool // see guard
	kept               bool // a Keeper has connected it

	bulk     bool // is read with splice
	noSplice bool // the kernel can't splice it
	streak   int8 // large reads, or small splices, in a row

	pace *pace // limits the rate of what is sent to it; nil: no limit

	left   *leftover // was read for it and could not be sent yet
	pipe   *pipe     // the same, spliced; nil while the stream is not bulk
	filled int       // bytes in pipe
}

var generations atomic.Uint32

// A direction is bulk after largeReads reads of largeRead bytes in a row, and not any more after smallReads splices of
// less than smallSplice bytes.
const (
	largeRead   = 32 << 10
	largeReads  = 2
	smallSplice = 16 << 10
	smallReads  = 4
)

// runLoop hands the relay to an event loop. It reports false where the client can't be detached.
func (r *Relay) runLoop() bool {
	detacher, ok := r.cfg.Client.(Detacher)
	if !ok || r.cfg.Wraps {
		return false
	}
	l := pickLoop()
	if l == nil {
		return false
	}
	fd, ok := detacher.Detach()
	if !ok {
		return false
	}
	s := &loopStream{Relay: r, loopState: loopState{loop: l, opened: r.start.Sub(epoch)}, first: r.newFirst()}
	s.timer.of = s
	s.client = half{stream: s, fd: fd}
	s.ctx = s.dialContext()
	r.cfg.Client = nil
	if reason := r.begin(s); reason != "" {
		s.cut(reason)
	}
	if r.limits.Lifetime > 0 {
		l.post(message{to: s, what: orderTime}) // it may pass while Next blocks
	}
	s.dial(s.ctx, r.cfg.Next, nil)
	return true
}

// connectTo begins a connection attempt.
func (s *loopStream) connectTo(addr net.Addr) {
	if s.reason != "" {
		s.end()
		return
	}
	s.target = addr
	s.cfg.chooseWay()
	if err := s.watchClient(); err != nil {
		s.fail(err)
		return
	}
	s.startConnecting(s.limits.Connect)
	if s.raceAt = never; s.cfg.Another != nil {
		s.raceAt = s.loop.now + raceDelay
	}
	s.tryConnect()
}

// tryConnect opens the socket and begins to connect. Where the process has no descriptor left it is tried again with
// every tick of the wheel, until the attempt times out.
func (s *loopStream) tryConnect() {
	fd, tracked, kept := s.cfg.kept.takeSocket(s.target, s.cfg.Track)
	var err error
	if !kept {
		fd, tracked, err = s.openSocket(s.target)
	}
	switch {
	case isShortage(err) && s.loop.now < s.connectBy:
		s.loop.wheel.set(&s.timer, s.loop.now)
		return
	case err != nil:
		s.redial(err)
		return
	}
	s.tracked = tracked
	s.upstream = half{stream: s, fd: fd, generation: generations.Add(1), kept: kept}
	s.upstream.slot, err = s.loop.watch(fd, &s.upstream, streamEvents, s.upstream.generation)
	if err != nil {
		s.redial(err)
		return
	}
	s.setTimer()
}

// openSocket opens a socket, begins to connect it, and tells the Tracker.
func (s *loopStream) openSocket(addr net.Addr) (fd int, tracked TrackedSocket, err error) {
	if _, ok := addr.(*net.UnixAddr); ok {
		var name string
		name, tracked = trackConnectingUnix(s.cfg.Track)
		fd, err = startConnect(s.cfg.Local, addr, name)
	} else {
		tracked = trackConnecting(s.cfg.Track, addr)
		if fd, err = startConnect(s.cfg.Local, addr, ""); err == nil && tracked != nil {
			tracked.Connected(localAddr(fd))
		}
	}
	if err != nil && tracked != nil {
		tracked.Closed()
	}
	return fd, tracked, err
}

// redial gives up an attempt, and goes on with the other one, or asks Next for another address.
func (s *loopStream) redial(failed error) {
	s.discard(&s.upstream)
	failed = dialError(s.target, failed)
	attemptFunc(s.cfg.Attempt).report(s.target, s.loop.now-s.connectAt, failed)
	if s.rival != nil {
		s.takeRival(failed)
		return
	}
	s.phase = phaseDialing
	s.setTimer()
	go s.dial(s.ctx, s.cfg.Next, failed)
}

// fail ends a stream that never had an upstream. The client is reset, so that it knows at once.
func (s *loopStream) fail(err error) {
	s.failed = err
	s.connect = s.age()
	if s.setReason(connectReason(err)) {
		resetOnClose(s.client.fd)
	}
	s.end()
}

// step moves what there is to move.
func (s *loopStream) serve() {
	s.queued = false
	if s.phase == phaseOpen {
		s.move()
	}
}

func (s *loopStream) connected() {
	if s.upstream.kept && s.upstream.readable { // it has come to an end since the Keeper has looked
		s.discard(&s.upstream)
		s.cfg.kept = nil
		s.tryConnect()
		return
	}
	if s.upstream.ending { // the attempt has failed, or the upstream has sent a FIN already
		if errno, _ := unix.GetsockoptInt(s.upstream.fd, unix.SOL_SOCKET, unix.SO_ERROR); errno != 0 {
			s.redial(syscall.Errno(errno))
			return
		}
	}
	if isItself(s.upstream.fd, s.target) {
		resetOnClose(s.upstream.fd)
		s.redial(unix.ECONNREFUSED)
		return
	}
	s.dropRival()
	_, s.upstream.partial = s.target.(*net.UnixAddr) // a read of a unix socket stops where a descriptor is passed
	s.phase = phaseOpen
	s.connect = s.age()
	s.touch(s.age())
	s.cancel()
	cfg := s.cfg
	attemptFunc(cfg.Attempt).report(s.target, s.loop.now-s.connectAt, nil)
	s.cfg, s.ctx, s.cancel, s.target = nil, nil, nil, nil // not needed any more, and may keep much memory alive
	s.setTimer()
	s.setPace(&s.upstream, cfg.PaceUp)
	s.setPace(&s.client, cfg.PaceDown)
	s.sendFirst(cfg)
	*cfg = Config{}
	configs.Put(cfg)
	s.move()
}

// move moves what can be moved in both directions, and ends the session if both are done.
func (s *loopStream) move() {
	more := s.pump(&s.client, &s.upstream, &s.up)
	more = s.pump(&s.upstream, &s.client, &s.down) || more
	if s.client.gone && !s.client.eof {
		// A write to the client has failed. What the client had sent before is still to be passed on.
		more = s.pump(&s.client, &s.upstream, &s.up) || more
	}
	s.settle()
	if more && s.phase == phaseOpen && !s.queued {
		s.queue()
	}
}

// pump moves bytes from src to dst until there is nothing to read, dst is full, or a quantum has been moved. In the last
// case it reports that there may be more.
func (s *loopStream) pump(src, dst *half, moved *atomic.Int64) (more bool) {
	quantum := s.loop.quantum()
	for budget := quantum; budget > 0; {
		if !s.flush(dst, moved) || dst.gone {
			return false
		}
		if src.eof {
			s.passFIN(src, dst)
			return false
		}
		if !src.readable || dst.pauses() {
			return false
		}
		if src.bulk {
			budget -= s.spliceIn(src, dst, quantum)
		} else {
			dst.releasePipe() // of a stream that was bulk before
			budget -= s.copy(src, dst, moved)
		}
	}
	return true
}

// passFIN passes the FIN of src on to dst.
func (s *loopStream) passFIN(src, dst *half) {
	if src.gone || dst.finished {
		return
	}
	dst.finished = true
	if !src.finished { // else settle closes both, which sends the FIN
		shutdownFD(dst.fd)
	}
	if s.firstFIN == "" {
		s.firstFIN = UpstreamFIN
		if src == &s.client {
			s.firstFIN = ClientFIN
		}
		s.first.givesUp(s.firstFIN, s.age())
		s.touch(s.age())
		s.setTimer()
	}
}

// settle ends the session when both directions are done.
func (s *loopStream) settle() {
	client, upstream := &s.client, &s.upstream
	switch {
	case client.gone && upstream.gone:
		s.end()
	case client.gone:
		s.passReset(client, upstream)
	case upstream.gone:
		s.passReset(upstream, client)
	case client.finished && upstream.finished:
		s.setReason(s.firstFIN)
		s.end()
	}
}

// passReset resets other once it has acknowledged everything that the reset side had sent: a RST discards what is still
// in the send queue.
func (s *loopStream) passReset(gone, other *half) {
	switch {
	case !gone.eof || other.waits():
		return // there is more to read, or other has to take what was read
	case queuedFD(other.fd) > 0:
		s.loop.wheel.set(&s.timer, s.loop.now) // no event tells when the queue is empty: look again
		return
	}
	resetOnClose(other.fd)
	s.end()
}

func (s *loopStream) checkLimits() {
	if age, reason := s.expires(s.phase == phaseOpen, s.firstFIN != ""); age <= s.age() {
		s.close(reason)
		return
	}
	if s.leaving && s.phase != phaseOpen && s.age() >= goneAfter {
		s.close(ClientFIN)
		return
	}
	switch s.phase {
	case phaseConnecting:
		s.checkAttempts()
		return
	case phaseOpen:
		s.first.tellLate(s.age())
		s.guard()
	}
	s.setTimer()
	if s.phase == phaseOpen {
		s.settle() // a reset may wait for the send queue
	}
}

// setTimer sets the timer for the next time limit.
func (s *loopStream) setTimer() {
	age, _ := s.expires(s.phase == phaseOpen, s.firstFIN != "")
	if s.first != nil && s.phase == phaseOpen {
		age = min(age, s.first.lateAt())
	}
	due := later(s.opened, age)
	if s.phase == phaseConnecting {
		due = min(due, s.attemptsDue())
	}
	if s.leaving && s.phase != phaseOpen && s.reason == "" {
		due = min(due, s.opened+goneAfter)
	}
	s.loop.wheel.set(&s.timer, due)
}

func (s *loopStream) end() {
	s.discard(&s.client)
	s.discard(&s.upstream)
	s.dropRival()
	s.leave()
}

// discard closes a socket, and drops what could not be sent to it.
func (s *loopStream) discard(h *half) {
	if h.stream == nil {
		return // never connected
	}
	s.loop.unwatch(h.slot)
	h.dropLeft()
	h.dropPace()
	h.releasePipe()
	if s.tracked != nil && h == &s.upstream {
		s.tracked.Closed()
		s.tracked = nil
	}
	closeFD(h.fd)
	*h = half{}
}
