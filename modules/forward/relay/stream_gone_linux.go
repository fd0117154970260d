package relay

import "golang.org/x/sys/unix"

// clientWaits implements [Relay.ClientWaits].
func (s *loopStream) clientWaits() { s.loop.post(message{to: s, what: orderWait}) }

// wait has a client that leaves noticed while Next waits.
func (s *loopStream) wait() {
	if s.phase == phaseOpen || s.phase == phaseOver {
		return
	}
	s.waiting = true
	_ = s.watchClient() // else it is missed when there is an upstream
	if s.leaving && s.reason == "" {
		s.close(ClientFIN)
	}
}

// watchClient watches the client's socket, if the loop does not yet.
func (s *loopStream) watchClient() (err error) {
	if s.client.slot > 0 {
		return nil
	}
	s.client.generation = generations.Add(1)
	s.client.slot, err = s.loop.watch(s.client.fd, &s.client, streamEvents, s.client.generation)
	return err
}

// leaves looks whether the client of a stream that has no upstream yet has left, see goneAfter.
func (s *loopStream) leaves(events uint32) {
	switch {
	case s.reason != "":
	case events&unix.EPOLLERR != 0:
		s.close(ClientReset)
	case events&(unix.EPOLLRDHUP|unix.EPOLLHUP) == 0 || s.leaving || len(s.cfg.Prefetched) > 0 || hasSent(s.client.fd):
	case s.waiting || s.age() >= goneAfter:
		s.close(ClientFIN)
	default:
		s.leaving = true
		s.setTimer()
	}
}

// hasSent reports whether there is something to read in front of a FIN.
func hasSent(fd int) bool {
	var b [1]byte
	n, _, _ := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return n > 0
}
