package relay

import (
	"context"
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
		nextAsk  time.Duration
		over     bool
	}
	asks sync.WaitGroup

	// sending is locked while a datagram is sent to the upstream, or the upstream is replaced. It comes before state.
	sending struct {
		sync.Mutex
		trouble   trouble       // ask is running or about to
		errno     syscall.Errno // that has made the trouble; 0 where none has
		answered  bool          // an upstream has sent a reply
		moved     bool          // addresses of this machine have changed since the socket was opened
		preface   prefaceState  // of the socket
		addresses *addressBook  // of this machine, as of the last datagram of the client
		held      *held         // nil where nothing is
		waiting   backlog       // until there is a socket that is of use
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
	g.sending.addresses = ownAddresses.Load()
	g.cfg.choosePreface()
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
	silent := g.received(len(b))
	if !g.admitsUp(len(b)) {
		return
	}
	g.sending.Lock()
	defer g.sending.Unlock()
	g.lookAround(silent)
	g.passUp(b)
}

// lookAround finds trouble of which no error tells. It is called with g.sending locked.
func (g *goroutinePackets) lookAround(silent bool) {
	s := &g.sending
	if now := ownAddresses.Load(); now != s.addresses {
		s.addresses, s.moved = now, true
		if local, ok := addrPort(g.upstream().LocalAddr()); ok && now.lost(local.Addr()) {
			g.note(troubleStale, 0)
		}
	}
	if silent && (g.cfg.Named || s.moved) {
		g.note(troubleSilent, 0)
	}
}

// passUp sends a datagram, or keeps it until there is a socket that is of use. It is called with g.sending locked.
func (g *goroutinePackets) passUp(b []byte) {
	if g.sending.trouble != troubleStale {
		g.sendTo(g.upstream(), b)
	} else if !g.sending.waiting.add(b) {
		g.drop(DropQueueFull)
	}
}

// sendTo sends a datagram to the upstream. It is called with g.sending locked.
func (g *goroutinePackets) sendTo(conn *packetSocket, b []byte) {
	errno := g.write(conn, b)
	if errno != 0 {
		var reported syscall.Errno
		if reported, errno = sendTwice(errno, func() syscall.Errno { return g.write(conn, b) }); reported != 0 {
			g.reported(reported)
		}
	}
	switch ownEffect(errno) {
	case effectNone:
		g.sentUp(len(b))
		g.hold(b)
	case effectRefused:
		if !g.sending.answered { // as if the refusal had come a moment later
			g.sentUp(len(b))
			g.hold(b)
		}
		g.refused(errno)
	case effectStale:
		g.note(troubleStale, errno)
		g.passUp(b)
	case effectFull:
		g.drop(DropUpstreamFull)
	default:
		if g.ctx.Err() == nil { // else cut, and the socket closed
			g.drop(DropSendFailed)
		}
	}
}

// write sends a datagram once. It is called with g.sending locked.
func (g *goroutinePackets) write(conn *packetSocket, b []byte) syscall.Errno {
	if g.cfg.Preface == nil {
		return conn.send(b)
	}
	return g.sending.preface.send(g.cfg.Preface, b, conn.send)
}

// reported takes an error that the network has reported. It is called with g.sending locked.
func (g *goroutinePackets) reported(errno syscall.Errno) {
	switch reportedEffect(errno) {
	case effectRefused:
		g.refused(errno)
	case effectStale:
		g.note(troubleStale, errno)
	case effectTooLarge:
		conn := g.upstream()
		send := g.sendHeld(conn)
		resend := func(b []byte, prefaced bool) {
			g.sending.preface.repeat(prefaced)
			send(b)
		}
		if !g.sending.held.resendLarge(g.age(), conn.largestWhole(), g.cfg.Preface, resend) {
			g.drop(DropSendFailed)
		}
	}
}

// reportedBy takes an error of a socket, unless another one has taken its place meanwhile: the error says nothing about that.
func (g *goroutinePackets) reportedBy(conn *packetSocket, errno syscall.Errno) {
	g.sending.Lock()
	defer g.sending.Unlock()
	if conn == g.upstream() {
		g.sending.preface.reported(errno)
		g.reported(errno)
	}
}

// hold keeps a datagram that may have to be sent to another upstream. It is called with g.sending locked.
func (g *goroutinePackets) hold(b []byte) {
	if !g.sending.answered {
		g.sending.held = g.sending.held.orNew()
		g.dropRefused(g.sending.held.add(b, g.sending.preface.last, g.activeAt()))
	}
}

// resend sends to a new upstream what the former one has refused, and what has waited. It is called with g.sending locked.
func (g *goroutinePackets) resend(conn *packetSocket) {
	g.sending.preface = prefaceState{}
	g.cfg.choosePreface()
	g.dropRefused(g.sending.held.resend(g.age(), g.sendHeld(conn)))
	for _, b := range g.sending.waiting.take() {
		g.passUp(b)
	}
}

func (g *goroutinePackets) sendHeld(conn *packetSocket) func(b []byte) (prefaced bool) {
	return func(b []byte) bool {
		switch errno := g.write(conn, b); {
		case errno == 0 || g.ctx.Err() != nil:
		case reportedEffect(errno) == effectRefused:
			g.refused(errno)
		default:
			g.drop(DropSendFailed)
		}
		return g.sending.preface.last
	}
}

// worked notes that the upstream has sent a reply.
func (g *goroutinePackets) worked(conn *packetSocket) {
	attemptFunc(g.cfg.Attempt).report(conn.addr, g.age()-conn.openedAt, nil)
	g.sending.Lock()
	defer g.sending.Unlock()
	g.sending.answered = true
	g.sending.held = g.sending.held.release()
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
			g.heard()
			if !conn.works.Swap(true) {
				g.worked(conn)
			}
			g.sendDown(buf[:n])
		case g.ctx.Err() != nil:
			return
		case reportedEffect(errnoOf(err)) > effectFull:
			g.reportedBy(conn, errnoOf(err))
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
	g.sending.held = g.sending.held.release()
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
