package network

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// maxNew is how many sessions may wait for a place and to be accepted: what arrives while the processors are
// busy with something else, as in an accept queue of TCP.
const maxNew = 1024

// packetSocket is the UDP socket of an address. Its receive loop never blocks: what nobody takes in time is
// dropped and counted.
type packetSocket struct {
	lineage
	network  string // as in the listen address
	listener *packetListener
	accepted chan *PacketSession
	settings atomic.Pointer[settings] // of the config that accepts
	held     atomic.Int64             // bytes in inboxes

	stop    chan struct{}
	stopped chan struct{} // closed when the receive loop has ended
	rest                  // belongs to the receive loop

	mu    sync.Mutex
	table *table
	refs  int // sessions that have a place, and the socket itself until it is destructed
}

func openPacketSocket(ctx context.Context, ep endpoint, cfg net.ListenConfig, settings *settings) (*packetSocket, error) {
	ln, err := listenPackets(ctx, cfg, ep)
	if err != nil {
		return nil, err
	}
	descriptors.Opened(1)
	s := newPacketSocket(settings)
	s.listener, s.network = ln, ep.Name
	deliver := s.deliver // made once, and not with each batch
	go s.loop(func() error { return ln.receive(deliver) })
	return s, nil
}

func newPacketSocket(settings *settings) *packetSocket {
	s := &packetSocket{
		accepted: make(chan *PacketSession, maxNew),
		stop:     make(chan struct{}),
		stopped:  make(chan struct{}),
		table:    newTable(),
		refs:     1,
	}
	s.settings.Store(settings)
	s.activated = func(g *generation) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.settings.Store(&g.settings)
		s.handOver() // it may have more places
	}
	return s
}

// Addr returns the address that the socket is bound to.
func (s *packetSocket) Addr() net.Addr { return s.listener.Addr() }

// Destruct makes the address free and ends all sessions. What is left of the socket is closed with the last one.
func (s *packetSocket) Destruct() error {
	s.destruct()
	close(s.stop)
	s.listener.interrupt()
	<-s.stopped
	err := s.listener.leave()

	s.mu.Lock()
	sessions := s.table.all()
	s.table = newTable()
	for _, c := range sessions {
		c.entry.client = nil
	}
	s.mu.Unlock()
	for _, c := range sessions {
		c.end(session.ReasonOfConfigsEnd())
	}
	for len(s.accepted) > 0 { // nobody receives any more, or sends: the new table has none that wait
		_ = (<-s.accepted).Close()
	}
	descriptors.Opened(-1)
	s.release(false)
	return err
}

func (s *packetSocket) sharePort(on bool) error { return s.listener.sharePort(on) }

// hide leaves what arrives from now on to a socket that overlaps.
func (s *packetSocket) hide() bool { return s.listener.hide() }

// settle waits until the clients have answers to what a hidden socket has received, at the latest until the given time. Questions of
// clients that came before are few: most have been answered by now.
func (s *packetSocket) settle(until time.Time) {
	wait := func() bool {
		time.Sleep(settlePause)
		return time.Now().Before(until)
	}
	for !s.listener.isEmpty() {
		if !wait() {
			return
		}
	}
	s.mu.Lock()
	waiting := s.table.all() // nothing arrives that could begin others
	s.mu.Unlock()
	for {
		waiting = slices.DeleteFunc(waiting, func(c *PacketSession) bool { return !c.unanswered() })
		if len(waiting) == 0 || !wait() {
			return
		}
	}
}

// settlePause is how often settle looks.
const settlePause = 5 * time.Millisecond

// loop receives until the socket is destructed. Errors do not end it.
func (s *packetSocket) loop(receive func() error) {
	defer close(s.stopped)
	failures := 0
	for {
		err := receive()
		select {
		case <-s.stop:
			return
		default:
		}
		if err == nil {
			failures = 0
			continue
		}
		s.pause(s.stop, failures, "receiving datagrams failed, trying again",
			zap.String("network", s.network), zap.Stringer("address", s.Addr()), zap.Error(err))
		failures++
	}
}

// deliver is called by the receive loop with every datagram.
func (s *packetSocket) deliver(f *fiveTuple, b []byte, truncated bool) {
	settings := s.settings.Load()
	settings.counts.Up.Add(1)
	if truncated {
		settings.counts.Dropped[listeners.DropTruncated].Add(1)
		return
	}
	d := datagram{tuple: f, payload: b}
	if o := settings.opening; o != nil && !s.open(o, &d, settings) {
		return
	}
	s.pass(&d, settings)
}

// pass gives a datagram to its session.
func (s *packetSocket) pass(d *datagram, settings *settings) {
	// A session that is gone when it gets the datagram has left the table: the next one is another.
	for outcome := gone; outcome == gone; {
		s.mu.Lock()
		c := s.table.sessionOf(d)
		if c == nil && d.joins {
			s.mu.Unlock()
			settings.opening.refuse(d.tuple, settings, errHeaderOfFirst)
			return
		}
		if c == nil {
			s.begin(d, settings)
			return
		}
		s.table.promote(c, answered)
		s.mu.Unlock()
		if outcome = c.deliver(d.payload); outcome == full {
			settings.counts.Dropped[listeners.DropQueueFull].Add(1)
		}
	}
}

// begin starts a session with its first datagram, if it may be. It unlocks the mutex.
func (s *packetSocket) begin(d *datagram, settings *settings) {
	leaves, why, ok := s.admit(d, settings)
	s.mu.Unlock()
	if leaves != nil {
		settings.counts.Evicted.Add(1)
		leaves.end("evicted")
	}
	if !ok {
		settings.counts.Dropped[why].Add(1)
	}
}

// admit makes a new session, and says which one leaves for it; or why it may not be.
func (s *packetSocket) admit(d *datagram, settings *settings) (leaves *PacketSession, why listeners.DropReason, ok bool) {
	if len(s.accepted)+s.table.queued >= maxNew {
		return nil, listeners.DropAcceptQueue, false
	}
	leaves, why, ok = s.table.room(d.clientKey(), s.bounded(settings.packets))
	if !ok {
		return nil, why, false
	}
	c := &PacketSession{socket: s, tuple: *d.tuple, inbox: new(inbox)}
	c.proxied = d.proxiedBy(settings.opening)
	c.inbox.arrived.L = &c.mu
	c.path = s.listener.replyPath(d.tuple)
	c.deliver(d.payload) // nobody else knows it yet, so the order of the mutexes does not matter
	s.table.add(c)
	s.handOver()
	return leaves, 0, true
}

// evict ends the oldest session of a tier, other than c. It reports false where there is none.
func (s *packetSocket) evict(t tier, c *PacketSession) bool {
	s.mu.Lock()
	leaves := s.table.oldestBut(t, c)
	if leaves != nil {
		s.table.remove(leaves)
		s.settings.Load().counts.Evicted.Add(1)
	}
	s.mu.Unlock()
	if leaves != nil {
		leaves.end("evicted")
	}
	return leaves != nil
}

// bounded lowers the limit to what the socket has, where there are no descriptors for more: then a new session takes the place of
// another one.
func (s *packetSocket) bounded(limits sessionLimits) sessionLimits {
	reserve := s.settings.Load().reserve
	if s.refs > 1 && !descriptors.Left(descriptors.PerDatagrams, reserve) {
		limits.total = min(limits.total, s.table.count())
	}
	return limits
}

// handOver gives places to the sessions that wait for one, as long as there are any. A session has its place
// until it is closed: one that was evicted still has a handler, and descriptors, until then. Where a reload has
// lowered the limit, what has left the table is still replaced.
func (s *packetSocket) handOver() {
	limits := s.settings.Load().packets
	for s.table.queued > 0 && s.refs-1 < max(limits.total, s.table.count()) && s.takeDescriptors() {
		s.refs++
		s.accepted <- s.table.next() // does not wait: admit has seen to it that all who wait find room
	}
}

// takeDescriptors takes those of one session. The first session of a socket always gets them: whoever waits for a place is given one
// when another session of the socket ends.
func (s *packetSocket) takeDescriptors() bool {
	if s.refs == 1 {
		descriptors.MustTake(descriptors.PerDatagrams)
		return true
	}
	return descriptors.Take(descriptors.PerDatagrams, s.settings.Load().reserve)
}

// acceptFor waits for a session on behalf of g, the active generation, until g is closed. Sessions that g does
// not take are there for the next generation.
func (s *packetSocket) acceptFor(g *generation) (accepted, error) {
	for !g.isClosed() {
		select {
		case <-g.closed:
		case c := <-s.accepted:
			if c.ended.Load() {
				_ = c.Close()
				continue
			}
			c.counts, c.listenerAddr = g.settings.counts, g.listener
			c.remote, c.local = c.tuple.remoteAddr(), c.tuple.localAddr(s.listener.addr)
			return c, nil
		}
	}
	return nil, net.ErrClosed
}

// answered is called when the first reply of c has been sent.
func (s *packetSocket) answered(c *PacketSession) {
	s.mu.Lock()
	s.table.promote(c, unanswered)
	s.mu.Unlock()
}

// forget takes c out of the table.
func (s *packetSocket) forget(c *PacketSession) {
	s.mu.Lock()
	s.table.remove(c)
	s.mu.Unlock()
}

// release is called when a session that had a place is closed, and when the socket is destructed.
func (s *packetSocket) release(ofSession bool) {
	s.mu.Lock()
	s.refs--
	if ofSession {
		descriptors.Release(descriptors.PerDatagrams)
	}
	s.handOver()
	last := s.refs == 0
	s.mu.Unlock()
	if last {
		s.listener.close()
	}
}
