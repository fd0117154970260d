package main

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"syscall"
	"time"
)

// datagramConn is one UDP session of a loop: a connected socket.
type datagramConn struct {
	fd       int32
	state    connState
	sequence uint64        // of the last message; an answer to an earlier one comes too late
	began    time.Duration // when it was sent, since the generator's epoch
}

// awaits says whether an answer is on its way, or lost.
func (c *datagramConn) awaits() bool { return c.state == greeting || c.state == exchanging }

// datagramLoop is a loop of UDP sessions. Each begins with an exchange, whatever it does then.
type datagramLoop struct {
	*poller
	tally
	g       *generator
	conns   []datagramConn
	next    int // to be opened
	pending int // those whose first answer is awaited
	message []byte
	load    []byte // what goes one way
	buffer  []byte
	checked time.Duration // when the loop last looked for what is lost
	pace    pace
}

const (
	// lossTimeout is longer than a busy machine delays an answer, and short enough to see a lost one in a round.
	lossTimeout  = 250 * time.Millisecond
	lossInterval = 10 * time.Millisecond

	// floodTurn is how many datagrams a session sends before it is the next one's turn.
	floodTurn = 16
)

func newDatagramLoop(p *poller, g *generator, sessions int) *datagramLoop {
	return &datagramLoop{
		poller: p, g: g, conns: make([]datagramConn, sessions),
		message: bytes.Repeat([]byte{modeEcho}, exchangeBytes), buffer: make([]byte, 2*exchangeBytes),
		load: g.message,
		pace: pace{perSecond: int64(pacedPerSecond * sessions / g.work.connections)},
	}
}

func (l *datagramLoop) run() {
	runtime.LockOSThread() // see loadLoop.run
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
		switch {
		case phase > opening && l.g.work.kind == flood:
			l.send(floodTurn * len(l.conns))
		case phase > opening && l.g.work.kind == paced:
			l.send(l.pace.due(time.Since(l.g.epoch)))
			nap()
		default:
			l.open()
			for _, event := range l.wait() {
				l.ready(&l.conns[event.Fd])
			}
			l.expire()
		}
	}
}

// open opens sessions, as many at a time as a proxy's socket has room for.
func (l *datagramLoop) open() {
	for l.next < len(l.conns) && l.pending < maxPending {
		c := &l.conns[l.next]
		l.next++
		fd, errno := connect(syscall.SOCK_DGRAM, l.g.address)
		if errno != 0 {
			l.failures.Add(1)
			continue
		}
		c.fd, c.state = int32(fd), greeting
		l.pending++
		if errno := l.add(fd, int32(l.next-1), readable|edge); errno != 0 {
			l.broken(c)
			continue
		}
		l.say(c)
	}
}

// say sends the next message.
func (l *datagramLoop) say(c *datagramConn) {
	c.sequence++
	c.began = time.Since(l.g.epoch)
	binary.BigEndian.PutUint64(l.message[1:], c.sequence) // the first byte is the mode
	if _, errno := send(int(c.fd), l.message); errno != 0 {
		l.broken(c)
	}
}

// ready reads up to the answer that is awaited. What follows it makes an event of its own.
func (l *datagramLoop) ready(c *datagramConn) {
	for c.state != closed {
		n, errno := receive(int(c.fd), l.buffer)
		if errno == syscall.EAGAIN {
			return
		}
		if errno != 0 || n != len(l.message) || l.buffer[0] != modeEcho {
			l.broken(c)
			return
		}
		switch sequence := binary.BigEndian.Uint64(l.buffer[1:]); {
		case sequence > c.sequence:
			l.broken(c)
		case sequence == c.sequence && c.awaits():
			l.answered(c)
			return
		}
	}
}

func (l *datagramLoop) answered(c *datagramConn) {
	if c.state == greeting {
		l.pending--
		l.opened.Add(1)
		c.state = parked
		if l.phase > opening {
			l.begin(c)
		}
		return
	}
	l.note(time.Since(l.g.epoch) - c.began)
	l.say(c)
}

// expire goes on where an answer is lost.
func (l *datagramLoop) expire() {
	now := time.Since(l.g.epoch)
	if now-l.checked < lossInterval {
		return
	}
	l.checked = now
	for i := range l.conns {
		if c := &l.conns[i]; c.awaits() && now-c.began > lossTimeout {
			l.lost.Add(1)
			l.say(c)
		}
	}
}

// start sets everything to work that has waited.
func (l *datagramLoop) start() {
	l.pace.sent = l.pace.at(time.Since(l.g.epoch))
	for i := range l.conns {
		if l.conns[i].state == parked {
			l.begin(&l.conns[i])
		}
	}
}

func (l *datagramLoop) begin(c *datagramConn) {
	switch {
	case l.g.work.kind == exchanges:
		c.state = exchanging
		l.say(c)
	case l.g.work.kind.oneWay():
		c.state = sending
	}
}

// send sends so many datagrams that nobody answers, in turns.
func (l *datagramLoop) send(datagrams int) {
	for ; datagrams > 0; datagrams -= floodTurn {
		c := &l.conns[l.next%len(l.conns)]
		l.next++
		if c.state != sending {
			continue
		}
		for range min(datagrams, floodTurn) {
			if _, errno := send(int(c.fd), l.load); errno != 0 {
				l.broken(c)
				break
			}
			l.sent.Add(1)
		}
	}
}

// broken gives up a session that has a descriptor.
func (l *datagramLoop) broken(c *datagramConn) {
	if c.state == greeting {
		l.pending--
	}
	c.state = closed
	closeSocket(int(c.fd))
	l.failures.Add(1)
}

// finish closes all sessions.
func (l *datagramLoop) finish() {
	now := time.Since(l.g.epoch)
	for i := range l.conns {
		c := &l.conns[i]
		if c.state == exchanging {
			l.unfinished(now - c.began)
		}
		if c.state != closed {
			closeSocket(int(c.fd))
		}
	}
}

// pace says when to send.
type pace struct {
	perSecond, sent int64
}

// paceMemory is for how long a client that was held up makes up for it: it would else send a burst that no pace has.
const paceMemory = 2 * time.Millisecond

// at returns how many datagrams there are from the epoch until now.
func (p *pace) at(now time.Duration) int64 { return p.perSecond * now.Microseconds() / 1e6 }

// due returns how many to send now, as if they were sent.
func (p *pace) due(now time.Duration) int {
	p.sent = max(p.sent, p.at(now-paceMemory))
	due := p.at(now) - p.sent
	p.sent += due
	return int(due)
}
