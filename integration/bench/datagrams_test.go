package main

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// startDatagrams runs a workload through a server that has a function for each datagram.
func startDatagrams(t *testing.T, w workload, serve func(conn *net.UDPConn, data []byte, from *net.UDPAddr)) (g *generator, stop func() *histogram) {
	t.Helper()
	conn, err := net.ListenUDP(udp, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		data := make([]byte, 2*oneWayBytes)
		for {
			n, from, err := conn.ReadFromUDP(data)
			if err != nil {
				return
			}
			serve(conn, data[:n], from)
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-served
	})
	if g, err = newGenerator(w, conn.LocalAddr().(*net.UDPAddr).AddrPort(), 1); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceValue(g.stop)
	t.Cleanup(func() { stop() })
	if err := g.awaitOpen(t.Context()); err != nil {
		t.Fatal(err)
	}
	return g, stop
}

// awaitTotals waits until the counts are as wanted.
func awaitTotals(t *testing.T, g *generator, want func(totals) bool) {
	t.Helper()
	for deadline := time.Now().Add(testTimeout); !want(g.totals()); {
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %+v", testTimeout, g.totals())
		}
		time.Sleep(time.Millisecond)
	}
}

// TestLostDatagrams has each fifth datagram lost and each seventh answered twice: the exchanges go on, and a second answer is
// taken for nothing else.
func TestLostDatagrams(t *testing.T) {
	const sessions = 8
	var received, dropped atomic.Int64
	g, stop := startDatagrams(t, workload{"", udp, exchanges, sessions}, func(conn *net.UDPConn, data []byte, from *net.UDPAddr) {
		switch n := received.Add(1); {
		case n%5 == 0:
			dropped.Add(1)
			return
		case n%7 == 0:
			_, _ = conn.WriteToUDP(data, from)
		}
		_, _ = conn.WriteToUDP(data, from)
	})
	g.phase.Store(recording)
	awaitTotals(t, g, func(sum totals) bool { return sum.lost >= 10 && sum.operations >= 30 })
	durations, sum := stop(), g.totals()
	if least := dropped.Load() - sessions; sum.failures > 0 || sum.lost < least {
		t.Errorf("%+v, where at least %d lost ones had to be seen", sum, least)
	}
	if done := uint64(sum.operations); durations.total < done || durations.total > done+sessions {
		t.Errorf("%d durations of %d exchanges", durations.total, done)
	}
}

// TestLateAnswers has an answer that comes when the next message is out: it must not pass for the answer to that, which is lost, too.
func TestLateAnswers(t *testing.T) {
	var late atomic.Bool
	var held []byte
	messages := 0
	g, _ := startDatagrams(t, workload{"", udp, exchanges, 1}, func(conn *net.UDPConn, data []byte, from *net.UDPAddr) {
		if late.Load() {
			messages++
		}
		switch messages {
		case 1:
			held = append(held, data...)
		case 2:
			_, _ = conn.WriteToUDP(held, from)
		default:
			_, _ = conn.WriteToUDP(data, from)
		}
	})
	late.Store(true)
	g.phase.Store(running)
	awaitTotals(t, g, func(sum totals) bool { return sum.operations >= 10 })
	if sum := g.totals(); sum.lost < 2 || sum.failures > 0 {
		t.Errorf("%+v, want two that are lost and no failure", sum)
	}
}

// TestWrongAnswers has answers that are cut: the sessions are given up.
func TestWrongAnswers(t *testing.T) {
	var cut atomic.Bool
	g, _ := startDatagrams(t, workload{"", udp, exchanges, 2}, func(conn *net.UDPConn, data []byte, from *net.UDPAddr) {
		if cut.Load() {
			data = data[:len(data)-1]
		}
		_, _ = conn.WriteToUDP(data, from)
	})
	cut.Store(true)
	g.phase.Store(running)
	awaitTotals(t, g, func(sum totals) bool { return sum.failures == 2 })
	if sum := g.totals(); sum.operations > 0 {
		t.Errorf("%+v, want no exchange", sum)
	}
}

// TestOneWay holds that what goes one way is what the backend counts, from each session.
func TestOneWay(t *testing.T) {
	for _, kind := range []kind{flood, paced} {
		var clients atomic.Int64
		seen := make(map[string]bool)
		g, stop := startDatagrams(t, workload{"", udp, kind, 4}, func(conn *net.UDPConn, data []byte, from *net.UDPAddr) {
			switch {
			case data[0] == modeEcho:
				_, _ = conn.WriteToUDP(data, from)
			case data[0] == modeSink && len(data) == oneWayBytes && !seen[from.String()]:
				seen[from.String()] = true
				clients.Add(1)
			}
		})
		g.phase.Store(running)
		awaitTotals(t, g, func(sum totals) bool { return sum.sent > 0 && clients.Load() == 4 })
		if sum := g.totals(); sum.failures > 0 {
			t.Errorf("%+v, want no failure", sum)
		}
		stop()
	}
}

func TestPace(t *testing.T) {
	t.Parallel()
	p := pace{perSecond: 10_000}
	for _, step := range []struct {
		now  time.Duration
		want int
	}{
		{time.Millisecond, 10},
		{1500 * time.Microsecond, 5},
		{1550 * time.Microsecond, 0}, // half a datagram
		{1600 * time.Microsecond, 1},
		{time.Second, 20}, // what it was held up for does not come at once, but for the last 2 ms
		{time.Second, 0},
		{time.Second + time.Millisecond, 10},
	} {
		if got := p.due(step.now); got != step.want {
			t.Errorf("at %v: got %d, want %d", step.now, got, step.want)
		}
	}
}
