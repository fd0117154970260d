package network

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/global"
	"github.com/portgate/caddy-portgate/modules/internal/listeners"
)

var lastListener atomic.Int32

// defaultLimits are those of a config without the app `portgate`.
var defaultLimits = sessionLimits{total: global.Defaults().UDPMaxSessions, perClient: global.Defaults().UDPMaxSessionsPerClient}

// newTestSocket returns a socket without a descriptor, with counts of its own.
func newTestSocket(limits sessionLimits) *packetSocket {
	counts := listeners.DatagramsOf(fmt.Sprintf("test:%d", lastListener.Add(1)))
	s := newPacketSocket(&settings{packets: limits, counts: counts})
	s.listener = &packetListener{addr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 53}}
	return s
}

// from is a client.
func from(n int) *fiveTuple { return &fiveTuple{client: mappedTo(byte(n)), port: uint32(1000 + n)} }

// arrive is a datagram from the client. It returns the new session if it began one.
func (s *packetSocket) arrive(n int, b []byte) *PacketSession {
	s.deliver(from(n), b, false)
	select {
	case c := <-s.accepted:
		c.counts = s.settings.Load().counts
		c.remote, c.local = c.tuple.remoteAddr(), s.listener.addr
		return c
	default:
		return nil
	}
}

func (s *packetSocket) dropped(reason listeners.DropReason) int64 {
	return s.settings.Load().counts.Dropped[reason].Load()
}

// receiveNothing throws away what comes.
func receiveNothing([]byte) bool { return true }

func expectRead(t *testing.T, c *PacketSession, size int, want string) {
	t.Helper()
	b := make([]byte, size)
	if n, err := c.Read(b); err != nil || string(b[:n]) != want {
		t.Errorf("got %q, %v, want %q", b[:n], err, want)
	}
}

func TestReadKeepsBoundaries(t *testing.T) {
	t.Parallel()
	s := newTestSocket(defaultLimits)
	c := s.arrive(1, []byte("first"))
	for _, b := range []string{"", "second", "third"} {
		s.arrive(1, []byte(b))
	}
	expectRead(t, c, 100, "first")
	expectRead(t, c, 100, "")
	expectRead(t, c, 4, "seco")
	expectRead(t, c, 100, "nd")
	expectRead(t, c, 100, "third")
}

func TestReadEndsASilentSession(t *testing.T) {
	t.Parallel()
	s := newTestSocket(defaultLimits)
	for silent, want := range map[time.Duration]error{idleTimeout - time.Minute/2: os.ErrDeadlineExceeded, idleTimeout: io.EOF} {
		c := s.arrive(int(silent/time.Second), []byte("hello"))
		expectRead(t, c, 100, "hello")
		c.active.Store(int64(time.Since(epoch) - silent))
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := c.Read(make([]byte, 10)); n > 0 || !errors.Is(err, want) {
			t.Errorf("silent for %v: %d, %v, want %v", silent, n, err, want)
		}
		if s.arrive(int(silent/time.Second), nil) != nil != (want == io.EOF) {
			t.Errorf("silent for %v: the next datagram begins a session, or does not", silent)
		}
	}
}

func TestWhatIsNotTakenBeginsAnotherSession(t *testing.T) {
	t.Parallel()
	s := newTestSocket(defaultLimits)
	c := s.arrive(1, []byte("first"))
	var got []string
	if !c.Attach(func(b []byte) bool { got = append(got, string(b)); return len(got) < 3 }, func(string) {}) {
		t.Fatal("not attached")
	}
	if s.arrive(1, []byte("second")) != nil {
		t.Error("another session for what was taken")
	}
	next := s.arrive(1, []byte("third")) // c is not closed yet
	if next == nil {
		t.Fatalf("no session for what was not taken of %q", got)
	}
	s.arrive(1, []byte("fourth"))
	expectRead(t, next, 100, "third")
	expectRead(t, next, 100, "fourth")
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	s.arrive(1, []byte("fifth"))
	expectRead(t, next, 100, "fifth")
	if len(got) != 3 {
		t.Errorf("received %q after it had refused one", got)
	}
}

func TestAttachGivesAgainWhatWasRead(t *testing.T) {
	t.Parallel()
	s := newTestSocket(defaultLimits)
	c := s.arrive(1, []byte("first"))
	s.arrive(1, nil)
	s.arrive(1, []byte("third"))
	expectRead(t, c, 100, "first")
	expectRead(t, c, 100, "")
	expectRead(t, c, 2, "th")
	var got []string
	receive := func(b []byte) bool { got = append(got, string(b)); return true }
	if !c.Attach(receive, func(string) {}) {
		t.Fatal("not attached")
	}
	if c.Attach(receive, func(string) {}) {
		t.Error("attached twice")
	}
	s.arrive(1, []byte("fourth"))
	if want := "first,,third,fourth"; strings.Join(got, ",") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if n, err := c.Read(make([]byte, 10)); n != 0 || err != io.EOF {
		t.Errorf("a read beside: %d, %v", n, err)
	}
	_ = c.Close()
	s.arrive(1, []byte("fifth"))
	if len(got) != 4 {
		t.Error("received after the close")
	}
	if held := s.held.Load(); held != 5 {
		t.Errorf("%d bytes are held, want those of the new session", held)
	}
}

func TestAttachAfterTooMuchWasRead(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		size, count int
		attaches    bool
	}{
		"what matchers may read": {2048, 9, true},
		"more bytes":             {2048, 11, false},
		"many":                   {1, 64, true},
		"too many":               {1, 65, false},
	} {
		s := newTestSocket(defaultLimits)
		c := s.arrive(1, make([]byte, test.size))
		for i := range test.count {
			if i > 0 {
				s.arrive(1, make([]byte, test.size))
			}
			expectRead(t, c, test.size, string(make([]byte, test.size)))
		}
		if c.Attach(receiveNothing, func(string) {}) != test.attaches {
			t.Errorf("%s: attached: %v", name, !test.attaches)
		}
		if !test.attaches && s.held.Load() != 0 {
			t.Errorf("%s: %d bytes are held", name, s.held.Load())
		}
	}
}

func TestInboxIsBounded(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ first, size, fit int }{
		"datagrams":           {1, 1, 64},
		"empty ones":          {0, 0, 64},
		"bytes":               {1 << 15, 1 << 15, 4},
		"a large one is last": {1, 65507, 3},
		"or alone":            {65507, 65507, 2},
	} {
		s := newTestSocket(defaultLimits)
		c := s.arrive(1, make([]byte, test.first))
		for range 99 {
			s.arrive(1, make([]byte, test.size))
		}
		if got := s.dropped(listeners.DropQueueFull); got != int64(100-test.fit) {
			t.Errorf("%s: %d were dropped, want %d", name, got, 100-test.fit)
		}
		received := 0
		c.Attach(func([]byte) bool { received++; return true }, func(string) {})
		if received != test.fit {
			t.Errorf("%s: received %d, want %d", name, received, test.fit)
		}
	}
}

func TestInboxesTogetherAreBounded(t *testing.T) {
	t.Parallel()
	s := newTestSocket(sessionLimits{total: 1 << 20, perClient: 1 << 20})
	large := make([]byte, 65000)
	var sessions []*PacketSession
	for n := range maxNew {
		s.deliver(&fiveTuple{port: uint32(n)}, large, false)
		s.deliver(&fiveTuple{port: uint32(n)}, large, false)
		sessions = append(sessions, <-s.accepted)
	}
	if held := s.held.Load(); held > maxHeldBytes+int64(len(large))*maxNew || s.dropped(listeners.DropQueueFull) < 100 {
		t.Errorf("%d bytes are held, %d datagrams were dropped", held, s.dropped(listeners.DropQueueFull))
	}
	for _, c := range sessions {
		_ = c.Close()
	}
	if held := s.held.Load(); held != 0 {
		t.Errorf("%d bytes are held when all is closed", held)
	}
}

// The larger part of a flood finds its place taken by what comes after it, but never that of a client which was seen to receive.
func TestFloodEvictsNoEstablishedSession(t *testing.T) {
	t.Parallel()
	s := newTestSocket(sessionLimits{total: 100, perClient: 100})
	var ended []string
	for n := range 3 {
		c := s.arrive(n, []byte("hello"))
		c.Attach(receiveNothing, func(reason string) {
			ended = append(ended, fmt.Sprint(n, " ", reason))
			_ = c.Close()
		})
		if n > 0 {
			c.Answered()
		}
		if n > 1 {
			s.arrive(n, []byte("thanks"))
		}
	}
	for port := range 10_000 {
		s.deliver(&fiveTuple{client: [16]byte{0: 0x20, 7: byte(port), 6: byte(port >> 8)}, port: uint32(port)}, nil, false)
		if c := <-s.accepted; c.ended.Load() {
			t.Fatal("the youngest has ended")
		} else if c.Attach(receiveNothing, func(string) { _ = c.Close() }); port%2 == 0 {
			c.Answered() // half of the flood even gets replies
			if port > 5000 {
				_ = c.Close()
			}
		}
		if len(s.table.sessions) > 100 {
			t.Fatalf("%d sessions", len(s.table.sessions))
		}
	}
	if got := strings.Join(ended, ","); got != "0 evicted,1 evicted" {
		t.Errorf("ended: %q", got)
	}
	if evicted := s.settings.Load().counts.Evicted.Load(); evicted < 500 {
		t.Errorf("%d were counted", evicted)
	}
}

func TestOneClientKeepsToItsOwn(t *testing.T) {
	t.Parallel()
	s := newTestSocket(sessionLimits{total: 100, perClient: 3})
	other := s.arrive(1, nil)
	var own []*PacketSession
	for port := range uint32(5) {
		s.deliver(&fiveTuple{client: mappedTo(2), port: port}, nil, false)
		own = append(own, <-s.accepted)
	}
	for i, c := range append(own, other) {
		if ended := c.ended.Load(); ended != (i < 2) {
			t.Errorf("%d: ended: %v", i, ended)
		}
	}
	for port := range uint32(5) { // all speak after a reply
		if c := own[port]; !c.ended.Load() {
			c.Answered()
			s.deliver(&c.tuple, nil, false)
		}
	}
	s.deliver(&fiveTuple{client: mappedTo(2), port: 99}, nil, false)
	if len(s.accepted) != 0 || s.dropped(listeners.DropClientLimit) != 1 {
		t.Error("a fourth session of a client whose three are established")
	}
}

func TestNewSessionsAreBounded(t *testing.T) {
	t.Parallel()
	s := newTestSocket(sessionLimits{total: 10_000, perClient: 10_000})
	for port := range uint32(maxNew + 5) {
		s.deliver(&fiveTuple{port: port}, nil, false) // would block if the queue were not looked at
	}
	if got := s.dropped(listeners.DropAcceptQueue); got != 5 || len(s.table.sessions) != maxNew {
		t.Errorf("%d were dropped, and there are %d sessions", got, len(s.table.sessions))
	}
}

func TestClosedSessionMakesWay(t *testing.T) {
	t.Parallel()
	s := newTestSocket(defaultLimits)
	c := s.arrive(1, []byte("one"))
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a second close: %v", err)
	}
	if n, err := c.Write([]byte("late")); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write: %d, %v", n, err)
	}
	if c.Attach(receiveNothing, func(string) {}) {
		t.Error("attached to a closed session")
	}
	next := s.arrive(1, []byte("two"))
	if next == nil || next == c {
		t.Fatal("no new session")
	}
	expectRead(t, next, 10, "two")
}

func TestClosedMayClose(t *testing.T) {
	t.Parallel()
	s := newTestSocket(sessionLimits{total: 1, perClient: 1})
	c := s.arrive(1, nil)
	ends := 0
	c.Attach(receiveNothing, func(reason string) {
		ends++
		_ = c.Close()
	})
	s.arrive(2, nil)
	s.arrive(3, nil)
	if ends != 1 {
		t.Errorf("ended %d times", ends)
	}
	if s.refs != 2 || s.table.queued != 1 { // the socket and the session of 2 that has ended, for which 3 waits
		t.Errorf("%d references, %d wait", s.refs, s.table.queued)
	}
}

func TestDetachedConnStays(t *testing.T) {
	t.Parallel()
	s := newTestSocket(defaultLimits)
	c := s.arrive(1, nil)
	conn := c.forServer(nil).(*PacketConn)
	detached, ok := conn.Detach()
	if !ok || detached != net.Conn(c) {
		t.Errorf("got %v, %v", detached, ok)
	}
	if err := conn.Close(); !errors.Is(err, net.ErrClosed) || c.ended.Load() {
		t.Errorf("the close: %v", err)
	}
	_ = c.Close()

	conn = s.arrive(2, nil).forServer(nil).(*PacketConn)
	if err := conn.Close(); err != nil || !conn.session.ended.Load() {
		t.Errorf("the close of one that was not detached: %v", err)
	}
	if _, ok := conn.Detach(); ok {
		t.Error("detached after the close")
	}
}

func TestReadDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestSocket(defaultLimits)
		c := s.arrive(1, []byte("x"))
		b := make([]byte, 10)
		start := time.Now()
		_ = c.SetReadDeadline(start.Add(3 * time.Second))
		expectRead(t, c, 10, "x")
		if _, err := c.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		var timeout net.Error
		if _, err := c.Read(b); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("the second time: %v", err)
		}

		// A deadline that is set wakes all who read, and one that is taken back lets them wait.
		var readers sync.WaitGroup
		_ = c.SetReadDeadline(time.Time{})
		for range 3 {
			readers.Go(func() {
				if _, err := c.Read(b[:0]); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("got %v", err)
				}
			})
		}
		synctest.Wait()
		_ = c.SetDeadline(time.Now())
		readers.Wait()
		_ = c.SetReadDeadline(time.Time{})
		s.arrive(1, []byte("y"))
		expectRead(t, c, 10, "y")
	})
}

func TestIdleSessionEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestSocket(defaultLimits)
		c := s.arrive(1, nil)
		start := time.Now()
		expectRead(t, c, 10, "")
		go func() {
			time.Sleep(50 * time.Second)
			s.arrive(1, []byte("still there"))
		}()
		expectRead(t, c, 100, "still there")
		n, err := c.Read(make([]byte, 10))
		if took := time.Since(start).Round(time.Microsecond); n != 0 || err != io.EOF || took != 110*time.Second { // see toClient
			t.Errorf("got %d, %v after %v", n, err, took)
		}
		if s.arrive(1, nil) == nil {
			t.Error("no new session")
		}
		_ = c.Close()
	})
}

func TestEndWakesReaders(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*PacketSession){
		"close":   func(c *PacketSession) { _ = c.Close() },
		"evicted": func(c *PacketSession) { c.end("evicted") },
		"attach":  func(c *PacketSession) { c.Attach(receiveNothing, func(string) {}) },
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newTestSocket(defaultLimits)
			c := s.arrive(1, nil)
			expectRead(t, c, 10, "")
			var readers sync.WaitGroup
			for range 3 {
				readers.Go(func() {
					if _, err := c.Read(make([]byte, 1)); err != io.EOF {
						t.Errorf("%s: %v", name, err)
					}
				})
			}
			synctest.Wait()
			start := time.Now()
			end(c)
			readers.Wait()
			if time.Since(start) != 0 {
				t.Errorf("%s: only after %v", name, time.Since(start))
			}
		})
	}
}

// TestSessionsInAnyOrder has everything that may happen to sessions happen at the same time.
func TestSessionsInAnyOrder(t *testing.T) {
	t.Parallel()
	s := newTestSocket(sessionLimits{total: 8, perClient: 4})
	var handlers sync.WaitGroup
	var received, given, open atomic.Int64
	handle := func(c *PacketSession, kind int) {
		defer func() {
			open.Add(-1)
			_ = c.Close()
		}()
		b := make([]byte, 100)
		_ = c.SetReadDeadline(time.Now().Add(time.Duration(kind%3) * time.Millisecond))
		if kind%2 == 0 {
			n, _ := c.Read(b)
			if n > 0 && !bytes.Equal(b[:n], bytes.Repeat(b[:1], n)) {
				t.Errorf("got %q", b[:n])
			}
		}
		closed := make(chan string, 2)
		var in atomic.Bool
		ok := c.Attach(func(b []byte) bool {
			if in.Swap(true) {
				t.Error("received two at a time")
			}
			received.Add(1)
			in.Store(false)
			return true
		}, func(reason string) { closed <- reason })
		if !ok {
			return
		}
		c.Answered()
		if kind%5 == 0 {
			<-closed
		}
	}
	go func() {
		defer close(s.stopped)
		defer close(s.accepted)
		for n := 0; n < 20_000 || received.Load() == 0 && t.Context().Err() == nil; n++ {
			s.deliver(&fiveTuple{client: mappedTo(byte(n % 7)), port: uint32(n % 5)}, bytes.Repeat([]byte{'a' + byte(n%20)}, n%90), false)
			given.Add(1)
		}
		s.mu.Lock()
		sessions := s.table.sessions
		s.table = newTable()
		s.mu.Unlock()
		for _, c := range sessions {
			c.end("drain")
		}
	}()
	kind := 0
	for c := range s.accepted {
		if n := open.Add(1); n > 8 {
			t.Errorf("%d sessions are open", n)
		}
		kind++
		this := kind
		handlers.Go(func() { handle(c, this) })
	}
	handlers.Wait()
	if s.refs != 1 || s.held.Load() != 0 {
		t.Errorf("%d references, %d bytes are left", s.refs, s.held.Load())
	}
	if received.Load() == 0 {
		t.Error("nothing was received")
	}
}

func TestErrorsDoNotEndTheReceiveLoop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestSocket(defaultLimits)
		var pauses []time.Duration
		last := time.Now()
		go s.loop(func() error {
			pauses = append(pauses, time.Since(last))
			last = time.Now()
			if len(pauses) == 5 {
				return nil // something was received
			}
			return syscall.ENOMEM
		})
		time.Sleep(time.Second)
		close(s.stop) // ends the pause too
		start := time.Now()
		<-s.stopped
		if time.Since(start) != 0 {
			t.Errorf("stopped after %v", time.Since(start))
		}
		for i, want := range []time.Duration{0, 0, 5, 10, 20, 0, 0, 5, 10, 20, 40, 80, 100, 100} {
			if pauses[i] != want*time.Millisecond {
				t.Errorf("before %d: a pause of %v, want %dms", i, pauses[i], want)
			}
		}
	})
}

// A handler that waits with a session is told why the listener ends that, once, also where it has ended before; and nobody is told of a
// close.
func TestOnEnd(t *testing.T) {
	t.Parallel()
	s := newTestSocket(defaultLimits)
	var told []string
	tell := func(reason string) { told = append(told, reason) }
	evicted, closed, attached := s.arrive(1, nil), s.arrive(2, nil), s.arrive(3, nil)
	for _, c := range []*PacketSession{evicted, closed, attached} {
		c.OnEnd(tell)
	}
	evicted.end("evicted")
	evicted.end("evicted")
	_ = closed.Close()
	attached.OnEnd(nil)
	attached.end("drain")
	if want := []string{"evicted"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	attached.OnEnd(tell)
	attached.OnEnd(nil)
	if want := []string{"evicted", "drain"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}
