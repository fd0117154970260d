package relay

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// goroutines is the engine for any pair of connections and any system: one goroutine per direction,
// the caller's being one of them.
type goroutines struct {
	*Relay

	ctx    context.Context // ends when the relay is cut
	cancel context.CancelFunc

	client   *end
	upstream *end // nil until connected
	up, down pump

	state struct {
		sync.Mutex
		reason   Reason // what cut the relay; empty while it runs or ends in order
		firstFIN Reason
		timer    *time.Timer
		over     bool
	}
}

func (r *Relay) runGoroutines() {
	g := &goroutines{Relay: r, client: newEnd(r.cfg.Client)}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	defer g.cancel()
	if reason := r.begin(g); reason != "" {
		g.cut(reason)
	}
	g.schedule()
	conn, err := g.dial()
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

// dial tries addresses until one answers or there is none left.
func (g *goroutines) dial() (net.Conn, error) {
	dialer := net.Dialer{Timeout: g.cfg.Limits.Connect, KeepAlive: -1, KeepAliveConfig: g.cfg.keepAlive()}
	var failed error
	for {
		addr, err := g.cfg.Next(g.ctx, failed)
		if err != nil {
			return nil, err
		}
		var conn net.Conn
		if conn, failed = g.dialAddr(&dialer, addr); failed == nil {
			return conn, nil
		}
	}
}

// dialAddr waits for a descriptor where there is none, as long as the attempt may take: others end
// all the time.
func (g *goroutines) dialAddr(dialer *net.Dialer, addr net.Addr) (net.Conn, error) {
	pause := shortagePauseMin
	for start := time.Now(); ; pause = min(pause*2, shortagePauseMax) {
		conn, err := dialer.DialContext(g.ctx, addr.Network(), addr.String())
		if err == nil || !isShortage(err) || (dialer.Timeout > 0 && time.Since(start) > dialer.Timeout) {
			return conn, err
		}
		select {
		case <-time.After(pause):
		case <-g.ctx.Done():
			return nil, err
		}
	}
}

// How long to wait for a descriptor before the next try.
const (
	shortagePauseMin = 5 * time.Millisecond
	shortagePauseMax = 100 * time.Millisecond
)

// isShortage tells the errors that pass when the process or the system has descriptors or memory again, or
// a unix socket's queue of connections has room (connect(2): EAGAIN).
func isShortage(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EAGAIN)
}

// attach makes conn the upstream. It reports false, with conn closed, where the relay was cut
// while it connected.
func (g *goroutines) attach(conn net.Conn) bool {
	g.state.Lock()
	if g.state.reason != "" {
		g.state.Unlock()
		_ = conn.Close()
		return false
	}
	g.upstream = newEnd(conn)
	g.up.init(g, g.client, g.upstream, ClientFIN, ClientReset)
	g.down.init(g, g.upstream, g.client, UpstreamFIN, UpstreamReset)
	g.state.Unlock()
	g.client.keepAlive(g.cfg.keepAlive()) // the dialer has done the same for conn
	g.touch(g.age())
	g.schedule()
	return true
}

// schedule arms the timer for the limit that comes first.
func (g *goroutines) schedule() {
	g.state.Lock()
	defer g.state.Unlock()
	age, _ := g.expires()
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

// expires needs the lock of g.state.
func (g *goroutines) expires() (time.Duration, Reason) {
	return g.Relay.expires(g.upstream != nil, g.state.firstFIN != "")
}

// expire is called by the timer. Bytes do not reset it: it looks when the last one moved.
func (g *goroutines) expire() {
	g.state.Lock()
	age, reason := g.expires()
	g.state.Unlock()
	if age > g.age() {
		g.schedule()
		return
	}
	g.cut(reason)
}

// fin notes that one side has finished.
func (g *goroutines) fin(reason Reason) {
	g.state.Lock()
	first := g.state.firstFIN == ""
	if first {
		g.state.firstFIN = reason
		g.touch(g.age())
	}
	g.state.Unlock()
	if first {
		g.schedule()
	}
}

// because notes what ends the relay, unless that is known already.
func (g *goroutines) because(reason Reason) (first bool) {
	g.state.Lock()
	defer g.state.Unlock()
	first = g.state.reason == ""
	if first {
		g.state.reason = reason
	}
	return first
}

// cut ends the relay from outside. The copying goroutines notice that their connections are closed.
func (g *goroutines) cut(reason Reason) {
	g.because(reason)
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
			go e.close() // a wrapper's farewell may wait for its peer
		}
	}
}

// isCut reports whether somebody has cut the relay.
func (g *goroutines) isCut() bool { return g.ctx.Err() != nil }

// fail ends a relay that never had an upstream: the client is reset, so that it knows at once.
func (g *goroutines) fail(err error) {
	if g.because(connectReason(err)) {
		g.client.reset()
	}
	g.end(err)
}

// finish closes what both directions have left behind.
func (g *goroutines) finish() {
	if g.upstream != nil {
		g.finishEnd(g.client, g.upstream)
		g.finishEnd(g.upstream, g.client)
	}
	g.end(nil)
}

// finishEnd closes e as its peer has ended: with a reset if that was one.
func (g *goroutines) finishEnd(e, peer *end) {
	if peer.gone.Load() && !e.gone.Load() {
		e.drain(g.isCut)
		e.reset()
		return
	}
	e.close()
}

func (g *goroutines) end(err error) {
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
