package relay

import (
	"net"
	"sync"
	"time"
)

// runGoroutines is the engine for any pair of connections and any system: one goroutine per
// direction, the caller's being one of them.
func (r *Relay) runGoroutines() {
	defer r.cancel()
	r.watchLifetime()
	conn, err := r.connect()
	r.connected = time.Since(r.start)
	if err != nil {
		r.fail(err)
		return
	}
	if r.attach(conn) {
		var both sync.WaitGroup
		both.Go(r.down.run)
		r.up.run()
		both.Wait()
	}
	r.finish()
}

// connect tries addresses until one answers or there is none left.
func (r *Relay) connect() (net.Conn, error) {
	dialer := net.Dialer{Timeout: r.cfg.Limits.Connect}
	var failed error
	for {
		addr, err := r.cfg.Next(r.ctx, failed)
		if err != nil {
			return nil, err
		}
		conn, err := dialer.DialContext(r.ctx, addr.Network(), addr.String())
		if err == nil {
			return conn, nil
		}
		failed = err
	}
}

// attach makes conn the upstream. It reports false, with conn closed, where the relay was cut
// while it connected.
func (r *Relay) attach(conn net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reason != "" {
		_ = conn.Close()
		return false
	}
	r.upstream = newEnd(conn)
	r.up.init(r, r.client, r.upstream, ClientFIN, ClientReset)
	r.down.init(r, r.upstream, r.client, UpstreamFIN, UpstreamReset)
	r.touch()
	r.schedule()
	return true
}

// watchLifetime bounds the time that connecting may take, too.
func (r *Relay) watchLifetime() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.schedule()
}

// schedule arms the timer for the limit that comes first. r.mu is held.
func (r *Relay) schedule() {
	next, _ := r.expires()
	if next == never {
		return
	}
	wait := next - time.Since(r.start)
	if r.timer == nil {
		r.timer = time.AfterFunc(wait, r.expire)
		return
	}
	r.timer.Reset(wait)
}

const never = time.Duration(1<<63 - 1)

// expires returns when, counted from start, the next limit ends the relay if nothing moves until
// then, and which limit it is. r.mu is held.
func (r *Relay) expires() (at time.Duration, reason Reason) {
	at, limits := never, &r.cfg.Limits
	if limits.Lifetime > 0 {
		at, reason = limits.Lifetime, MaxLifetime
	}
	silence := limits.Idle
	if r.firstFIN != "" && limits.HalfClose > 0 {
		silence = limits.HalfClose
	}
	if r.upstream != nil && silence > 0 {
		if idleAt := time.Duration(r.lastActive.Load()) + silence; idleAt < at {
			at, reason = idleAt, IdleTimeout
		}
	}
	return at, reason
}

// expire is called by the timer. Bytes do not reset it: it looks when the last one moved.
func (r *Relay) expire() {
	r.mu.Lock()
	at, reason := r.expires()
	if r.over || at > time.Since(r.start) {
		if !r.over {
			r.schedule()
		}
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	r.cut(reason)
}

// fin notes that one side has finished.
func (r *Relay) fin(reason Reason) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.firstFIN == "" {
		r.firstFIN = reason
		r.touch()
		r.schedule()
	}
}

// resetBy notes that one side was reset.
func (r *Relay) resetBy(reason Reason) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reason == "" {
		r.reason = reason
	}
}

// cut ends the relay from outside. The copying goroutines notice that their connections are closed.
func (r *Relay) cut(reason Reason) {
	r.mu.Lock()
	if r.over {
		r.mu.Unlock()
		return
	}
	if r.reason == "" {
		r.reason = reason
	}
	client, upstream := r.client, r.upstream
	r.mu.Unlock()
	r.cancel()
	for _, e := range []*end{client, upstream} {
		switch {
		case e == nil:
		case e.raw != nil:
			e.close()
		default:
			go e.close()
		}
	}
}

// fail ends a relay that never had an upstream: the client is reset, so that it knows at once.
func (r *Relay) fail(err error) {
	r.mu.Lock()
	cut := r.reason != ""
	if !cut {
		r.reason = connectReason(err)
	}
	r.mu.Unlock()
	if !cut {
		r.client.reset()
	}
	r.done(err)
}

// finish closes what both directions have left behind.
func (r *Relay) finish() {
	if up := r.upstream; up != nil {
		r.finishEnd(r.client, up)
		r.finishEnd(up, r.client)
	}
	r.done(nil)
}

// finishEnd closes e as its peer has ended: with a reset if that was one.
func (r *Relay) finishEnd(e, peer *end) {
	if peer.gone.Load() && !e.gone.Load() {
		e.drain(r.ended)
		e.reset()
		return
	}
	e.close()
}

// ended reports whether the relay was cut.
func (r *Relay) ended() bool { return r.ctx.Err() != nil }

func (r *Relay) done(err error) {
	r.mu.Lock()
	r.over = true
	if r.timer != nil {
		r.timer.Stop()
	}
	reason := r.reason
	if reason == "" {
		reason = r.firstFIN
	}
	r.mu.Unlock()
	if r.cfg.Done != nil {
		r.cfg.Done(Result{Reason: reason, Err: err, Connect: r.connected, Stats: r.Stats()})
	}
}
