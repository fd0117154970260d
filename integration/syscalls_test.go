package integration

import (
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// An idle session makes no system call: with a thousand of them the process makes as many as with none.
func TestIdleSessionsMakeNoSyscalls(t *testing.T) {
	const (
		sessions = 4000
		watched  = 4 * time.Second
		// What the Go runtime does by itself differs from time to time, by some dozens, and the look at all sessions that the history needs rests now and
		// then. One call per session would be ten times this.
		tolerated = sessions / 10
	)
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(startEchoProcess(t)))), gate.WithoutRace())
	must(t, oneRequest(addr)) // the event loops have started
	pause := func() { <-time.After(watched) }
	without := p.Trace(pause)
	openMany(t, addr, sessions)
	with := p.Trace(pause)
	t.Logf("in %v: %d calls without sessions, %d with %d idle ones", watched, len(without), len(with), sessions)
	if len(with) > len(without)+tolerated {
		t.Errorf("calls with %d idle sessions: %v\nwithout: %v", sessions, with.Count(), without.Count())
	}
}

// A small request and its response take a read and a write each way. What the sessions share (finding out what is readable, parking,
// waking) adds at most one more call to each exchange. That is so for sessions that are busy at the same time; a single one takes some
// calls more, because its event loop parks after each message.
func TestSmallExchangeTakesAtMostFiveSyscalls(t *testing.T) {
	const (
		sessions, rounds = 64, 50
		size             = 64
		atMost           = 5.0
	)
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(startEchoProcess(t)))), gate.WithoutRace())
	conns := openMany(t, addr, sessions)
	calls := p.Trace(func() { exchangeInLockstep(t, conns, rounds, size) })
	count, each := calls.Count(), float64(len(calls))/(sessions*rounds)
	t.Logf("%.2f calls for each of %d exchanges: %v", each, sessions*rounds, count)
	if each > atMost {
		t.Errorf("%.2f calls for each exchange, want at most %v", each, atMost)
	}
	if count["splice"] > 0 || count["setsockopt"] > 0 {
		t.Errorf("calls that no small exchange needs: %v", count)
	}
}

// exchangeInLockstep sends a message on each of the connections before it takes the answers.
func exchangeInLockstep(t testing.TB, conns []*net.TCPConn, rounds, size int) {
	t.Helper()
	message := slices.Repeat([]byte("x"), size)
	answer := make([]byte, size)
	for range rounds {
		for _, conn := range conns {
			if _, err := conn.Write(message); err != nil {
				t.Fatal(err)
			}
		}
		for _, conn := range conns {
			if _, err := io.ReadFull(conn, answer); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Bulk goes through splice, both ways, and next to nothing of it through buffers.
func TestBulkIsSpliced(t *testing.T) {
	for _, network := range []string{"gate+tcp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			p, client, upstream := startPair(t, network, nil, gate.WithoutRace())
			for direction, ends := range map[string][2]*net.TCPConn{"up": {client, upstream}, "down": {upstream, client}} {
				mustSplice(t, p, direction, ends[0], ends[1])
			}
		})
	}
}

// mustSplice sends bulk from one end of a session to the other.
func mustSplice(t *testing.T, p *gate.Process, direction string, from, to *net.TCPConn) {
	t.Helper()
	const n = 128 * mib
	calls := p.Trace(func() {
		sent := make(chan error, 1)
		go func() {
			block := make([]byte, mib)
			for range n / mib {
				if _, err := from.Write(block); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		if _, err := io.CopyN(io.Discard, to, n); err != nil {
			t.Fatal(err)
		}
		must(t, within(t, peerTimeout, "sending", sent))
	})
	spliced := calls.Sum("splice") / 2 // into a pipe, and out of it
	buffered := calls.Sum("read", "recvfrom")
	if spliced < n*9/10 || buffered > n/10 {
		t.Errorf("%s: of %d bytes, %d were spliced and %d went through buffers: %v", direction, n, spliced, buffered, calls.Count())
	}
	t.Logf("%s: %.1f%% spliced", direction, 100*float64(spliced)/n)
}

// A session that always has more to move gives way after a bounded amount: its event loop asks after each turn what else is ready.
func TestBusySessionGivesWay(t *testing.T) {
	const (
		watched = 500 * time.Millisecond
		// A turn is one large splice, of a mebibyte at most. The Go scheduler may move the loop to another thread between two, and back.
		atMost   = 3 * mib
		minTurns = 10
	)
	source, _ := startOwnProcess(t, "source")
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(source))), gate.WithoutRace())
	startOwnProcess(t, "drain", addr)
	gate.Eventually(t, peerTimeout, func() error { // it has become bulk
		if moved := p.Metrics().Sum("caddy_portgate_bytes_total", label("direction", "down")); moved < 64*mib {
			return fmt.Errorf("%v bytes moved", moved)
		}
		return nil
	})
	var calls gate.Calls
	turns, most := 0, int64(0)
	for try := 0; try < 20 && turns < minTurns; try++ { // a busy machine may give the process no time meanwhile
		calls = p.Trace(func() { <-time.After(watched) })
		turns = 0
		moved := make(map[int]int64) // by each thread since it last asked
		for _, call := range calls {
			switch call.Name {
			case "splice":
				moved[call.Thread] += call.Result
				most = max(most, moved[call.Thread]/2) // into a pipe, and out of it
			case "epoll_pwait":
				if moved[call.Thread] > 0 {
					turns++
				}
				moved[call.Thread] = 0
			}
		}
	}
	t.Logf("%d turns, %.1f MiB on average, %.1f at most", turns, float64(calls.Sum("splice")/2)/float64(turns)/mib, float64(most)/mib)
	if most > atMost || turns < minTurns {
		t.Errorf("%d turns, with up to %d bytes in one; want at least %d, and at most %d bytes in each: %v", turns, most, minTurns, atMost, calls.Count())
	}
}
