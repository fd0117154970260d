package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// goroutineStream is the engine for any pair of connections on any system: one goroutine for each direction. The
// caller's goroutine is one of them.
type goroutineStream struct {
	*Relay

	ctx    context.Context // ends when the relay is cut
	cancel context.CancelFunc

	client   *end
	upstream *end // nil until connected
	untrack  func()
	up, down pump
	watched  watchedClient

	state struct {
		sync.Mutex
		reason   Reason // why the relay was cut; empty while it runs or ends in order
		firstFIN Reason
		timer    *time.Timer
		over     bool
	}
}

func (r *Relay) runGoroutines() {
	g := &goroutineStream{Relay: r, untrack: func() {}, client: newEnd(r.cfg.Client, r.cfg.Unwrap)}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	defer g.cancel()
	if reason := r.begin(g); reason != "" {
		g.cut(reason)
	}
	g.schedule()
	conn, err := g.dialWatched()
	r.connect = r.age()
	if err != nil {
		g.fail(err)
		return
	}
	if g.attach(conn) {
		var both sync.WaitGroup
		both.Go(g.down.run)
		g.up.run()
		both.Wait()
	}
	g.finish()
}

// dial tries the addresses of Next until one answers or Next returns an error.
func (g *goroutineStream) dial() (net.Conn, error) {
	dialer := net.Dialer{Timeout: g.limits.Connect, KeepAlive: -1, KeepAliveConfig: keepAliveAfter(g.keepAlive)}
	var failed error
	for {
		addr, err := g.cfg.Next(g.ctx, failed)
		if err != nil {
			return nil, err
		}
		g.cfg.chooseWay()
		var won outcome
		if g.cfg.Another == nil {
			won = g.attempt(g.ctx, &dialer, addr)
			g.report(won)
		} else {
			won = g.race(&dialer, addr)
		}
		if failed = won.err; failed == nil {
			g.untrack = won.untrack
			if g.cfg.wrap != nil {
				g.cfg.Preface = nil // was sent before the wrapper's own bytes
			}
			return won.conn, nil
		}
	}
}

// outcome is how a connection attempt went.
type outcome struct {
	addr    net.Addr
	took    time.Duration
	conn    net.Conn
	untrack func()
	err     error
}

func (g *goroutineStream) report(a outcome) {
	if a.err == nil || !g.isCut() {
		attemptFunc(g.cfg.Attempt).report(a.addr, a.took, a.err)
	}
}

// race tries addr, and after raceDelay another address as well. It returns the attempt that is connected first, or the last one that
// failed, and reports all but those that are given up.
func (g *goroutineStream) race(dialer *net.Dialer, addr net.Addr) outcome {
	ctx, giveUp := context.WithCancel(g.ctx)
	defer giveUp()
	over, underWay := make(chan outcome), 0
	begin := func(addr net.Addr) {
		if addr != nil {
			underWay++
			go func() { over <- g.attempt(ctx, dialer, addr) }()
		}
	}
	begin(addr)
	delay := time.NewTimer(raceDelay)
	defer delay.Stop()
	for {
		select {
		case <-delay.C:
			if !g.cfg.takeSpare() {
				delay.Reset(raceDelay)
				continue
			}
			begin(g.cfg.Another(nil))
			if underWay == 1 {
				g.cfg.releaseSpare()
			}
		case a := <-over:
			delay.Stop()
			underWay--
			g.report(a)
			switch {
			case underWay == 0:
				return a
			case a.err == nil:
				giveUp()
				(<-over).close()
				g.cfg.releaseSpare()
				return a
			case !g.isCut():
				begin(g.cfg.Another(a.err))
			}
			if underWay == 1 {
				g.cfg.releaseSpare()
			}
		}
	}
}

// close closes the connection of an attempt that another one was faster than.
func (a outcome) close() {
	if a.err == nil {
		a.untrack()
		_ = a.conn.Close()
	}
}

// attempt makes one attempt.
func (g *goroutineStream) attempt(ctx context.Context, dialer *net.Dialer, addr net.Addr) outcome {
	began, a := time.Now(), outcome{addr: addr, untrack: func() {}}
	a.conn, a.err = g.dialAddr(ctx, dialer, &a)
	if a.err == nil && g.cfg.wrap != nil {
		g.wrap(ctx, &a, began)
	}
	a.took = time.Since(began)
	return a
}

// dialAddr dials the address of an attempt. Where the process has no descriptor left it waits for one, until the attempt times out:
// other sessions end all the time.
func (g *goroutineStream) dialAddr(ctx context.Context, dialer *net.Dialer, a *outcome) (net.Conn, error) {
	pause := shortagePauseMin
	for start := time.Now(); ; pause = min(pause*2, shortagePauseMax) {
		conn, err := g.dialTracked(ctx, dialer, a)
		if err == nil || !isShortage(err) || (dialer.Timeout > 0 && time.Since(start) > dialer.Timeout) {
			return conn, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// dialTracked dials, and tells the Tracker.
func (g *goroutineStream) dialTracked(ctx context.Context, dialer *net.Dialer, a *outcome) (net.Conn, error) {
	var tracked TrackedSocket
	var conn net.Conn
	var err error
	if _, unix := a.addr.(*net.UnixAddr); unix {
		var name string
		name, tracked = trackConnectingUnix(g.cfg.Track)
		conn, err = dialUnix(ctx, dialer, a.addr, name)
	} else {
		tracked = trackConnecting(g.cfg.Track, a.addr)
		conn, err = g.dialFrom(ctx, dialer, a.addr)
		if tracked != nil && err == nil {
			local, _ := addrPort(conn.LocalAddr())
			tracked.Connected(local)
		}
	}
	if tracked == nil {
		return conn, err
	}
	if err != nil {
		tracked.Closed()
		return nil, err
	}
	a.untrack = sync.OnceFunc(tracked.Closed)
	return conn, nil
}

// dialUnix dials from a socket that is bound to the name, if that can be.
func dialUnix(ctx context.Context, dialer *net.Dialer, addr net.Addr, name string) (net.Conn, error) {
	if name != "" {
		named := *dialer
		named.LocalAddr = &net.UnixAddr{Net: addr.Network(), Name: name}
		conn, err := named.DialContext(ctx, addr.Network(), addr.String())
		if failed := new(os.SyscallError); !errors.As(err, &failed) || failed.Syscall != "bind" {
			return conn, err
		}
	}
	return dialer.DialContext(ctx, addr.Network(), addr.String())
}

// dialFrom dials from a source address, if there are any.
func (g *goroutineStream) dialFrom(ctx context.Context, dialer *net.Dialer, addr net.Addr) (conn net.Conn, err error) {
	err = g.cfg.Local.connect(addr, func(source netip.Addr) (err error) {
		d := dialer
		if source.IsValid() {
			from := *dialer
			from.LocalAddr, from.Control = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), controlSource
			d = &from
		}
		conn, err = d.DialContext(ctx, addr.Network(), addr.String())
		return localErrorOf(err, false, source)
	})
	return conn, err
}

// How long to wait before a descriptor is tried for again.
const (
	shortagePauseMin = 5 * time.Millisecond
	shortagePauseMax = 100 * time.Millisecond
)

// isShortage reports whether err is due to a lack of descriptors or memory, or of room in the queue of a listening unix
// socket (EAGAIN of connect(2)). Such errors pass.
func isShortage(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EAGAIN)
}

// attach makes conn the upstream. Where the relay was cut in the meantime it closes conn and reports false.
func (g *goroutineStream) attach(conn net.Conn) bool {
	g.state.Lock()
	if g.state.reason != "" {
		g.state.Unlock()
		g.untrack()
		_ = conn.Close()
		return false
	}
	g.upstream = newEnd(conn, unwrapUpstream)
	g.upstream.beforeClose = g.untrack
	g.up.init(g, g.client, g.upstream, ClientFIN, ClientReset)
	g.down.init(g, g.upstream, g.client, UpstreamFIN, UpstreamReset)
	g.state.Unlock()
	g.client.keepAlive(keepAliveAfter(g.keepAlive)) // the dialer has done the same for conn
	g.touch(g.age())
	g.schedule()
	return true
}

// schedule sets the timer for the time limit that comes first.
func (g *goroutineStream) schedule() {
	g.state.Lock()
	defer g.state.Unlock()
	age, _ := g.expires()
	age = min(age, g.lateAt())
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

// expires is called with g.state locked.
func (g *goroutineStream) expires() (time.Duration, Reason) {
	return g.Relay.expires(g.upstream != nil, g.state.firstFIN != "")
}

// expire is called by the timer. Bytes that move do not reset the timer: expire looks when the last one was moved.
func (g *goroutineStream) expire() {
	g.tellLate(g.age())
	g.state.Lock()
	age, reason := g.expires()
	g.state.Unlock()
	if age > g.age() {
		g.schedule()
		return
	}
	g.cut(reason)
}

// fin notes that one side has sent its FIN.
func (g *goroutineStream) fin(reason Reason) {
	g.state.Lock()
	first := g.state.firstFIN == ""
	if first {
		g.givesUp(reason, g.age())
		g.state.firstFIN = reason
		g.touch(g.age())
	}
	g.state.Unlock()
	if first {
		g.schedule()
	}
}

// setReason notes why the relay ends. The first reason counts.
func (g *goroutineStream) setReason(reason Reason) (first bool) {
	g.state.Lock()
	defer g.state.Unlock()
	first = g.state.reason == ""
	if first {
		g.state.reason = reason
	}
	return first
}

// cut ends the relay from outside. The goroutines that copy end because their connections are closed.
func (g *goroutineStream) cut(reason Reason) {
	g.setReason(reason)
	g.state.Lock()
	over, upstream := g.state.over, g.upstream
	g.state.Unlock()
	if over {
		return
	}
	g.cancel()
	for _, e := range []*end{g.client, upstream} {
		switch {
		case e == nil:
		case e.raw != nil:
			e.close()
		default:
			go e.close() // a wrapper's last message may block
		}
	}
}

// isCut reports whether somebody has cut the relay.
func (g *goroutineStream) isCut() bool { return g.ctx.Err() != nil }

// fail ends a relay that never had an upstream. The client is reset, so that it knows at once.
func (g *goroutineStream) fail(err error) {
	if g.setReason(connectReason(err)) {
		g.client.reset()
	}
	g.end(err)
}

// finish closes what is still open when both directions are done.
func (g *goroutineStream) finish() {
	if g.upstream != nil {
		g.finishEnd(g.client, g.upstream)
		g.finishEnd(g.upstream, g.client)
	}
	g.end(nil)
}

// finishEnd closes e the way its peer has ended: with a reset if the peer was reset.
func (g *goroutineStream) finishEnd(e, peer *end) {
	if peer.gone.Load() && !e.gone.Load() {
		e.drain(g.isCut)
		e.reset()
		return
	}
	e.close()
}

func (g *goroutineStream) end(err error) {
	g.state.Lock()
	g.state.over = true
	if g.state.timer != nil {
		g.state.timer.Stop()
	}
	reason := g.state.reason
	if reason == "" {
		reason = g.state.firstFIN
	}
	g.state.Unlock()
	g.done(reason, err)
}
