package main

import (
	"runtime"
	"syscall"
	"time"
)

// loadConn is one connection of a loop.
type loadConn struct {
	fd       int32
	state    connState
	received int32         // bytes of the answer that is awaited
	began    time.Duration // of the exchange, since the generator's epoch
}

type connState uint8

const (
	closed     connState = iota
	connecting           // the handshake takes longer than the system call
	greeting             // the first message is out, its answer is not back
	closing              // nothing but the end of the connection is awaited
	parked               // open, and waiting for the others
	exchanging           // a message is out
	sending              // as fast as the proxy takes it
	receiving            // as fast as the proxy gives it
)

// pending says whether the connection is being opened, or on its whole way if it is one that comes and goes.
func (c *loadConn) pending() bool { return c.state >= connecting && c.state <= closing }

// loadLoop is a loop of TCP connections.
type loadLoop struct {
	*poller
	tally
	g       *generator
	conns   []loadConn
	toOpen  []int32 // what is closed and shall not be
	pending int     // connections that are
	buffer  []byte
}

func newLoadLoop(p *poller, g *generator, connections int) *loadLoop {
	l := &loadLoop{poller: p, g: g, conns: make([]loadConn, connections), buffer: make([]byte, chunk)}
	for i := range connections {
		l.toOpen = append(l.toOpen, int32(i))
	}
	return l
}

// maxPending keeps the handshakes on their way below every proxy's accept queue (nginx: 511).
const maxPending = 64

func (l *loadLoop) run() {
	runtime.LockOSThread() // and given back, because Pdeathsig ends the children with the thread that started them
	defer runtime.UnlockOSThread()
	for {
		phase := l.g.phase.Load()
		if phase == stopping {
			l.finish()
			return
		}
		if l.phase == opening && phase > opening {
			l.start()
		}
		l.phase = phase
		l.open()
		for _, event := range l.wait() {
			l.ready(event.Fd)
		}
	}
}

// open opens what is closed. After a failure it waits for the next turn.
func (l *loadLoop) open() {
	for len(l.toOpen) > 0 && l.pending < maxPending {
		last := len(l.toOpen) - 1
		i := l.toOpen[last]
		l.toOpen = l.toOpen[:last]
		c := &l.conns[i]
		c.began, c.received = time.Since(l.g.epoch), 0
		fd, errno := connect(syscall.SOCK_STREAM, l.g.address)
		if errno != 0 {
			l.failed(i)
			return
		}
		c.fd = int32(fd)
		l.pending++
		if !l.g.work.kind.churns() { // a single byte needs no TCP_NODELAY
			setOption(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
		}
		if errno := l.add(fd, i, l.greet(c)); errno != 0 {
			l.broken(i)
			return
		}
	}
}

// greet sends the first message of a new connection, and returns the events that it waits for.
func (l *loadLoop) greet(c *loadConn) (events uint32) {
	if l.g.work.kind.refused() { // bytes that nobody reads would make the proxy's system answer with a reset
		c.state = closing
		return readable | edge
	}
	// On loopback the handshake is mostly done by now. Where it is not, there is an event when it is.
	if _, errno := send(int(c.fd), l.g.message); errno != 0 {
		c.state = connecting
		return readable | writable | edge
	}
	c.state = greeting
	return readable | edge
}

// ready goes on with a connection that has an event. Errors show up in the system call that it makes.
func (l *loadLoop) ready(i int32) {
	c := &l.conns[i]
	switch c.state {
	case connecting:
		if _, errno := send(int(c.fd), l.g.message); errno == syscall.EAGAIN {
			return
		} else if errno != 0 {
			l.broken(i)
			return
		}
		c.state = greeting
	case greeting:
		if l.answered(i) {
			l.greeted(i)
		}
	case closing:
		l.ends(i)
	case exchanging:
		if l.answered(i) {
			now := time.Since(l.g.epoch)
			l.note(now - c.began)
			l.exchange(i, now)
		}
	case sending:
		n, errno := send(int(c.fd), l.buffer)
		l.moved(i, n, errno)
	case receiving:
		n, errno := discard(int(c.fd), chunk)
		l.moved(i, n, errno)
	case parked:
		if _, errno := receive(int(c.fd), l.buffer); errno != syscall.EAGAIN { // ended by the other side
			l.broken(i)
		}
	case closed:
	}
}

// answered reads and says whether the answer is complete. One read per event is enough although events are edges:
// it asks for all that may come, so what arrives later makes an edge of its own.
func (l *loadLoop) answered(i int32) bool {
	c, size := &l.conns[i], len(l.g.message)
	n, errno := receive(int(c.fd), l.buffer[:size-int(c.received)])
	switch {
	case errno == syscall.EAGAIN:
		return false
	case errno != 0 || n == 0:
		l.broken(i)
		return false
	}
	c.received += int32(n)
	if int(c.received) < size {
		return false
	}
	c.received = 0
	return true
}

// greeted goes on from the first answer: connections that come and go have done their work, the others wait.
func (l *loadLoop) greeted(i int32) {
	c := &l.conns[i]
	switch l.g.work.kind {
	case closes, logged:
		c.state = closing
		l.ends(i) // the end may have come with the answer
	case resets:
		l.again(i, reset)
	default:
		l.pending--
		l.opened.Add(1)
		c.state = parked
		if l.phase > opening {
			l.begin(i)
		}
	}
}

// ends waits for the end of the connection, which may be a reset where the proxy refuses it.
func (l *loadLoop) ends(i int32) {
	switch n, errno := receive(int(l.conns[i].fd), l.buffer); {
	case errno == syscall.EAGAIN:
	case errno == syscall.ECONNRESET && l.g.work.kind.refused():
		l.again(i, closeSocket)
	case errno != 0 || n > 0:
		l.broken(i)
	default:
		l.again(i, closeSocket)
	}
}

// again counts a connection that has come and gone, and has another one opened.
func (l *loadLoop) again(i int32, end func(fd int)) {
	c := &l.conns[i]
	l.note(time.Since(l.g.epoch) - c.began)
	end(int(c.fd))
	l.pending--
	c.state = closed
	l.toOpen = append(l.toOpen, i)
}

// start sets everything to work that has waited.
func (l *loadLoop) start() {
	for i := range l.conns {
		if l.conns[i].state == parked {
			l.begin(int32(i))
		}
	}
}

func (l *loadLoop) begin(i int32) {
	c := &l.conns[i]
	switch l.g.work.kind {
	case exchanges:
		l.exchange(i, time.Since(l.g.epoch))
	case bulkUp:
		c.state = sending
		if errno := l.modify(int(c.fd), i, writable); errno != 0 {
			l.broken(i)
		}
	case bulkDown:
		c.state = receiving
		errno := l.modify(int(c.fd), i, readable)
		if errno == 0 {
			_, errno = send(int(c.fd), l.g.message) // asks for the flow
		}
		if errno != 0 {
			l.broken(i)
		}
	default:
	}
}

func (l *loadLoop) exchange(i int32, now time.Duration) {
	c := &l.conns[i]
	c.state, c.began = exchanging, now
	if _, errno := send(int(c.fd), l.g.message); errno != 0 { // an empty socket buffer takes a message whole
		l.broken(i)
	}
}

// moved counts one system call of a bulk transfer.
func (l *loadLoop) moved(i int32, n int, errno syscall.Errno) {
	switch {
	case errno == syscall.EAGAIN:
	case errno != 0 || n == 0:
		l.broken(i)
	default:
		l.bytes.Add(int64(n))
	}
}

// broken gives up a connection that has a descriptor.
func (l *loadLoop) broken(i int32) {
	c := &l.conns[i]
	if c.pending() {
		l.pending--
	}
	reset(int(c.fd))
	l.failed(i)
}

func (l *loadLoop) failed(i int32) {
	l.failures.Add(1)
	l.conns[i].state = closed
	if l.g.work.kind.churns() {
		l.toOpen = append(l.toOpen, i)
	}
}

// finish closes all connections.
func (l *loadLoop) finish() {
	now := time.Since(l.g.epoch)
	for i := range l.conns {
		c := &l.conns[i]
		if c.state == closed {
			continue
		}
		if c.state == exchanging || c.pending() {
			l.unfinished(now - c.began)
		}
		reset(int(c.fd))
	}
}
