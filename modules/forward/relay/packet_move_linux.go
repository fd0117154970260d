package relay

import "golang.org/x/sys/unix"

// What waits for the upstream's socket: as much as a network keeps of a session that nobody reads.
const (
	waitingMax      = 64
	waitingMaxBytes = 128 << 10
)

// A session gives way when it has had so many replies in a turn, or so many bytes.
const (
	turnReplies    = 32
	turnReplyBytes = 256 << 10
)

// receive is called with each datagram of the client, by the network.
func (f *packetFlow) receive(b []byte) (taken bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shut {
		return false
	}
	f.received(len(b))
	switch {
	case !f.admitsUp(len(b)):
	case f.fd >= 0:
		f.sendUp(b)
	case len(f.waiting) == waitingMax || f.size+len(b) > waitingMaxBytes:
		f.drop(DropQueueFull)
	default:
		f.waiting = append(f.waiting, append(make([]byte, 0, len(b)), b...))
		f.size += len(b)
	}
	return true
}

// sendUp needs mu.
func (f *packetFlow) sendUp(b []byte) {
	_, errno := sendFD(f.fd, b)
	if errno == unix.ECONNREFUSED {
		f.refusedUp() // one sent before; this one has not been
		_, errno = sendFD(f.fd, b)
	}
	switch errno {
	case 0:
		f.sentUp(len(b))
	case unix.ECONNREFUSED:
		f.refusedUp()
	case unix.EAGAIN, unix.ENOBUFS:
		f.drop(DropUpstreamFull)
	default:
		f.drop(DropSendFailed)
	}
}

// refusedUp needs mu.
func (f *packetFlow) refusedUp() {
	f.drop(DropUpstreamRefused)
	if !f.told {
		f.told = true
		f.loop.post(message{to: f, what: orderAsk})
	}
}

// hear is told by epoll that there is something to read.
func (f *packetFlow) hear(_, generation uint32) {
	if generation != f.generation {
		return // another socket's
	}
	f.readable = true
	f.loop.current = f
	f.loop.waitedAt = f.loop.now
	if !f.queued { // else runReady gives it its turn; more would be at the expense of others
		f.readReplies()
	}
}

// step is its turn again.
func (f *packetFlow) step() {
	f.queued = false
	if f.phase == phaseOpen {
		f.readReplies()
	}
}

// readReplies reads what there is, up to what a session may have in a turn.
func (f *packetFlow) readReplies() {
	l := f.loop
	if l.replies == nil {
		l.replies = newReplies()
	}
	r, datagrams, size := l.replies, 0, 0
	for failures := 0; f.readable; {
		if datagrams >= turnReplies || size >= turnReplyBytes {
			f.queue()
			return
		}
		most := min(turnReplies-datagrams, f.mayHave(), repliesMax-r.count)
		if most == 0 {
			r.send() // makes room, and may end the session
			if f.phase != phaseOpen {
				return
			}
			continue
		}
		n, errno := r.read(f.fd, most)
		if n < most {
			f.readable = false
		}
		switch {
		case errno == unix.EAGAIN:
		case errno != 0:
			f.drop(DropUpstreamRefused)
			f.askAgain()
			failures++
			f.readable = failures < 2 // there may be datagrams behind the error
		default:
			datagrams += n
			size += f.take(n)
		}
	}
}

// mayHave is how many replies can be read without more being sent to the client than it may have.
func (f *packetFlow) mayHave() int {
	return int(min(f.repliesLeft()-int64(f.pending), turnReplies))
}

// take makes the next n datagrams of the loop's replies those of the flow.
func (f *packetFlow) take(n int) (size int) {
	r := f.loop.replies
	for i := r.count; i < r.count+n; i++ {
		size += r.size(i)
		r.flows[i] = nil
		if !f.admitsDown(r.size(i)) {
			continue
		}
		r.flows[i] = f
		f.pending++
		if f.answers() {
			f.client.Answered()
		}
	}
	r.count += n
	return size
}

// replied is told that a reply was sent.
func (f *packetFlow) replied(size int) {
	f.pending--
	f.sentDown(size)
	if f.cfg.MaxReplies > 0 && f.wasLast() {
		f.close(MaxReplies)
	}
}

// wasLast tells whether the reply that was sent is the last one. A datagram that the client sends then is taken either
// by this session, which has its reply to wait for, or by the next one.
func (f *packetFlow) wasLast() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shut = f.repliesLeft() <= 0
	return f.shut
}

// unsent is told that a reply could not be sent.
func (f *packetFlow) unsent() {
	f.pending--
	f.drop(DropSendFailed)
}
