package relay

import "syscall"

// Preface is what the upstream of a session of datagrams is told of the client, such as a header of the PROXY protocol. It is sent in
// the same datagram as what the client has sent, in front of it. A datagram that is too large with it is dropped (DropSendFailed). It is
// not the client's: neither PacketStats nor AllowUp count it.
type Preface struct {
	Header []byte

	// Each: it is in front of each datagram. Else it is in front of the first one that a socket sends, and again of the next one
	// after the upstream has refused datagrams, because what listens there then does not know the session.
	Each bool
}

// choosePreface is called for the socket to another upstream, with the lock held that sends.
func (c *PacketConfig) choosePreface() {
	if c.PrefaceOf != nil {
		c.Preface = c.PrefaceOf()
	}
}

// prefaceState is what is known of the Preface of a socket to an upstream.
type prefaceState struct {
	known bool // the upstream has it
	last  bool // the last datagram was sent behind it
}

// send sends b, behind the Preface where that is to be.
func (s *prefaceState) send(p *Preface, b []byte, send func([]byte) syscall.Errno) (errno syscall.Errno) {
	if s.last = p.Each || !s.known; !s.last {
		errno = send(b)
	} else if buf := borrowPacket(); len(p.Header)+len(b) > len(buf) {
		giveBackPacket(buf)
		return syscall.EMSGSIZE
	} else {
		n := copy(buf[:], p.Header)
		errno = send(buf[:n+copy(buf[n:], b)])
		giveBackPacket(buf)
	}
	if errno == 0 {
		s.known = true
	} else {
		s.reported(errno)
	}
	return errno
}

// reported takes an error that the network may have reported: an upstream that refuses datagrams has lost what it was told.
func (s *prefaceState) reported(errno syscall.Errno) {
	if reportedEffect(errno) == effectRefused {
		s.known = false
	}
}

// repeat is called before a datagram is sent again that was lost on the way. prefaced tells whether that had the Preface.
func (s *prefaceState) repeat(prefaced bool) { s.known = s.known && !prefaced }
