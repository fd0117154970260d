package relay

import (
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// dial asks Next until an address can be used or Next returns an error. To connect a socket for datagrams sends nothing.
func (g *goroutinePackets) dial(failed error) (*packetSocket, error) {
	for {
		addr, err := g.cfg.Next(g.ctx, failed)
		if err != nil {
			return nil, err
		}
		var conn *packetSocket
		if conn, failed = g.dialAddr(addr); failed == nil {
			return conn, nil
		}
		if g.ctx.Err() == nil {
			attemptFunc(g.cfg.Attempt).report(addr, 0, failed)
		}
	}
}

// dialAddr opens a socket. Where the process has no descriptor left, or the system no port, it waits for one, for up to Limits.Connect.
func (g *goroutinePackets) dialAddr(addr net.Addr) (*packetSocket, error) {
	to, ok := addr.(*net.UDPAddr)
	if !ok {
		return nil, &net.AddrError{Err: "unexpected address", Addr: addr.String()}
	}
	pause, limit, rooms, woken := shortagePauseMin, g.cfg.Limits.Connect, 0, false
	for start := time.Now(); ; pause = min(pause*2, shortagePauseMax) {
		var conn *packetSocket
		tries := woken || !ports.areOut() // else others have just found no port
		err := error(&LocalError{NoPort: true, Err: syscall.EAGAIN})
		if tries {
			conn, err = g.openSocket(to)
		}
		if err == nil || !isShortage(err) || (limit > 0 && time.Since(start) > limit) {
			return conn, err
		}
		switch {
		case !isNoPort(err):
			select {
			case <-time.After(pause):
			case <-g.ctx.Done():
			}
		case g.upstream() != nil:
			return nil, err // the session keeps the socket that it has
		default:
			if tries {
				ports.noteOut()
			}
			woken = g.awaitPort(&rooms)
		}
		if g.ctx.Err() != nil {
			return nil, err
		}
	}
}

// awaitPort waits until a socket is closed somewhere, or for portRetry, and has the network end a session that is worth less.
func (g *goroutinePackets) awaitPort(rooms *int) (woken bool) {
	freed := make(chan struct{})
	w := ports.add(func() { close(freed) })
	if client, ok := g.cfg.Client.(RoomMaker); ok && *rooms < portRooms {
		*rooms++
		client.MakeRoom()
	}
	select {
	case <-freed:
		if g.ctx.Err() != nil {
			ports.freed() // somebody else needs it
		}
		return true
	case <-time.After(portRetry):
	case <-g.ctx.Done():
	}
	if !ports.remove(w) {
		ports.freed()
	}
	return false
}

// packetSocket is a socket that is connected to an upstream.
type packetSocket struct {
	*net.UDPConn
	addr     *net.UDPAddr
	openedAt time.Duration // the age of the relay
	works    atomic.Bool   // Attempt knows that it does
	untrack  func()
}

func (g *goroutinePackets) openSocket(addr *net.UDPAddr) (*packetSocket, error) {
	tracked, untrack := trackConnecting(g.cfg.Track, addr), func() {}
	if tracked != nil {
		untrack = sync.OnceFunc(tracked.Closed)
	}
	if !addr.IP.IsLoopback() {
		watchAddresses()
	}
	var conn *net.UDPConn
	err := g.cfg.Local.connect(addr, func(source netip.Addr) (err error) {
		var from *net.UDPAddr
		if source.IsValid() {
			from = net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
		}
		conn, err = net.DialUDP("udp", from, addr)
		return localErrorOf(err, true, source)
	})
	if err != nil {
		untrack()
		return nil, err
	}
	if tracked != nil {
		local, _ := addrPort(conn.LocalAddr())
		tracked.Connected(local)
	}
	return &packetSocket{UDPConn: conn, addr: addr, openedAt: g.age(), untrack: untrack}, nil
}

// send returns 0 where the datagram was sent, EBADF where the socket is closed.
func (s *packetSocket) send(b []byte) syscall.Errno {
	_, err := s.Write(b)
	if errno := errnoOf(err); err == nil || errno != 0 {
		return errno
	}
	return syscall.EBADF
}

// sameSource reports whether both sockets send from the same address.
func (s *packetSocket) sameSource(other *packetSocket) bool {
	own, _ := addrPort(s.LocalAddr())
	others, _ := addrPort(other.LocalAddr())
	return own.Addr() == others.Addr()
}

func (s *packetSocket) largestWhole() int {
	raw, err := s.SyscallConn()
	if err != nil {
		return math.MaxInt
	}
	return largestWholeOf(raw)
}

// Close may be called more than once.
func (s *packetSocket) Close() error {
	s.untrack()
	err := s.UDPConn.Close()
	ports.freed()
	return err
}

// use makes conn the upstream, and closes the one before. Where the relay was cut in the meantime it closes conn and
// reports false.
func (g *goroutinePackets) use(conn *packetSocket) bool {
	g.state.Lock()
	former := g.state.upstream
	cut := g.state.reason != ""
	if cut {
		former = conn
	} else {
		g.state.upstream, g.state.nextAsk = conn, g.age()+askInterval
	}
	g.state.Unlock()
	if former != nil {
		_ = former.Close()
	}
	return !cut
}

func (g *goroutinePackets) upstream() *packetSocket {
	g.state.Lock()
	defer g.state.Unlock()
	return g.state.upstream
}

// refused notes that the upstream refuses datagrams. It is called with g.sending locked.
func (g *goroutinePackets) refused(errno syscall.Errno) {
	if !g.sending.held.refused() {
		g.drop(DropUpstreamRefused)
	}
	g.note(troubleRefused, errno)
}

// note has Next asked because of trouble with the upstream: now, or when askInterval has passed. It is called with g.sending locked.
func (g *goroutinePackets) note(t trouble, errno syscall.Errno) {
	if t <= g.sending.trouble {
		return
	}
	asking := g.sending.trouble != troubleNone
	g.sending.trouble, g.sending.errno = t, errno
	g.state.Lock()
	defer g.state.Unlock()
	if asking || g.state.reason != "" {
		return
	}
	pause, target := g.state.nextAsk-g.age(), g.state.upstream.addr
	now := pause <= 0
	if t == troubleRefused {
		now = g.sending.held.asks(target, g.age(), now)
	}
	if now {
		g.asks.Go(g.ask)
		return
	}
	g.asks.Go(func() {
		select {
		case <-time.After(pause):
			g.sending.Lock()
			g.sending.held.asks(target, g.age(), true)
			g.sending.Unlock()
			g.ask()
		case <-g.ctx.Done():
		}
	})
}

// ask asks Next, and sends to a new upstream what is held.
func (g *goroutinePackets) ask() {
	former := g.upstream()
	g.sending.Lock()
	lost := g.sending.trouble.lost(former.addr, g.sending.errno)
	g.sending.Unlock()
	if lost.Refused {
		former.works.Store(false)
		attemptFunc(g.cfg.Attempt).report(former.addr, g.age()-former.openedAt, lost.Err)
	}
	conn, err := g.dial(lost)
	g.sending.Lock()
	defer g.sending.Unlock()
	g.state.Lock()
	g.state.nextAsk = g.age() + askInterval
	g.state.Unlock()
	s := &g.sending
	replaces := err == nil && (s.trouble == troubleStale || !sameAddr(conn.addr, former.addr) ||
		s.trouble == troubleSilent && s.moved && !g.cfg.Local.fixed() && !conn.sameSource(former))
	s.trouble = troubleNone
	if replaces {
		s.moved, s.addresses = false, ownAddresses.Load()
		if g.use(conn) {
			g.resend(conn)
		}
		return
	}
	if err == nil {
		_ = conn.Close()
	}
	g.dropRefused(s.held.giveUp())
	for range s.waiting.take() {
		g.drop(DropSendFailed)
	}
}
