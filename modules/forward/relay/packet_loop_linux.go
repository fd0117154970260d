package relay

import (
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// loopPackets is a session of datagrams that an event loop serves. The loop moves the replies. The goroutine in which the
// network receives the client's datagrams sends them to the upstream itself, see receive.
type loopPackets struct {
	*PacketRelay
	loopState
	client PacketClient

	// The client's ReplyPath.
	replyFD       int
	peer, control []byte

	mu        sync.Mutex
	fd        int           // the upstream's socket, -1 where there is none; only the loop sets it
	shut      bool          // the session ends: what the client sends from now on is for another session
	answered  bool          // an upstream has sent a reply
	moved     bool          // addresses of this machine have changed since the socket was opened
	trouble   trouble       // the loop has been told of it
	preface   prefaceState  // of the socket
	errno     syscall.Errno // that has made the trouble; 0 where none has
	addresses *addressBook  // of this machine, as of the last datagram of the client
	held      *held         // nil where nothing is
	waiting   backlog       // until there is a socket that is of use

	// The fields below belong to the loop's goroutine.

	ask        ask
	readable   bool // there may be replies to read: no read has returned EAGAIN since the last event
	works      bool // Attempt knows that the upstream does
	slot       int32
	generation uint32
	pending    int32 // replies of this session in loop.replies
	rooms      int32 // how often others have made room
	target     *net.UDPAddr
	tracked    TrackedSocket // the upstream's socket; nil where it is not tracked
	nextAsk    time.Duration
	port       *portWaiter // while there is no port for the first socket
}

// ask is whether Next has to be asked again because of trouble with the upstream.
type ask uint8

const (
	askNothing ask = iota
	askSoon        // at nextAsk
	askNow         // dial is running
)

// runLoop hands the relay to an event loop. It reports false where the client is no PacketClient.
func (r *PacketRelay) runLoop() bool {
	client, ok := r.cfg.Client.(PacketClient)
	if !ok {
		return false
	}
	l := pickLoop()
	if l == nil {
		return false
	}
	s := &loopPackets{PacketRelay: r, loopState: loopState{loop: l, opened: r.start.Sub(epoch)}, client: client, fd: -1}
	s.timer.of = s
	ctx := s.dialContext()
	if !client.Attach(s.receive, s.clientClosed) {
		s.cancel()
		go func() { // Done may block, and the caller of Start may not
			r.done(Evicted, nil)
			_ = client.Close()
		}()
		return true
	}
	client.ServedBy(r)
	s.replyFD, s.peer, s.control = client.ReplyPath()
	if reason := r.begin(s); reason != "" {
		s.cut(reason)
	}
	if r.cfg.Limits.Lifetime > 0 {
		l.post(message{to: s, what: orderTime}) // it may pass while Next blocks
	}
	s.dial(ctx, r.cfg.Next, nil)
	return true
}

// clientClosed is called when the network ends the session.
func (s *loopPackets) clientClosed(reason string) { s.cut(Reason(reason)) }

func (s *loopPackets) handle(m *message) {
	switch m.what {
	case orderAsk:
		s.askAgain()
	case orderPort:
		s.portFreed()
	default:
		m.obey(s)
	}
}

func (s *loopPackets) title() fmt.Stringer { return s.cfg.Name }

func (*loopPackets) inbox() int { return inboxPackets }

func (s *loopPackets) report() {
	s.done(s.reason, s.failed)
	_ = s.client.Close()
}

// connectTo makes addr the upstream.
func (s *loopPackets) connectTo(addr net.Addr) {
	switch {
	case s.phase == phaseOver:
		return // it ended while Next was asked again
	case s.reason != "":
		s.end()
		return
	}
	to, ok := addr.(*net.UDPAddr)
	if !ok {
		s.redial(addr, &net.AddrError{Err: "unexpected address", Addr: addr.String()})
		return
	}
	if s.phase == phaseOpen {
		s.reconnect(to)
		return
	}
	s.target = to
	s.startConnecting(s.cfg.Limits.Connect)
	s.tryConnect()
}

// tryConnect opens the first socket. Where the process has no descriptor left it is tried again with every tick of the wheel.
func (s *loopPackets) tryConnect() {
	if s.port == nil && ports.areOut() && s.loop.now < s.connectBy {
		s.awaitPort()
		return
	}
	s.forgetPort()
	err := s.open(s.target)
	switch {
	case isNoPort(err):
		ports.noteOut()
		if s.loop.now < s.connectBy {
			s.awaitPort()
			return
		}
		s.fail(dialError(s.target, err))
	case isShortage(err) && s.loop.now < s.connectBy:
		s.loop.wheel.set(&s.timer, s.loop.now)
	case err != nil:
		s.phase = phaseDialing
		s.redial(s.target, err)
	default:
		s.phase = phaseOpen
		s.connect = s.age()
		s.touch(s.connect &^ towardsClient) // the client's first datagram is answered later
		s.dialled()
	}
}

// open connects a socket to addr and closes the one before. It sends what has waited.
func (s *loopPackets) open(addr *net.UDPAddr) error {
	tracked := trackConnecting(s.cfg.Track, addr)
	fd, err := connectPackets(s.cfg.Local, addr)
	if err != nil {
		if tracked != nil {
			tracked.Closed()
		}
		return err
	}
	generation := generations.Add(1)
	slot, err := s.loop.watch(fd, s, packetEvents, generation)
	if err != nil {
		if tracked != nil {
			tracked.Closed()
		}
		closeFD(fd)
		return err
	}
	s.closeUpstream()
	if s.tracked = tracked; tracked != nil {
		tracked.Connected(localAddr(fd))
	}
	s.connectAt, s.works = s.loop.now, false
	s.slot, s.generation = slot, generation
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fd, s.trouble, s.moved, s.addresses, s.preface = fd, troubleNone, false, ownAddresses.Load(), prefaceState{}
	s.cfg.choosePreface()
	s.resend()
	for _, b := range s.waiting.take() {
		s.passUp(b)
	}
	return nil
}

func (s *loopPackets) closeUpstream() {
	s.mu.Lock()
	fd := s.fd
	s.fd = -1
	s.mu.Unlock()
	if fd < 0 {
		return
	}
	s.loop.unwatch(s.slot)
	s.slot = 0
	if s.tracked != nil {
		s.tracked.Closed()
		s.tracked = nil
	}
	closeFD(fd)
	ports.freed()
}

// redial asks Next for another address because this one can't be used.
func (s *loopPackets) redial(addr net.Addr, failed error) {
	s.cancel()
	ctx := s.dialContext()
	s.setTimer()
	failed = dialError(addr, failed)
	attemptFunc(s.cfg.Attempt).report(addr, 0, failed)
	go s.dial(ctx, s.cfg.Next, failed)
}

// dialled notes that Next has been asked, and that it may be asked again after askInterval.
func (s *loopPackets) dialled() {
	s.cancel()
	s.cancel = nil
	s.ask = askNothing
	s.nextAsk = s.loop.now + askInterval
	s.setTimer()
}

// askAgain asks Next again because of trouble with the upstream: now, or when askInterval has passed.
func (s *loopPackets) askAgain() {
	switch {
	case s.phase != phaseOpen || s.ask == askNow || !s.isTroubled():
	case !s.asks():
		s.ask = askSoon
		s.setTimer()
	default:
		s.ask = askNow
		s.mu.Lock()
		lost := s.trouble.lost(s.target, s.errno)
		s.mu.Unlock()
		if lost.Refused {
			s.works = false
			attemptFunc(s.cfg.Attempt).report(s.target, s.loop.now-s.connectAt, lost.Err)
		}
		go s.dial(s.dialContext(), s.cfg.Next, lost)
	}
}

func (s *loopPackets) isTroubled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trouble != troubleNone
}

// asks reports whether Next is to be asked now.
func (s *loopPackets) asks() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := s.loop.now >= s.nextAsk
	if s.trouble == troubleRefused {
		return s.held.asks(s.target, s.age(), due)
	}
	return due
}

// fail is called when Next has returned an error.
func (s *loopPackets) fail(err error) {
	switch s.phase {
	case phaseOver:
	case phaseOpen:
		_ = s.keep(s.target)
		s.dialled()
	default:
		s.failed = err
		s.setReason(connectReason(err))
		s.connect = s.age()
		s.end()
	}
}

func (s *loopPackets) checkLimits() {
	if age, reason := s.expires(s.phase == phaseOpen); age <= s.age() {
		s.close(reason)
		return
	}
	switch {
	case s.phase == phaseConnecting && s.port != nil && ports.areOut() && s.loop.now < s.connectBy:
		s.loop.wheel.set(&s.timer, min(s.loop.now+portRetry, s.connectBy))
		return
	case s.phase == phaseConnecting:
		s.tryConnect() // there was no descriptor, or no port
		return
	case s.ask == askSoon && s.loop.now >= s.nextAsk:
		s.askAgain()
	}
	s.setTimer()
}

// setTimer sets the timer for the next time limit, or for askAgain.
func (s *loopPackets) setTimer() {
	age, _ := s.expires(s.phase == phaseOpen)
	due := later(s.opened, age)
	if s.ask == askSoon {
		due = min(due, s.nextAsk)
	}
	s.loop.wheel.set(&s.timer, due)
}

func (s *loopPackets) end() {
	s.mu.Lock()
	s.shut, s.waiting = true, backlog{}
	s.dropRefused(s.held.giveUp())
	s.held = s.held.release()
	s.mu.Unlock()
	s.forgetPort()
	s.closeUpstream()
	s.leave()
}
