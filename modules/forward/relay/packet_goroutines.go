package relay

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// packetGoroutines is the engine for any client and any system: one goroutine per direction, the caller's
// being one of them.
type packetGoroutines struct {
	*PacketRelay

	ctx    context.Context // ends when the relay is cut
	cancel context.CancelFunc

	state struct {
		sync.Mutex
		reason   Reason // what ended the relay; empty while it runs
		timer    *time.Timer
		upstream *net.UDPConn // nil until connected
		asking   bool         // ask is under way
		nextAsk  time.Duration
		over     bool
	}
	asks sync.WaitGroup
}

func (r *PacketRelay) runGoroutines() {
	g := &packetGoroutines{PacketRelay: r}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	defer g.cancel()
	if reason := r.begin(g); reason != "" {
		g.cut(reason)
	}
	g.schedule()
	conn, err := g.dial(nil)
	if err != nil {
		g.connect = g.age()
		g.because(connectReason(err))
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

// dial asks for addresses until one can be used or there is none left. For datagrams nothing is sent to
// connect.
func (g *packetGoroutines) dial(failed error) (*net.UDPConn, error) {
	for {
		addr, err := g.cfg.Next(g.ctx, failed)
		if err != nil {
			return nil, err
		}
		var conn *net.UDPConn
		if conn, failed = g.dialAddr(addr); failed == nil {
			return conn, nil
		}
	}
}

// dialAddr waits for a descriptor where there is none, as long as it may take.
func (g *packetGoroutines) dialAddr(addr net.Addr) (*net.UDPConn, error) {
	to, ok := addr.(*net.UDPAddr)
	if !ok {
		return nil, &net.AddrError{Err: "unexpected address", Addr: addr.String()}
	}
	pause, limit := shortagePauseMin, g.cfg.Limits.Connect
	for start := time.Now(); ; pause = min(pause*2, shortagePauseMax) {
		conn, err := net.DialUDP("udp", nil, to)
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

// use makes conn the upstream in the place of another. It reports false, with conn closed, where the
// relay was cut meanwhile.
func (g *packetGoroutines) use(conn *net.UDPConn) bool {
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

func (g *packetGoroutines) upstream() *net.UDPConn {
	g.state.Lock()
	defer g.state.Unlock()
	return g.state.upstream
}

// up passes the client's datagrams on until there will be no more.
func (g *packetGoroutines) up() {
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
	g.cut(IdleTimeout) // if not cut before: why a network ends a session that nobody has closed
}

func (g *packetGoroutines) sendUp(b []byte) {
	g.received(len(b))
	if !g.admitsUp(len(b)) {
		return
	}
	conn := g.upstream()
	n, err := conn.Write(b)
	if errors.Is(err, syscall.ECONNREFUSED) {
		g.refused(err) // one sent before; this one has not been
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
func (g *packetGoroutines) down() {
	buf := borrowPacket()
	defer giveBackPacket(buf)
	for {
		conn := g.upstream()
		n, err := conn.Read(buf[:])
		switch {
		case err == nil:
			g.sendDown(buf[:n])
		case g.ctx.Err() != nil:
			return
		case errors.Is(err, syscall.ECONNREFUSED):
			g.refused(err)
		case conn == g.upstream():
			// Such as a buffer that the system could not find.
			select {
			case <-time.After(shortagePauseMin):
			case <-g.ctx.Done():
			}
		}
	}
}

func (g *packetGoroutines) sendDown(b []byte) {
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

// refused sees to an upstream on whose port nobody listens. It may be at another address by now.
func (g *packetGoroutines) refused(err error) {
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

func (g *packetGoroutines) ask(failed error) {
	conn, err := g.dial(failed)
	switch {
	case err != nil:
	case sameAddr(conn.RemoteAddr().(*net.UDPAddr), g.upstream().RemoteAddr().(*net.UDPAddr)):
		_ = conn.Close()
	default:
		g.use(conn)
	}
	g.state.Lock()
	g.state.asking, g.state.nextAsk = false, g.age()+askInterval
	g.state.Unlock()
}

// schedule arms the timer for the limit that comes first.
func (g *packetGoroutines) schedule() {
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

// expire is called by the timer. Datagrams do not reset it: it looks when the last one moved.
func (g *packetGoroutines) expire() {
	age, reason := g.expires(g.upstream() != nil)
	if age > g.age() {
		g.schedule()
		return
	}
	g.cut(reason)
}

// because notes what ends the relay, unless that is known already.
func (g *packetGoroutines) because(reason Reason) {
	g.state.Lock()
	defer g.state.Unlock()
	if g.state.reason == "" {
		g.state.reason = reason
	}
}

// cut ends the relay from outside. The goroutines notice that their connections are closed.
func (g *packetGoroutines) cut(reason Reason) {
	g.because(reason)
	g.cancel()
	g.closeUpstream()
	_ = g.cfg.Client.SetReadDeadline(time.Unix(1, 0)) // wakes up, which then closes it
}

func (g *packetGoroutines) closeUpstream() {
	if conn := g.upstream(); conn != nil {
		_ = conn.Close()
	}
}

func (g *packetGoroutines) end(err error) {
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

// closeTimeout bounds the wait for a client to be closed. A session of the stock network tells its server, which
// does not listen any more once its config has gone.
const closeTimeout = time.Second

func (g *packetGoroutines) closeClient() {
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
