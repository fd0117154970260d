package relay

import (
	"context"
	"errors"
	"sync"
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

	// sending is locked while a datagram is sent to the upstream, or the upstream is replaced. It comes before state.
	sending struct {
		sync.Mutex
		answered bool  // an upstream has sent a reply
		held     *held // nil where nothing is
	}
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
	g.touch(g.age() &^ towardsClient) // the client's first datagram is answered later
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
	g.sending.Lock()
	defer g.sending.Unlock()
	conn := g.upstream()
	_, err := conn.Write(b)
	if errors.Is(err, syscall.ECONNREFUSED) {
		g.refused(err) // that is for a datagram sent before; this one was not sent
		_, err = conn.Write(b)
	}
	refused := errors.Is(err, syscall.ECONNREFUSED)
	switch {
	case err == nil:
		g.sentUp(len(b))
		g.hold(b)
	case g.ctx.Err() != nil: // cut
	case refused && !g.sending.answered:
		g.sentUp(len(b)) // as if the refusal had come a moment later
		g.hold(b)
		g.refused(err)
	case refused:
		g.refused(err)
	default:
		g.drop(DropSendFailed)
	}
}

// hold keeps a datagram that may have to be sent to another upstream. It is called with g.sending locked.
func (g *goroutinePackets) hold(b []byte) {
	if !g.sending.answered {
		g.sending.held = g.sending.held.orNew()
		g.dropRefused(g.sending.held.add(b, g.activeAt()))
	}
}

// resend sends to a new upstream what the former one has refused. It is called with g.sending locked.
func (g *goroutinePackets) resend(conn *packetSocket) {
	g.dropRefused(g.sending.held.resend(g.age(), func(b []byte) {
		switch _, err := conn.Write(b); {
		case err == nil || g.ctx.Err() != nil:
		case errors.Is(err, syscall.ECONNREFUSED):
			g.refused(err)
		default:
			g.drop(DropSendFailed)
		}
	}))
}

// worked notes that the upstream has sent a reply.
func (g *goroutinePackets) worked(conn *packetSocket) {
	attemptFunc(g.cfg.Attempt).report(conn.addr, g.age()-conn.openedAt, nil)
	g.sending.Lock()
	defer g.sending.Unlock()
	g.sending.answered = true
	g.sending.held.release()
	g.sending.held = nil
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
				g.worked(conn)
			}
			g.sendDown(buf[:n])
		case g.ctx.Err() != nil:
			return
		case errors.Is(err, syscall.ECONNREFUSED):
			g.sending.Lock()
			g.refused(err)
			g.sending.Unlock()
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
	g.sending.Lock()
	g.dropRefused(g.sending.held.giveUp())
	g.sending.held.release()
	g.sending.Unlock()
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
