package integration

import (
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
		sessions = 1000
		watched  = 4 * time.Second
		// What the Go runtime does by itself differs from time to time, by some dozens. One call per session would be ten times this.
		tolerated = sessions / 10
	)
	addr := gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(startEchoProcess(t)))), gate.WithoutRace())
	must(t, oneRequest(addr)) // the event loops have started
	pause := func() { <-time.After(watched) }
	without := p.Trace(pause)
	openMany(t, addr, sessions)
	with := p.Trace(pause)
	t.Logf("in %v: %d calls without sessions, %d with %d idle ones", watched, without.Total(), with.Total(), sessions)
	if with.Total() > without.Total()+tolerated {
		t.Errorf("calls with %d idle sessions: %v\nwithout: %v", sessions, with, without)
	}
}

// A small request and its response take a read and a write each way. What the sessions share (finding out what is readable, parking,
// waking) adds at most one more call to each exchange.
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
	each := float64(calls.Total()) / (sessions * rounds)
	t.Logf("%.2f calls for each of %d exchanges: %v", each, sessions*rounds, calls)
	if each > atMost {
		t.Errorf("%.2f calls for each exchange, want at most %v", each, atMost)
	}
	if calls["splice"].Calls > 0 || calls["setsockopt"].Calls > 0 {
		t.Errorf("calls that no small exchange needs: %v", calls)
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
	spliced := calls["splice"].Sum / 2 // into a pipe, and out of it
	buffered := calls["read"].Sum + calls["recvfrom"].Sum
	if spliced < n*9/10 || buffered > n/10 {
		t.Errorf("%s: of %d bytes, %d were spliced and %d went through buffers: %v", direction, n, spliced, buffered, calls)
	}
	t.Logf("%s: %.1f%% spliced, %.0f KiB each time", direction, 100*float64(spliced)/n, float64(calls["splice"].Sum)/float64(calls["splice"].Calls)/1024)
}
