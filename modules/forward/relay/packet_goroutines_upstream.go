package relay

import (
	"net"
	"sync"
	"sync/atomic"
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

// dialAddr opens a socket. Where the process has no descriptor left it waits for one, for up to Limits.Connect.
func (g *goroutinePackets) dialAddr(addr net.Addr) (*packetSocket, error) {
	to, ok := addr.(*net.UDPAddr)
	if !ok {
		return nil, &net.AddrError{Err: "unexpected address", Addr: addr.String()}
	}
	pause, limit := shortagePauseMin, g.cfg.Limits.Connect
	for start := time.Now(); ; pause = min(pause*2, shortagePauseMax) {
		conn, err := g.openSocket(to)
		if err == nil || !isShortage(err) || (limit > 0 && time.Since(start) > limit) {
			return conn, err
		}
		select {
		case <-time.After(pause):
		case <-g.ctx.Done():
			return nil, err
		}
	}
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
	conn, err := net.DialUDP("udp", nil, addr)
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

// Close may be called more than once.
func (s *packetSocket) Close() error {
	s.untrack()
	return s.UDPConn.Close()
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

// refused asks Next for another upstream because this one refuses datagrams: now, or when askInterval has passed. It is
// called with g.sending locked.
func (g *goroutinePackets) refused(err error) {
	if !g.sending.held.refused() {
		g.drop(DropUpstreamRefused)
	}
	g.state.Lock()
	defer g.state.Unlock()
	if g.state.asking || g.state.reason != "" {
		return
	}
	g.state.asking = true
	pause, target := g.state.nextAsk-g.age(), g.state.upstream.addr
	if g.sending.held.asks(target, g.age(), pause <= 0) {
		g.asks.Go(func() { g.ask(err) })
		return
	}
	g.asks.Go(func() {
		select {
		case <-time.After(pause):
			g.sending.Lock()
			g.sending.held.asks(target, g.age(), true)
			g.sending.Unlock()
			g.ask(err)
		case <-g.ctx.Done():
		}
	})
}

// ask asks Next, and sends to a new upstream what is held.
func (g *goroutinePackets) ask(failed error) {
	refuses := g.upstream()
	refuses.works.Store(false)
	attemptFunc(g.cfg.Attempt).report(refuses.addr, g.age()-refuses.openedAt, failed)
	conn, err := g.dial(failed)
	g.sending.Lock()
	defer g.sending.Unlock()
	g.state.Lock()
	g.state.asking, g.state.nextAsk = false, g.age()+askInterval
	g.state.Unlock()
	switch {
	case err == nil && !sameAddr(conn.addr, refuses.addr):
		if g.use(conn) {
			g.resend(conn)
		}
		return
	case err == nil:
		_ = conn.Close()
	}
	g.dropRefused(g.sending.held.giveUp())
}
