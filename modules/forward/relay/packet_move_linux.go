package relay

import "golang.org/x/sys/unix"

// How many datagrams a session keeps until there is a socket to the upstream, and how many bytes of them. The network keeps
// as much of a session that nobody reads.
const (
	waitingMax      = 64
	waitingMaxBytes = 128 << 10
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
	s.received(len(b))
	switch {
	case !s.admitsUp(len(b)):
	case s.fd >= 0:
		s.sendUp(b)
	case len(s.waiting) == waitingMax || s.size+len(b) > waitingMaxBytes:
		s.drop(DropQueueFull)
	default:
		s.waiting = append(s.waiting, append(make([]byte, 0, len(b)), b...))
		s.size += len(b)
	}
	return true
}

// sendUp sends a datagram to the upstream. It is called with s.mu locked.
func (s *loopPackets) sendUp(b []byte) {
	_, errno := sendFD(s.fd, b)
	if errno == unix.ECONNREFUSED {
		s.refusedUp() // that is for a datagram sent before; this one was not sent
		_, errno = sendFD(s.fd, b)
	}
	switch {
	case errno == 0:
		s.sentUp(len(b))
		s.hold(b)
	case errno == unix.ECONNREFUSED && !s.answered:
		s.sentUp(len(b)) // as if the refusal had come a moment later
		s.hold(b)
		s.refusedUp()
	case errno == unix.ECONNREFUSED:
		s.refusedUp()
	case errno == unix.EAGAIN || errno == unix.ENOBUFS:
		s.drop(DropUpstreamFull)
	default:
		s.drop(DropSendFailed)
	}
}

// refusedUp tells the loop that the upstream refuses datagrams. It is called with s.mu locked.
func (s *loopPackets) refusedUp() {
	if !s.held.refused() {
		s.drop(DropUpstreamRefused)
	}
	if !s.told {
		s.told = true
		s.loop.post(message{to: s, what: orderAsk})
	}
}

// hold keeps a datagram that may have to be sent to another upstream. It is called with s.mu locked.
func (s *loopPackets) hold(b []byte) {
	if !s.answered {
		s.held = s.held.orNew()
		s.dropRefused(s.held.add(b, s.activeAt()))
	}
}

// resend sends to a new upstream what the former one has refused. It is called with s.mu locked.
func (s *loopPackets) resend() {
	if s.held == nil {
		return
	}
	s.dropRefused(s.held.resend(s.age(), func(b []byte) {
		switch _, errno := sendFD(s.fd, b); errno {
		case 0:
		case unix.ECONNREFUSED:
			s.refusedUp()
		default:
			s.drop(DropUpstreamFull)
		}
	}))
}

// worked notes that the upstream has sent a reply.
func (s *loopPackets) worked() {
	s.works = true
	attemptFunc(s.cfg.Attempt).report(s.target, s.loop.now-s.connectAt, nil)
	s.mu.Lock()
	s.answered = true
	s.held.release()
	s.held = nil
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
			s.refusedDown()
			failures++
			s.readable = failures < 2 // there may be datagrams after the error
		default:
			datagrams += n
			size += s.take(n)
			if n > 0 && !s.works {
				s.worked()
			}
		}
	}
}

// refusedDown is refusedUp for the loop, which has read the refusal.
func (s *loopPackets) refusedDown() {
	s.mu.Lock()
	kept := s.held.refused()
	s.mu.Unlock()
	if !kept {
		s.drop(DropUpstreamRefused)
	}
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
