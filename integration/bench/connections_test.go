package main

import (
	"net"
	"sync/atomic"
	"testing"
)

// startRefusing runs a workload against a server that has a function for each connection.
func startRefusing(t *testing.T, w workload, serve func(*net.TCPConn)) *generator {
	t.Helper()
	listener, err := net.ListenTCP(tcp, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := listener.AcceptTCP()
			if err != nil {
				return
			}
			serve(conn)
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-served
	})
	g, err := newGenerator(w, listener.Addr().(*net.TCPAddr).AddrPort(), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.stop() })
	g.phase.Store(recording)
	return g
}

// TestRefusedClientsCountBothEnds holds that a client takes a close and a reset for the end of a connection, and comes again.
func TestRefusedClientsCountBothEnds(t *testing.T) {
	for name, linger := range map[string]int{"close": -1, "reset": 0} {
		t.Run(name, func(t *testing.T) {
			var refused atomic.Int64
			g := startRefusing(t, workload{"", tcp, denied, 4}, func(conn *net.TCPConn) {
				_ = conn.SetLinger(linger)
				refused.Add(1)
				conn.Close()
			})
			awaitTotals(t, g, func(sum totals) bool { return sum.operations >= 100 })
			sum := g.totals()
			if sum.failures > 0 || sum.operations > refused.Load() {
				t.Errorf("%+v, where %d connections were refused", sum, refused.Load())
			}
		})
	}
}

// TestWhoIsAnsweredIsNotRefused has a server that says something before it closes: that is a failure, and no connection counts.
func TestWhoIsAnsweredIsNotRefused(t *testing.T) {
	g := startRefusing(t, workload{"", tcp, limited, 1}, func(conn *net.TCPConn) {
		_, _ = conn.Write([]byte{modeOnce})
		conn.Close()
	})
	awaitTotals(t, g, func(sum totals) bool { return sum.failures >= 3 })
	if sum := g.totals(); sum.operations > 0 {
		t.Errorf("%+v, want no connection that was refused", sum)
	}
}
