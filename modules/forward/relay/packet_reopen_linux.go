package relay

import "net"

// reconnect replaces the upstream of a session that has one already, or only its socket. It keeps both where the address is the
// same and nothing is wrong with the socket.
func (s *loopPackets) reconnect(to *net.UDPAddr) {
	s.mu.Lock()
	trouble, moved := s.trouble, s.moved
	s.mu.Unlock()
	open := s.open
	if sameAddr(to, s.target) {
		switch {
		case trouble == troubleSilent && moved && !s.cfg.Local.fixed():
			open = s.openIfMoved
		case trouble != troubleStale:
			open = s.keep
		}
	}
	err := open(to)
	switch {
	case isNoPort(err) && trouble == troubleStale:
		s.closeUpstream() // gives its port back, and is of no use
		s.target = to
		s.startConnecting(s.cfg.Limits.Connect)
		s.tryConnect()
	case err != nil:
		s.redial(to, err)
	default:
		s.target = to
		s.dialled()
	}
}

// keep goes on with the socket that there is.
func (s *loopPackets) keep(*net.UDPAddr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropRefused(s.held.giveUp())
	for range s.waiting.take() {
		s.drop(DropSendFailed)
	}
	s.trouble = troubleNone
	return nil
}

// openIfMoved is open, unless the system would connect to addr from the same address as before.
func (s *loopPackets) openIfMoved(addr *net.UDPAddr) error {
	fd, err := connectPackets(s.cfg.Local, addr)
	if err != nil {
		return err
	}
	same := localAddr(fd).Addr() == localAddr(s.fd).Addr()
	closeFD(fd)
	ports.freed()
	if !same {
		return s.open(addr)
	}
	s.mu.Lock()
	s.moved = false
	s.mu.Unlock()
	return s.keep(addr)
}

// awaitPort waits until a socket is closed somewhere, and has the network end a session that is worth less.
func (s *loopPackets) awaitPort() {
	s.port = ports.add(func() { s.loop.post(message{to: s, what: orderPort}) })
	if client, ok := s.client.(RoomMaker); ok && s.rooms < portRooms {
		s.rooms++
		go client.MakeRoom()
	}
	s.loop.wheel.set(&s.timer, min(s.loop.now+portRetry, s.connectBy))
}

// forgetPort ends the waiting for a port.
func (s *loopPackets) forgetPort() {
	if s.port != nil {
		ports.remove(s.port)
		s.port = nil
	}
}

// portFreed is called when a socket was closed for this session.
func (s *loopPackets) portFreed() {
	if s.phase != phaseConnecting || s.port == nil {
		ports.freed() // somebody else needs it
		return
	}
	s.tryConnect()
}
