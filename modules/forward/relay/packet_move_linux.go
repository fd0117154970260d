package relay

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// The quantum of replies: a session moves no more datagrams than this in a round, and little more than these bytes.
const (
	quantumReplies    = 32
	quantumReplyBytes = 256 << 10
)

// receive is called by the network with each datagram of the client.
func (s *loopPackets) receive(b []byte) (taken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return false
	}
	if silent := s.received(len(b)); s.admitsUp(len(b)) {
		if s.fd >= 0 {
			s.lookAround(silent)
		}
		s.passUp(b)
	}
	return true
}

// lookAround finds trouble of which no error tells. It is called with s.mu locked.
func (s *loopPackets) lookAround(silent bool) {
	if now := ownAddresses.Load(); now != s.addresses {
		s.addresses, s.moved = now, true
		if now.lost(localAddr(s.fd).Addr()) {
			s.note(troubleStale, 0)
		}
	}
	if silent && (s.cfg.Named || s.moved) {
		s.note(troubleSilent, 0)
	}
}

// passUp sends a datagram, or keeps it until there is a socket that is of use. It is called with s.mu locked.
func (s *loopPackets) passUp(b []byte) {
	switch {
	case s.fd >= 0 && s.trouble != troubleStale:
		s.sendUp(b)
	case !s.waiting.add(b):
		s.drop(DropQueueFull)
	}
}

// sendUp sends a datagram to the upstream. It is called with s.mu locked.
func (s *loopPackets) sendUp(b []byte) {
	errno := s.write(b)
	if errno != 0 {
		var reported syscall.Errno
		if reported, errno = s.sendAgain(b, errno); reported != 0 {
			s.reported(reported)
		}
	}
	switch ownEffect(errno) {
	case effectNone:
		s.sentUp(len(b))
		s.hold(b)
	case effectRefused:
		if !s.answered { // as if the refusal had come a moment later
			s.sentUp(len(b))
			s.hold(b)
		}
		s.refusedUp(errno)
	case effectStale:
		s.note(troubleStale, errno)
		s.passUp(b)
	case effectFull:
		s.drop(DropUpstreamFull)
	default:
		s.drop(DropSendFailed)
	}
}

// sendAgain is what follows a send that has failed, see sendTwice.
func (s *loopPackets) sendAgain(b []byte, first syscall.Errno) (reported, own syscall.Errno) {
	return sendTwice(first, func() syscall.Errno { return s.write(b) })
}

// write sends a datagram once. It is called with s.mu locked.
func (s *loopPackets) write(b []byte) syscall.Errno {
	if s.cfg.Preface == nil {
		_, errno := sendFD(s.fd, b)
		return errno
	}
	return s.preface.send(s.cfg.Preface, b, func(b []byte) syscall.Errno {
		_, errno := sendFD(s.fd, b)
		return errno
	})
}

// reported takes an error that the network has reported. It is called with s.mu locked.
func (s *loopPackets) reported(errno syscall.Errno) {
	switch reportedEffect(errno) {
	case effectRefused:
		s.refusedUp(errno)
	case effectStale:
		s.note(troubleStale, errno)
	case effectTooLarge:
		s.resendLarge()
	}
}

// refusedUp notes that the upstream refuses datagrams. It is called with s.mu locked.
func (s *loopPackets) refusedUp(errno syscall.Errno) {
	if !s.held.refused() {
		s.drop(DropUpstreamRefused)
	}
	s.note(troubleRefused, errno)
}

// note tells the loop of trouble, once. It is called with s.mu locked.
func (s *loopPackets) note(t trouble, errno syscall.Errno) {
	if t <= s.trouble {
		return
	}
	told := s.trouble != troubleNone
	s.trouble, s.errno = t, errno
	if !told {
		s.loop.post(message{to: s, what: orderAsk})
	}
}

// hold keeps a datagram that may have to be sent to another upstream. It is called with s.mu locked.
func (s *loopPackets) hold(b []byte) {
	if !s.answered {
		s.held = s.held.orNew()
		s.dropRefused(s.held.add(b, s.preface.last, s.activeAt()))
	}
}

// resend sends to a new upstream what the former one has refused. It is called with s.mu locked.
func (s *loopPackets) resend() {
	if s.held != nil {
		s.dropRefused(s.held.resend(s.age(), s.sendHeld))
	}
}

// resendLarge sends again what the way to the upstream did not take: the system sends it in fragments now. What is not kept any more is
// lost. It is called with s.mu locked.
func (s *loopPackets) resendLarge() {
	resend := func(b []byte, prefaced bool) {
		s.preface.repeat(prefaced)
		s.sendHeld(b)
	}
	if !s.held.resendLarge(s.PacketRelay.age(), largestWhole(s.fd), s.cfg.Preface, resend) {
		s.drop(DropSendFailed)
	}
}

func (s *loopPackets) sendHeld(b []byte) (prefaced bool) {
	switch errno := s.write(b); {
	case errno == 0:
	case reportedEffect(errno) == effectRefused:
		s.refusedUp(errno)
	default:
		s.drop(DropUpstreamFull)
	}
	return s.preface.last
}

// worked notes that the upstream has sent a reply.
func (s *loopPackets) worked() {
	s.works = true
	attemptFunc(s.cfg.Attempt).report(s.target, s.loop.now-s.connectAt, nil)
	s.mu.Lock()
	s.answered = true
	s.held = s.held.release()
	s.mu.Unlock()
}

// onEvents is called when there are replies to read.
func (s *loopPackets) onEvents(_, generation uint32) {
	if generation != s.generation {
		return // for a socket that is closed
	}
	s.readable = true
	s.loop.current = s
	s.loop.sharedAt = s.loop.now
	if !s.queued { // else serveReady serves it; to serve it here too would be two quanta in a round
		s.readReplies()
	}
}

// serve reads the next quantum of replies.
func (s *loopPackets) serve() {
	s.queued = false
	if s.phase == phaseOpen {
		s.readReplies()
	}
}

// readReplies reads what there is, at most a quantum.
func (s *loopPackets) readReplies() {
	l := s.loop
	if l.replies == nil {
		l.replies = newReplies()
	}
	r, datagrams, size := l.replies, 0, 0
	for failures := 0; s.readable; {
		if datagrams >= quantumReplies || size >= quantumReplyBytes {
			s.queue()
			return
		}
		most := min(quantumReplies-datagrams, s.mayHave(), repliesMax-r.count)
		if most == 0 {
			r.send() // makes room; with the last reply of MaxReplies it ends the session
			if s.phase != phaseOpen {
				return
			}
			continue
		}
		n, errno := r.read(s.fd, most)
		if n < most {
			s.readable = false
		}
		switch {
		case errno == unix.EAGAIN:
		case errno != 0:
			s.reportedDown(errno)
			failures++
			s.readable = failures < 2 // there may be datagrams after the error
		default:
			datagrams += n
			size += s.take(n)
			if n > 0 {
				s.heard()
			}
			if n > 0 && !s.works {
				s.worked()
			}
		}
	}
}

// reportedDown is reported for the loop, which has read the error.
func (s *loopPackets) reportedDown(errno syscall.Errno) {
	s.mu.Lock()
	s.preface.reported(errno)
	s.reported(errno)
	s.mu.Unlock()
	s.askAgain()
}

// mayHave is how many more replies may be read, given MaxReplies and those that are still to be sent.
func (s *loopPackets) mayHave() int {
	return int(min(s.repliesLeft()-int64(s.pending), quantumReplies))
}

// take makes the next n datagrams in the loop's replies those of this session. It returns their size.
func (s *loopPackets) take(n int) (size int) {
	r := s.loop.replies
	for i := r.count; i < r.count+n; i++ {
		size += r.size(i)
		r.sessions[i] = nil
		if !s.admitsDown(r.size(i)) {
			continue
		}
		r.sessions[i] = s
		s.pending++
		if s.answers() {
			s.client.Answered()
		}
	}
	r.count += n
	return size
}

// replied notes that a reply was sent.
func (s *loopPackets) replied(size int) {
	s.pending--
	s.sentDown(size)
	if s.cfg.MaxReplies > 0 && s.wasLast() {
		s.close(MaxReplies)
	}
}

// wasLast reports whether the reply that was sent is the last one. A datagram that the client sends at that moment is
// taken either by this session, which then waits for its reply, or by the next one.
func (s *loopPackets) wasLast() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut = s.repliesLeft() <= 0
	return s.shut
}

// unsent notes that a reply could not be sent.
func (s *loopPackets) unsent() {
	s.pending--
	s.drop(DropSendFailed)
}
