package relay

import (
	"context"
	"net"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// flow is a relay whose bytes an event loop moves. After Run has posted it, it belongs to the loop's
// goroutine, but for the time in which dial looks for an upstream.
type flow struct {
	*Relay
	task

	ctx      context.Context // ends when the relay is cut; for dial
	target   net.Addr        // of the attempt that is under way
	firstFIN Reason

	client, upstream half
}

// half is one of the two sockets of a flow, and what waits to be sent to it.
type half struct {
	flow       *flow
	fd         int
	generation uint32

	readable bool // no read has found it empty since it last was
	writable bool // no write has found it full since it last was
	ending   bool // read until it is empty: a FIN, an error or urgent data is behind what a short read gives
	partial  bool // a short read does not mean that it is empty, see connected
	erred    bool // an error was heard of, which a read gives unless a FIN came before it
	eof      bool // nothing more will come
	gone     bool // reset
	finished bool // a FIN was sent to it

	keptAlive, stalled bool // see guard

	bulk     bool // read it with splice
	noSplice bool // the kernel refused
	streak   int8 // large reads, or small splices, in a row

	pace *pace // of what is sent to it; nil: no bound

	left   *leftover // what could not be sent
	pipe   *pipe     // what could not be sent, or nothing
	filled int       // bytes in pipe
}

var generations atomic.Uint32

// When a stream turns bulk, and small again.
const (
	largeRead   = 32 << 10
	largeReads  = 2
	smallSplice = 16 << 10
	smallReads  = 4
)

// runLoop hands the relay to an event loop. It reports false where the client can't be detached.
func (r *Relay) runLoop() bool {
	detacher, ok := r.cfg.Client.(Detacher)
	if !ok {
		return false
	}
	l := pickLoop()
	if l == nil {
		return false
	}
	fd, ok := detacher.Detach()
	if !ok {
		return false
	}
	f := &flow{Relay: r, task: task{loop: l, opened: r.start.Sub(epoch)}}
	f.timer.of = f
	f.client = half{flow: f, fd: fd}
	f.ctx = f.dialling()
	r.cfg.Client = nil
	if reason := r.begin(f); reason != "" {
		f.cut(reason)
	}
	if r.cfg.Limits.Lifetime > 0 {
		l.post(message{to: f, what: orderTime}) // Next may block for longer
	}
	f.dial(f.ctx, r.cfg.Next, nil)
	return true
}

// connectTo begins a connection attempt.
func (f *flow) connectTo(addr net.Addr) {
	if f.reason != "" {
		f.end()
		return
	}
	f.target = addr
	f.connecting(f.cfg.Limits.Connect)
	f.tryConnect()
}

// tryConnect opens the socket of an attempt. Where there is no descriptor it waits for one, as long
// as the attempt may take.
func (f *flow) tryConnect() {
	fd, err := startConnect(f.target)
	switch {
	case isShortage(err) && f.loop.now < f.connectBy:
		f.loop.wheel.set(&f.timer, f.loop.now)
		return
	case err != nil:
		f.redial(err)
		return
	}
	f.upstream = half{flow: f, fd: fd, generation: generations.Add(1)}
	f.loop.add(fd, &f.upstream)
	if err := f.loop.watch(fd, streamEvents, f.upstream.generation); err != nil {
		f.redial(err)
		return
	}
	f.setTimer()
}

// redial gives up an attempt and makes the next.
func (f *flow) redial(failed error) {
	f.discard(&f.upstream)
	f.phase = phaseDialing
	f.setTimer()
	go f.dial(f.ctx, f.cfg.Next, dialError(f.target, failed))
}

// fail ends a flow that never had an upstream: the client is reset, so that it knows at once.
func (f *flow) fail(err error) {
	f.failed = err
	f.connect = f.age()
	if f.because(connectReason(err)) {
		resetOnClose(f.client.fd)
	}
	f.end()
}

// step moves what there is to move.
func (f *flow) step() {
	f.queued = false
	if f.phase == phaseOpen {
		f.move()
	}
}

func (f *flow) connected() {
	if f.upstream.ending { // a FIN, or the attempt has failed
		if errno, _ := unix.GetsockoptInt(f.upstream.fd, unix.SOL_SOCKET, unix.SO_ERROR); errno != 0 {
			f.redial(syscall.Errno(errno))
			return
		}
	}
	if isItself(f.upstream.fd, f.target) {
		resetOnClose(f.upstream.fd)
		f.redial(unix.ECONNREFUSED)
		return
	}
	_, f.upstream.partial = f.target.(*net.UnixAddr) // a read stops where a descriptor is passed
	f.phase = phaseOpen
	f.connect = f.age()
	f.touch(f.age())
	f.cancel()
	f.cfg.Next, f.ctx, f.cancel, f.target = nil, nil, nil, nil // they may hold much
	f.client.generation = generations.Add(1)
	f.loop.add(f.client.fd, &f.client)
	if err := f.loop.watch(f.client.fd, streamEvents, f.client.generation); err != nil {
		f.fail(err)
		return
	}
	f.setTimer()
	f.setPace(&f.upstream, f.cfg.PaceUp)
	f.setPace(&f.client, f.cfg.PaceDown)
	if len(f.cfg.Prefetched) > 0 {
		f.send(&f.upstream, f.cfg.Prefetched, &f.up)
		f.cfg.Prefetched = nil
	}
	f.move()
}

// move moves what can be moved in both directions, and sees to what follows from it.
func (f *flow) move() {
	more := f.pump(&f.client, &f.upstream, &f.up)
	more = f.pump(&f.upstream, &f.client, &f.down) || more
	if f.client.gone && !f.client.eof {
		// The write down has found that out; what the client had sent before still counts.
		more = f.pump(&f.client, &f.upstream, &f.up) || more
	}
	f.settle()
	if more && f.phase == phaseOpen && !f.queued {
		f.queue()
	}
}

// pump moves from src to dst until there is nothing to read, dst is full, or the flow has moved its
// quantum; then there may be more.
func (f *flow) pump(src, dst *half, moved *atomic.Int64) (more bool) {
	quantum := f.loop.quantum()
	for budget := quantum; budget > 0; {
		if !f.flush(dst, moved) || dst.gone {
			return false
		}
		if src.eof {
			f.passFIN(src, dst)
			return false
		}
		if !src.readable || dst.pauses() {
			return false
		}
		if src.bulk {
			budget -= f.spliceIn(src, dst, quantum)
		} else {
			dst.releasePipe() // the stream may have been bulk before
			budget -= f.copy(src, dst, moved)
		}
	}
	return true
}

// passFIN finishes the stream to dst as src has.
func (f *flow) passFIN(src, dst *half) {
	if src.gone || dst.finished {
		return
	}
	dst.finished = true
	if !src.finished { // else both are closed next, which finishes the stream too
		shutdownFD(dst.fd)
	}
	if f.firstFIN == "" {
		f.firstFIN = UpstreamFIN
		if src == &f.client {
			f.firstFIN = ClientFIN
		}
		f.touch(f.age())
		f.setTimer()
	}
}

// settle ends the flow when both directions are done.
func (f *flow) settle() {
	client, upstream := &f.client, &f.upstream
	switch {
	case client.gone && upstream.gone:
		f.end()
	case client.gone:
		f.passReset(client, upstream)
	case upstream.gone:
		f.passReset(upstream, client)
	case client.finished && upstream.finished:
		f.because(f.firstFIN)
		f.end()
	}
}

// passReset resets other when it has got all that the side that is gone had sent. A RST discards
// what is still in the send queue, so that has to be acknowledged before.
func (f *flow) passReset(gone, other *half) {
	switch {
	case !gone.eof || other.waits():
		return // for a read, or for other to take it
	case queuedFD(other.fd) > 0:
		f.loop.wheel.set(&f.timer, f.loop.now) // there is no event for that
		return
	}
	resetOnClose(other.fd)
	f.end()
}

// check is called when a limit may have passed.
func (f *flow) check() {
	if age, reason := f.expires(f.phase == phaseOpen, f.firstFIN != ""); age <= f.age() {
		f.close(reason)
		return
	}
	switch f.phase {
	case phaseConnecting:
		if f.upstream.flow == nil {
			f.tryConnect() // there was no descriptor
			return
		}
		if f.loop.now >= f.connectBy {
			f.redial(errTimeout)
			return
		}
	case phaseOpen:
		f.guard()
	}
	f.setTimer()
	if f.phase == phaseOpen {
		f.settle() // a reset may have waited for the send queue
	}
}

// setTimer puts the flow where its next limit is looked at.
func (f *flow) setTimer() {
	age, _ := f.expires(f.phase == phaseOpen, f.firstFIN != "")
	due := never
	if age != never {
		due = f.opened + age
	}
	if f.phase == phaseConnecting {
		due = min(due, f.connectBy)
	}
	f.loop.wheel.set(&f.timer, due)
}

func (f *flow) end() {
	f.discard(&f.client)
	f.discard(&f.upstream)
	f.leave()
}

// discard closes a socket and drops what was left for it.
func (f *flow) discard(h *half) {
	if h.flow == nil {
		return // never connected
	}
	f.loop.forget(h.fd, h)
	h.dropLeft()
	h.dropPace()
	h.releasePipe()
	closeFD(h.fd)
	*h = half{}
}
