package relay

import (
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These tests count what a loop does before it serves a session that has little to move, and between two times that it does: a test that
// takes the time would tell of a busy machine.

// witness is a Pacer that sets no limit, and is called when bytes of its stream were sent.
type witness func()

func (witness) Quantum() int { return loopBuffer }

func (w witness) Moved(n int) time.Duration {
	if n > 0 {
		w()
	}
	return 0
}

// stillStream is a stream of a loop that does not run, and its two ends.
type stillStream struct {
	*loopStream
	theirs stream
	server net.Conn
}

// newStillStream connects a stream. sentUp is called when bytes were sent to the upstream.
func newStillStream(t testing.TB, l *loop, sentUp func()) *stillStream {
	t.Helper()
	ours, theirs := acceptTCP(t)
	fd, ok := detachable{ours.(*net.TCPConn)}.Detach()
	if !ok {
		t.Fatal("not detached")
	}
	ln := listenTCP(t)
	r := New(Config{PaceUp: witness(sentUp)})
	s := &loopStream{Relay: r, loopState: loopState{loop: l, opened: r.start.Sub(epoch)}}
	s.timer.of, s.client = s, half{stream: s, fd: fd}
	s.ctx = s.dialContext()
	s.connectTo(ln.Addr())
	eventually(t, "connection", func() bool {
		turn(l)
		return s.phase == phaseOpen
	})
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []net.Conn{theirs, server} {
		_ = end.SetDeadline(time.Now().Add(patience))
	}
	t.Cleanup(func() {
		s.close(testOver)
		theirs.Close()
		server.Close()
	})
	return &stillStream{s, theirs, server}
}

// ask has the client send a byte, and waits until it is there.
func (s *stillStream) ask(t testing.TB) {
	t.Helper()
	if _, err := s.theirs.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	socket := []unix.PollFd{{Fd: int32(s.loopStream.client.fd), Events: unix.POLLIN}}
	eventually(t, "byte", func() bool {
		n, _ := unix.Poll(socket, 0)
		return n > 0
	})
}

// turn is a round of a loop that runs.
func turn(l *loop) {
	l.poll(uintptr(l.epoll))
	l.round()
}

func TestBulkComesAfterSessionsThatWantLittle(t *testing.T) {
	t.Parallel()
	const (
		many, rounds = 8, 50
		size         = smallQuantum / 2 // less than a quantum, so that no session is queued already
	)
	l := still(t)
	bulk := make([]*stillStream, many)
	moved := func() (n int64) {
		for _, s := range bulk {
			n += s.down.Load()
		}
		return n
	}
	served, then := 0, int64(0)
	little := newStillStream(t, l, func() { served, then = served+1, moved() })
	for i := range bulk {
		bulk[i] = newStillStream(t, l, func() {})
		go func() { _, _ = io.Copy(io.Discard, bulk[i].theirs) }()
	}
	for round := range rounds {
		for _, s := range bulk { // epoll reports them first
			s.upstream.bulk = true
			if _, err := s.server.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
		}
		little.ask(t)
		before := moved()
		served = 0
		turn(l)
		if served != 1 || then != before {
			t.Fatalf("round %d: served %d times, after %d bytes of bulk", round, served, then-before)
		}
	}
	if moved() < rounds/2*many*size {
		t.Errorf("%d bytes of bulk in %d rounds", moved(), rounds)
	}
}

// forged is a client that is only counted.
type forged struct{ path }

func (*forged) Close() error { return nil }

// A flood of forged datagrams at the cap on sessions: each opens a socket to the upstream and closes another one.
func TestFloodOfNewSessionsBetweenTwoServices(t *testing.T) {
	t.Parallel()
	const many = 300
	l := still(t)
	served := 0
	little := newStillStream(t, l, func() { served++ })
	upstream := packetEngines[0].listen(t).LocalAddr()
	for range many {
		f := &loopPackets{PacketRelay: NewPacket(PacketConfig{}), loopState: loopState{loop: l}, client: new(forged), fd: -1}
		f.timer.of, f.opened = f, f.start.Sub(epoch)
		f.cancel = func() {}
		l.post(message{to: f, what: orderConnect, addr: upstream})
		l.post(message{to: f, what: orderCut, reason: Evicted})
	}
	waiting := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		in := &l.inbox[inboxPackets]
		return len(in.posted) + len(in.batch) - in.done
	}
	for round := 0; waiting() > 0; round++ {
		little.ask(t)
		before := waiting()
		served = 0
		turn(l)
		if n := before - waiting(); served != 1 || n < 1 || n > messagesPerRound {
			t.Fatalf("round %d: served %d times, and %d messages handled, want 1 to %d", round, served, n, messagesPerRound)
		}
	}
}
