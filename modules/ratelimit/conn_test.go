package ratelimit

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// held returns a connection that is held to the handler's terms, and its other end.
func held(t *testing.T, h *Handler, network string) (*heldConn, net.Conn) {
	t.Helper()
	conn, other := from(t, "192.0.2.1:1")
	cx := &session.Arrival{Conn: conn, Network: network, Listener: ":8080"}
	return newHeldConn(conn, network, h.terms(&visitor{Arrival: cx}, nil)), other
}

// 1,000 bytes at 250 B/s take at least 3 seconds in each direction, and no more than 4.
func TestSlowBandwidth(t *testing.T) {
	t.Parallel()
	h, _ := provision(t, `{"bandwidth": [{"direction": "both", "rate": "250B/s"}]}`)
	for _, direction := range []string{up, down} {
		t.Run(direction, func(t *testing.T) {
			t.Parallel()
			conn, other := held(t, h, "tcp")
			from, to := io.ReadWriter(other), io.ReadWriter(conn)
			if direction == down {
				from, to = to, from
			}
			go func() { _, _ = from.Write(make([]byte, 1000)) }()
			start := time.Now()
			if _, err := io.ReadFull(to, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took < 3*time.Second || took > 4300*time.Millisecond {
				t.Errorf("1,000 bytes took %v", took)
			}
		})
	}
}

// Sessions that share a limit have it together.
func TestSharedBandwidth(t *testing.T) {
	t.Parallel()
	h, _ := provision(t, `{"bandwidth": [{"direction": "up", "rate": "1MB/s", "per": "all"}]}`)
	done := make(chan time.Duration)
	start := time.Now()
	for range 4 {
		conn, other := held(t, h, "tcp")
		go func() { _, _ = other.Write(make([]byte, 500_000)) }()
		go func() {
			_, _ = io.ReadFull(conn, make([]byte, 500_000))
			done <- time.Since(start)
		}()
	}
	for i := range 4 {
		if took := <-done; took < 1500*time.Millisecond || took > 2200*time.Millisecond {
			t.Errorf("number %d took %v, want about 2s for all", i, took)
		}
	}
}

func TestNoBandwidthLimit(t *testing.T) {
	t.Parallel()
	h, _ := provision(t, `{"bandwidth": [{"direction": "both", "rate": "0"}], "concurrent": [{"max": 5}]}`)
	if h.limits.moving() {
		t.Error("a rate of 0 is a limit")
	}
}

// A pause ends when the connection is closed.
func TestCloseEndsAPause(t *testing.T) {
	t.Parallel()
	h, _ := provision(t, `{"bandwidth": [{"direction": "up", "rate": "1B/m"}]}`)
	conn, other := held(t, h, "tcp")
	go func() { _, _ = other.Write([]byte("ab")) }()
	failed := make(chan error)
	go func() {
		_, err := io.ReadAll(conn)
		failed <- err
	}()
	time.Sleep(20 * time.Millisecond) // whether it is pausing by then makes no difference to what must come out
	conn.Close()
	select {
	case err := <-failed:
		if err == nil {
			t.Error("read on")
		}
	case <-time.After(10 * time.Second):
		t.Error("still pausing")
	}
}

// Datagrams that are too many are dropped, the others stay whole.
func TestDatagrams(t *testing.T) {
	t.Parallel()
	h, _ := provision(t, `{"datagrams": [{"rate": "1/h", "burst": 3, "per": "connection"}]}`)
	for range 2 { // each has its own
		conn, other := held(t, h, "udp")
		go func() {
			for i := range 5 {
				_, _ = other.Write(bytes.Repeat([]byte{byte('a' + i)}, 10))
			}
			_ = other.Close()
		}()
		got, _ := io.ReadAll(conn)
		if want := "aaaaaaaaaabbbbbbbbbbcccccccccc"; string(got) != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
