package relay

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// goroutinePackets is the engine for any client on any system: one goroutine for each direction. The caller's goroutine
// is one of them.
type goroutinePackets struct {
	*PacketRelay

	ctx    context.Context // ends when the relay is cut
	cancel context.CancelFunc

	state struct {
		sync.Mutex
		reason   Reason // why the relay ends; empty while it runs
		timer    *time.Timer
		upstream *packetSocket // nil until connected
		asking   bool          // ask is running or about to
		nextAsk  time.Duration
		over     bool
	}
	asks sync.WaitGroup
}

func (r *PacketRelay) runGoroutines() {
	g := &goroutinePackets{PacketRelay: r}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	defer g.cancel()
	if reason := r.begin(g); reason != "" {
		g.cut(reason)
	}
	g.schedule()
	conn, err := g.dial(nil)
	if err != nil {
		g.connect = g.age()
		g.setReason(connectReason(err))
		g.end(err)
		return
	}
	g.touch(g.age())
	if g.use(conn) {
		g.connect = g.age()
		g.schedule()
		var down sync.WaitGroup
		down.Go(g.down)
		g.up()
		down.Wait()
	}
	g.end(nil)
}

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

// up passes the client's datagrams on until the relay is cut or the network ends the session.
func (g *goroutinePackets) up() {
	for _, b := range g.cfg.Prefetched {
		g.sendUp(b)
	}
	g.cfg.Prefetched = nil
	buf := borrowPacket()
	defer giveBackPacket(buf)
	for {
		n, err := g.cfg.Client.Read(buf[:])
		if n == 0 && err != nil {
			break
		}
		g.sendUp(buf[:n])
	}
	g.cut(IdleTimeout) // unless it was cut before: the reason for which a network ends a session by itself
}

func (g *goroutinePackets) sendUp(b []byte) {
	g.received(len(b))
	if !g.admitsUp(len(b)) {
		return
	}
	conn := g.upstream()
	n, err := conn.Write(b)
	if errors.Is(err, syscall.ECONNREFUSED) {
		g.refused(err) // that is for a datagram sent before; this one was not sent
		n, err = conn.Write(b)
	}
	switch {
	case err == nil:
		g.sentUp(n)
	case g.ctx.Err() != nil: // cut
	case errors.Is(err, syscall.ECONNREFUSED):
		g.refused(err)
	default:
		g.drop(DropSendFailed)
	}
}

// down passes the upstream's datagrams on until the relay is cut.
func (g *goroutinePackets) down() {
	buf := borrowPacket()
	defer giveBackPacket(buf)
	for {
		conn := g.upstream()
		n, err := conn.Read(buf[:])
		switch {
		case err == nil:
			if !conn.works.Swap(true) {
				attemptFunc(g.cfg.Attempt).report(conn.addr, g.age()-conn.openedAt, nil)
			}
			g.sendDown(buf[:n])
		case g.ctx.Err() != nil:
			return
		case errors.Is(err, syscall.ECONNREFUSED):
			g.refused(err)
		case conn == g.upstream():
			// An error such as a lack of memory, which may pass.
			select {
			case <-time.After(shortagePauseMin):
			case <-g.ctx.Done():
			}
		}
	}
}

func (g *goroutinePackets) sendDown(b []byte) {
	if !g.admitsDown(len(b)) {
		return
	}
	g.answers()
	if _, err := g.cfg.Client.Write(b); err != nil {
		g.drop(DropSendFailed)
		return
	}
	g.sentDown(len(b))
	if g.repliesLeft() <= 0 {
		g.cut(MaxReplies)
	}
}

// refused asks Next for another upstream, at most once in askInterval, because nobody listens on the port of this one.
func (g *goroutinePackets) refused(err error) {
	g.drop(DropUpstreamRefused)
	g.state.Lock()
	defer g.state.Unlock()
	if g.state.asking {
		return
	}
	g.state.asking = true
	pause := g.state.nextAsk - g.age()
	g.asks.Go(func() {
		select {
		case <-time.After(pause):
			g.ask(err)
		case <-g.ctx.Done():
		}
	})
}

func (g *goroutinePackets) ask(failed error) {
	refuses := g.upstream()
	refuses.works.Store(false)
	attemptFunc(g.cfg.Attempt).report(refuses.addr, g.age()-refuses.openedAt, failed)
	conn, err := g.dial(failed)
	switch {
	case err != nil:
	case sameAddr(conn.addr, refuses.addr):
		_ = conn.Close()
	default:
		g.use(conn)
	}
	g.state.Lock()
	g.state.asking, g.state.nextAsk = false, g.age()+askInterval
	g.state.Unlock()
}

// schedule sets the timer for the time limit that comes first.
func (g *goroutinePackets) schedule() {
	g.state.Lock()
	defer g.state.Unlock()
	age, _ := g.expires(g.state.upstream != nil)
	if age == never || g.state.over {
		return
	}
	wait := age - g.age()
	if g.state.timer == nil {
		g.state.timer = time.AfterFunc(wait, g.expire)
		return
	}
	g.state.timer.Reset(wait)
}

// expire is called by the timer. Datagrams do not reset the timer: expire looks when the last one was moved.
func (g *goroutinePackets) expire() {
	age, reason := g.expires(g.upstream() != nil)
	if age > g.age() {
		g.schedule()
		return
	}
	g.cut(reason)
}

// setReason notes why the relay ends. The first reason counts.
func (g *goroutinePackets) setReason(reason Reason) {
	g.state.Lock()
	defer g.state.Unlock()
	if g.state.reason == "" {
		g.state.reason = reason
	}
}

// cut ends the relay from outside. The goroutines end because the upstream is closed and the client's deadline has passed.
func (g *goroutinePackets) cut(reason Reason) {
	g.setReason(reason)
	g.cancel()
	g.closeUpstream()
	_ = g.cfg.Client.SetReadDeadline(time.Unix(1, 0)) // ends up; end then closes the client
}

func (g *goroutinePackets) closeUpstream() {
	if conn := g.upstream(); conn != nil {
		_ = conn.Close()
	}
}

func (g *goroutinePackets) end(err error) {
	g.asks.Wait()
	g.state.Lock()
	g.state.over = true
	if g.state.timer != nil {
		g.state.timer.Stop()
	}
	reason := g.state.reason
	g.state.Unlock()
	g.closeUpstream()
	g.done(reason, err)
	g.closeClient()
}

// closeTimeout bounds how long the client's Close may take. The Close of caddy-l4's own UDP sessions sends to its server, and
// blocks for ever once the server has stopped.
const closeTimeout = time.Second

func (g *goroutinePackets) closeClient() {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = g.cfg.Client.Close()
	}()
	timeout := time.NewTimer(closeTimeout)
	defer timeout.Stop()
	select {
	case <-closed:
	case <-timeout.C:
	}
}
