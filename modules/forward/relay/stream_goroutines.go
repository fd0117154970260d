package relay

import (
	"context"
	"net"
	"sync"
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
	first    *firstByte // nil where nobody wants to know

	state struct {
		sync.Mutex
		reason   Reason // why the relay was cut; empty while it runs or ends in order
		firstFIN Reason
		timer    *time.Timer
		over     bool
	}
}

func (r *Relay) runGoroutines() {
	g := &goroutineStream{Relay: r, untrack: func() {}, client: newEnd(r.cfg.Client, r.cfg.Unwrap), first: r.newFirst()}
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
	dialer := newDialer(g.limits.Connect, keepAliveAfter(g.keepAlive), g.cfg.Track, g.cfg.Local)
	var failed error
	for {
		addr, err := g.cfg.Next(g.ctx, failed)
		if err != nil {
			return nil, err
		}
		g.cfg.chooseWay()
		var won outcome
		if g.cfg.Another == nil {
			won = g.attempt(g.ctx, dialer, addr, g.cfg.kept)
			g.report(won)
		} else {
			won = g.race(dialer, addr)
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
	g.client.keepAlive(keepAliveAfter(g.keepAlive)) // the dialer has done the same for conn, unless a Keeper has dialed it
	if g.cfg.kept != nil {
		g.upstream.keepAlive(keepAliveAfter(g.keepAlive))
	}
	g.touch(g.age())
	g.schedule()
	return true
}

// schedule sets the timer for the time limit that comes first.
func (g *goroutineStream) schedule() {
	g.state.Lock()
	defer g.state.Unlock()
	age, _ := g.expires()
	age = min(age, g.first.lateAt())
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
	g.first.tellLate(g.age())
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
		g.first.givesUp(reason, g.age())
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
	g.first.tell(g.age(), reason)
	g.done(reason, err)
}
