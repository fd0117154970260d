package integration

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// tolerance is how late a limit may end a session. It is for a busy machine; a limit that is not kept ends no session at all, or after a default of
// minutes.
const tolerance = 5 * time.Second

// mustEndAfter requires that both ends are over between limit and limit+tolerance from start.
func mustEndAfter(t *testing.T, start time.Time, limit time.Duration, ends ...net.Conn) {
	t.Helper()
	var over sync.WaitGroup
	for _, end := range ends {
		over.Go(func() {
			io.Copy(io.Discard, end)
			if took := time.Since(start); took < limit || took > limit+tolerance {
				t.Errorf("ended after %v, want %v to %v", took, limit, limit+tolerance)
			}
		})
	}
	over.Wait()
}

// keepMoving sends a byte now and then for so long; nothing may end the session meanwhile. It returns when the last was sent.
func keepMoving(t *testing.T, from, to *net.TCPConn, every, total time.Duration) time.Time {
	t.Helper()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for start := time.Now(); time.Since(start) < total; <-tick.C {
		mustWrite(t, from, "x")
		mustRead(t, to, "x")
	}
	last := time.Now()
	mustWrite(t, from, "x")
	mustRead(t, to, "x")
	return last
}

func TestIdleTimeoutEndsBothSides(t *testing.T) {
	t.Parallel()
	const limit = 2 * time.Second // longer than a busy machine keeps anybody from sending
	// Each returns when the last byte was about to move.
	cases := map[string]func(t *testing.T, client, upstream *net.TCPConn) time.Time{
		"no byte ever": nil,
		"data from the client resets it": func(t *testing.T, client, upstream *net.TCPConn) time.Time {
			return keepMoving(t, client, upstream, limit/8, 2*limit)
		},
		"data from the upstream resets it": func(t *testing.T, client, upstream *net.TCPConn) time.Time {
			return keepMoving(t, upstream, client, limit/8, 2*limit)
		},
	}
	for name, move := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onEachNetwork(t, func(t *testing.T, network string) {
				p, addr, accepted := startForwarding(t, network, gate.JSON{"idle_timeout": limit.String()})
				last := time.Now()
				client, upstream := pair(t, addr, accepted)
				if move != nil {
					last = move(t, client, upstream)
				}
				mustEndAfter(t, last, limit, client, upstream)
				mustHaveEnded(t, p, client, "idle_timeout")
			})
		})
	}
}

// A client that takes nothing, with an upstream that waits to send, is as silent as one that is gone.
func TestIdleTimeoutEndsASessionWhoseReaderIsStuck(t *testing.T) {
	t.Parallel()
	const limit = time.Second
	onEachNetwork(t, func(t *testing.T, network string) {
		p, client, upstream := startPair(t, network, gate.JSON{"idle_timeout": limit.String()})
		last, err := sendUntilError(upstream)
		if took := time.Since(last); took > limit+tolerance || isTimeout(err) {
			t.Errorf("the upstream's connection ended %v after it got stuck (%v), want at most %v", took, err, limit+tolerance)
		}
		mustHaveEnded(t, p, client, "idle_timeout")
	})
}

// What is left of a session after a reset waits for a reader no longer than a whole session would.
func TestIdleTimeoutEndsTheWaitForAReaderAfterAReset(t *testing.T) {
	t.Parallel()
	const limit = time.Second
	onEachNetwork(t, func(t *testing.T, network string) {
		p, addr, accepted := startForwarding(t, network, gate.JSON{"idle_timeout": limit.String()})
		first, firstUpstream := pair(t, addr, accepted)
		mustExchangeBetween(t, first, firstUpstream)
		reset(first)
		p.WaitSession(port(first))
		before := p.Baseline()
		client, upstream := pair(t, addr, accepted)
		must(t, client.SetReadBuffer(16<<10))
		if _, err := send(upstream, mib); err != nil {
			t.Fatal(err)
		}
		mustDrain(t, upstream, false)
		last := time.Now()
		reset(upstream)
		p.WaitSession(port(client))
		if took := time.Since(last); took > limit+tolerance {
			t.Errorf("the session ended %v after the reset, want at most %v", took, limit+tolerance)
		}
		before.MustReturn(t, peerTimeout)
	})
}

// sendUntilError returns when the last bytes were taken, and why no more were.
func sendUntilError(conn *net.TCPConn) (last time.Time, err error) {
	for err == nil {
		last = time.Now()
		_, err = conn.Write(make([]byte, 4<<10))
	}
	return last, err
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// mustHaveEnded requires this reason in the access log.
func mustHaveEnded(t *testing.T, p *gate.Process, client net.Conn, reason string) {
	t.Helper()
	if s := p.WaitSession(port(client)); s.Reason != reason || s.Status != 200 {
		t.Errorf("want reason %s and status 200: %s", reason, s.Line)
	}
}

func TestHalfCloseTimeoutEndsBothSides(t *testing.T) {
	t.Parallel()
	const limit = 2 * time.Second
	for _, finisher := range []string{"client", "upstream"} {
		t.Run("after the "+finisher+"'s FIN", func(t *testing.T) {
			t.Parallel()
			onEachNetwork(t, func(t *testing.T, network string) {
				p, client, upstream := startPair(t, network, gate.JSON{"half_close_timeout": limit.String()})
				first, other := client, upstream
				if finisher == "upstream" {
					first, other = upstream, client
				}
				mustWrite(t, first, "x")
				mustRead(t, other, "x")
				must(t, first.CloseWrite())
				if n, err := other.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Fatalf("got %d bytes and %v, want a FIN", n, err)
				}
				// The limit is a silence: data in the open direction goes on for longer.
				last := keepMoving(t, other, first, limit/8, 2*limit)
				mustEndAfter(t, last, limit, first)
				mustRefuseWrites(t, other, tolerance)
				mustHaveEnded(t, p, client, "idle_timeout")
			})
		})
	}
}

// mustRefuseWrites requires that a connection whose other direction has ended before is over as a whole.
func mustRefuseWrites(t *testing.T, conn net.Conn, timeout time.Duration) {
	t.Helper()
	gate.Eventually(t, timeout, func() error {
		if _, err := conn.Write([]byte("x")); err == nil {
			return errors.New("writes still succeed")
		}
		return nil
	})
}

func TestZeroIsNoLimit(t *testing.T) {
	t.Parallel()
	onEachNetwork(t, func(t *testing.T, network string) {
		_, client, upstream := startPair(t, network, gate.JSON{"idle_timeout": "0s", "half_close_timeout": "0s", "max_lifetime": "0s"})
		must(t, client.CloseWrite())
		if _, err := upstream.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("got %v, want EOF", err)
		}
		<-time.After(3 * time.Second) // 0 is no limit, and not a limit that is reached at once
		mustWrite(t, upstream, "late")
		mustRead(t, client, "late")
	})
}

func TestMaxLifetimeEndsBothSidesOfABusySession(t *testing.T) {
	t.Parallel()
	const limit = 2 * time.Second
	onEachNetwork(t, func(t *testing.T, network string) {
		p, addr, accepted := startForwarding(t, network, gate.JSON{"max_lifetime": limit.String()})
		start := time.Now()
		client, upstream := pair(t, addr, accepted)
		never := make(chan struct{})
		trickle(client, never)
		trickle(upstream, never)
		mustEndAfter(t, start, limit, client, upstream)
		mustHaveEnded(t, p, client, "max_lifetime")
	})
}
