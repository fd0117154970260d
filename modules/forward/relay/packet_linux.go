package relay

import (
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// packetFlow is a relay of datagrams whose replies an event loop moves. The client's datagrams are moved by
// the goroutine in which the network receives them, straight to the upstream's socket.
type packetFlow struct {
	*PacketRelay
	task
	client PacketClient

	// Of the client's ReplyPath.
	replyFD       int
	peer, control []byte

	mu      sync.Mutex
	fd      int      // the upstream's socket, -1 where there is none; only the loop changes it
	shut    bool     // what the client sends now is for another session
	told    bool     // the loop, that the upstream refuses datagrams
	waiting [][]byte // for the upstream's socket
	size    int      // of what waits

	// All below belongs to the loop's goroutine.

	ask        ask
	readable   bool // no read has found the upstream's socket empty since it last was
	generation uint32
	pending    int // replies that are in loop.replies
	target     *net.UDPAddr
	nextAsk    time.Duration
}

// ask is what there is to know about an upstream that refuses datagrams.
type ask uint8

const (
	askNothing ask = iota
	askSoon        // when nextAsk has come
	askNow         // dial is under way
)

// runLoop hands the relay to an event loop. It reports false where the client is not one for that.
func (r *PacketRelay) runLoop() bool {
	client, ok := r.cfg.Client.(PacketClient)
	if !ok {
		return false
	}
	l := pickLoop()
	if l == nil {
		return false
	}
	f := &packetFlow{PacketRelay: r, task: task{loop: l, opened: r.start.Sub(epoch)}, client: client, fd: -1}
	f.timer.of = f
	ctx := f.dialling()
	if !client.Attach(f.receive, f.clientClosed) {
		f.cancel()
		r.done(Evicted, nil)
		_ = client.Close()
		return true
	}
	f.replyFD, f.peer, f.control = client.ReplyPath()
	if reason := r.begin(f); reason != "" {
		f.cut(reason)
	}
	if r.cfg.Limits.Lifetime > 0 {
		l.post(message{to: f, what: orderTime}) // Next may block for longer
	}
	f.dial(ctx, r.cfg.Next, nil)
	return true
}

// clientClosed is called when the network ends the session.
func (f *packetFlow) clientClosed(reason string) { f.cut(Reason(reason)) }

func (f *packetFlow) obey(m *message) {
	switch m.what {
	case orderConnect:
		f.connectTo(m.addr)
	case orderFail:
		f.fail(m.err)
	case orderCut:
		f.close(m.reason)
	case orderTime:
		f.setTimer()
	case orderAsk:
		f.askAgain()
	}
}

func (f *packetFlow) name() fmt.Stringer { return f.cfg.Name }

func (f *packetFlow) report() {
	f.done(f.reason, f.failed)
	_ = f.client.Close()
}

// connectTo makes addr the upstream.
func (f *packetFlow) connectTo(addr net.Addr) {
	switch {
	case f.phase == phaseOver:
		return // the upstream was asked for again
	case f.reason != "":
		f.end()
		return
	}
	to, ok := addr.(*net.UDPAddr)
	if !ok {
		f.redial(addr, &net.AddrError{Err: "unexpected address", Addr: addr.String()})
		return
	}
	if f.phase == phaseOpen {
		f.reconnect(to)
		return
	}
	f.target = to
	f.connecting(f.cfg.Limits.Connect)
	f.tryConnect()
}

// tryConnect opens the first socket. Where there is no descriptor it waits for one.
func (f *packetFlow) tryConnect() {
	err := f.open(f.target)
	switch {
	case isShortage(err) && f.loop.now < f.connectBy:
		f.loop.wheel.set(&f.timer, f.loop.now)
	case err != nil:
		f.phase = phaseDialing
		f.redial(f.target, err)
	default:
		f.phase = phaseOpen
		f.connect = f.age()
		f.touch(f.connect)
		f.dialled()
	}
}

// reconnect opens the socket to an upstream that was asked for again, unless it is the same.
func (f *packetFlow) reconnect(to *net.UDPAddr) {
	if !sameAddr(to, f.target) {
		if err := f.open(to); err != nil {
			f.redial(to, err)
			return
		}
		f.target = to
	}
	f.dialled()
}

// open makes a socket that is connected to addr the upstream's, in the place of another.
func (f *packetFlow) open(addr *net.UDPAddr) error {
	fd, err := connectPackets(addr)
	if err != nil {
		return err
	}
	generation := generations.Add(1)
	if err := f.loop.watch(fd, packetEvents, generation); err != nil {
		closeFD(fd)
		return err
	}
	f.closeUpstream()
	f.loop.add(fd, f)
	f.generation = generation
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fd = fd
	for _, b := range f.waiting {
		f.sendUp(b)
	}
	f.waiting, f.size = nil, 0
	return nil
}

func (f *packetFlow) closeUpstream() {
	f.mu.Lock()
	fd := f.fd
	f.fd = -1
	f.mu.Unlock()
	if fd >= 0 {
		f.loop.forget(fd, f)
		closeFD(fd)
	}
}

// redial asks for another address in the place of one that can't be used.
func (f *packetFlow) redial(addr net.Addr, failed error) {
	f.cancel()
	ctx := f.dialling()
	f.setTimer()
	go f.dial(ctx, f.cfg.Next, dialError(addr, failed))
}

// dialled ends what dial was for.
func (f *packetFlow) dialled() {
	f.cancel()
	f.cancel = nil
	f.ask = askNothing
	f.nextAsk = f.loop.now + askInterval
	f.mu.Lock()
	f.told = false
	f.mu.Unlock()
	f.setTimer()
}

// askAgain asks for the upstream again because it refuses datagrams.
func (f *packetFlow) askAgain() {
	switch {
	case f.phase != phaseOpen || f.ask == askNow:
	case f.loop.now < f.nextAsk:
		f.ask = askSoon
		f.setTimer()
	default:
		f.ask = askNow
		go f.dial(f.dialling(), f.cfg.Next, dialError(f.target, unix.ECONNREFUSED))
	}
}

// fail is told that there is no address.
func (f *packetFlow) fail(err error) {
	switch f.phase {
	case phaseOver:
	case phaseOpen:
		f.dialled() // it stays with the one that it has
	default:
		f.failed = err
		f.because(connectReason(err))
		f.connect = f.age()
		f.end()
	}
}

// check is called when a limit may have passed, or when it is time to ask.
func (f *packetFlow) check() {
	if age, reason := f.expires(f.phase == phaseOpen); age <= f.age() {
		f.close(reason)
		return
	}
	switch {
	case f.phase == phaseConnecting:
		f.tryConnect() // there was no descriptor
		return
	case f.ask == askSoon && f.loop.now >= f.nextAsk:
		f.askAgain()
	}
	f.setTimer()
}

// setTimer puts the flow where its next limit is looked at.
func (f *packetFlow) setTimer() {
	due := never
	if age, _ := f.expires(f.phase == phaseOpen); age != never {
		due = f.opened + age
	}
	if f.ask == askSoon {
		due = min(due, f.nextAsk)
	}
	f.loop.wheel.set(&f.timer, due)
}

func (f *packetFlow) end() {
	f.mu.Lock()
	f.shut, f.waiting = true, nil
	f.mu.Unlock()
	f.closeUpstream()
	f.leave()
}
