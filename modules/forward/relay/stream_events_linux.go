package relay

import (
	"fmt"

	"golang.org/x/sys/unix"
)

func (s *loopStream) title() fmt.Stringer { return s.name }

func (*loopStream) inbox() int { return inboxStreams }

func (s *loopStream) report() {
	s.first.tell(s.Relay.age(), s.reason)
	s.done(s.reason, s.failed)
}

func (s *loopStream) handle(m *message) {
	if m.what == orderWait {
		s.wait()
		return
	}
	m.obey(s)
}

// broken are the events that epoll reports without being asked, of a socket that is closed in both directions.
const broken = unix.EPOLLHUP | unix.EPOLLERR

// onEvents notes what can be done with the socket, and then does it or queues the session.
func (h *half) onEvents(events, generation uint32) {
	if h.generation != generation {
		return // the socket was closed in this round
	}
	h.note(events)
	s := h.stream
	s.loop.current = s
	bulk := s.client.bulk || s.upstream.bulk
	if !bulk {
		s.loop.sharedAt = s.loop.now
	}
	if events&unix.EPOLLERR != 0 {
		h.erred = true
		if h.eof && !h.gone {
			s.lost(h) // a reset after the FIN, which no read reports
		}
	}
	switch {
	case s.queued: // serveReady serves it; to serve it here too would be two quanta in a round
	case s.phase == phaseConnecting && h == &s.upstream && h.writable:
		s.connected()
	case s.phase != phaseOpen && h == &s.client:
		s.leaves(events)
	case bulk:
		s.queue() // sessions that want little are served first
	default:
		s.serve()
	}
}

// note notes what can be done with the socket.
func (h *half) note(events uint32) {
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|broken) != 0 {
		h.readable = true
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLPRI|broken) != 0 {
		h.ending = true
	}
	if events&(unix.EPOLLOUT|broken) != 0 {
		h.writable = true
	}
}
