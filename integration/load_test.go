package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// Nine thousand sessions idle, a thousand chat and four move as much as they can. The chatting ones must not wait for the others: a
// session that always has more to move gives way after a bounded amount, and an idle one takes no time at all.
//
// How long an exchange takes is compared with how long it takes while the same bulk goes from its source to its drains directly,
// beside the gateway. Both times the machine is as busy. It has to be, because the two ends of four bulk sessions keep two cores so
// busy that exchanges take several times as long as without them, whoever is in between. What is left is what the gateway does: how
// long its event loops stay with a bulk session before they look at the others. Where they stay until there is nothing more to move,
// it is ten times as long.
//
// The medians of several rounds, taken in turn, leave out what else the machine does; where that does not suffice, there are more
// rounds.
func TestBulkSessionsDoNotStarveOthers(t *testing.T) {
	const (
		chatting, bulky       = 1000, 4
		every                 = 100 * time.Millisecond // in each chatting session
		roundTakes            = time.Second
		minRounds, maxRounds  = 5, 15
		atMost                = 3
		movedAtLeast          = minRounds * bulky * 64 * mib
		none, beside, through = "no bulk", "bulk beside", "bulk through"
	)
	source, _ := startOwnProcess(t, "source")
	addr, bulk := gate.ReserveAddr(t), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(gate.Listen(addr, gate.Forward(startEchoProcess(t))), gate.Listen(bulk, gate.Forward(source))), gate.WithoutRace())
	idle := openMany(t, addr, idleSessions(t, chatting+bulky))
	conns := openMany(t, addr, chatting)
	t.Logf("%d idle sessions, %d that chat, %d descriptors", len(idle), len(conns), p.Descriptors())

	p99 := make(map[string][]time.Duration)
	measure := func(kind, from string) {
		stop := func() {}
		if from != "" {
			_, stop = startOwnProcess(t, "drain", slices.Repeat([]string{from}, bulky)...)
		}
		took, err := chat(conns, every, roundTakes)
		stop()
		must(t, err)
		p99[kind] = append(p99[kind], percentile(took, 99))
		t.Logf("%-12s %d exchanges, p50 %v, p99 %v, max %v", kind, len(took), percentile(took, 50), percentile(took, 99), took[len(took)-1])
	}
	times := func() float64 { return float64(median(p99[through])) / float64(median(p99[beside])) }
	for round := 0; round < minRounds || round < maxRounds && times() > atMost; round++ {
		measure(none, "")
		measure(beside, source)
		measure(through, bulk)
	}
	t.Logf("medians of p99: %v %s, %v %s, %v %s: %.1f times", median(p99[none]), none, median(p99[beside]), beside, median(p99[through]), through, times())
	if times() > atMost {
		t.Errorf("p99 of an exchange is %v with bulk sessions, want at most %d times the %v with the same bulk beside the gateway",
			median(p99[through]), atMost, median(p99[beside]))
	}
	gate.Eventually(t, 5*time.Second, func() error {
		m := p.Metrics()
		if moved := m.Sum("caddy_portgate_bytes_total", label("listener", bulk)); moved < movedAtLeast {
			return fmt.Errorf("the bulk sessions have moved %v bytes, want at least %d", moved, movedAtLeast)
		}
		return equal(m, "caddy_portgate_sessions_active", len(idle)+len(conns))
	})
	_, err := chat(idle, 0, 0) // each once: none was lost
	must(t, err)
}

func median(durations []time.Duration) time.Duration {
	return percentile(slices.Sorted(slices.Values(durations)), 50)
}

func percentile(sorted []time.Duration, p int) time.Duration { return sorted[len(sorted)*p/100] }

// idleSessions is how many there can be beside so many others: 9,000, or what the limit on open files leaves. The hard limit
// is often 20,000 and no test can raise it; a session takes two descriptors of the gateway, which leaves 8,896.
func idleSessions(t *testing.T, others int) int {
	t.Helper()
	const (
		wanted = 9000
		spare  = 200 // listeners, pipes, the log, ...
	)
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	n := min(wanted, (int(min(limit.Max, 1<<20))-spare)/2-others)
	if n < wanted/2 {
		t.Fatalf("at most %d open files: this test needs 20,000", limit.Max)
	}
	return n
}

// openMany opens sessions with an exchange in each. They are reset with the test, so that they leave no TIME_WAIT.
func openMany(t testing.TB, addr string, n int) []*net.TCPConn {
	t.Helper()
	const dialers = 8
	conns := make([]*net.TCPConn, n)
	errs := make([]error, dialers)
	var all sync.WaitGroup
	for d := range dialers {
		all.Go(func() {
			for i := d; i < n && errs[d] == nil; i += dialers {
				conn, err := net.DialTimeout("tcp", addr, peerTimeout)
				if err != nil {
					errs[d] = err
					return
				}
				conns[i] = conn.(*net.TCPConn)
				conn.SetDeadline(time.Now().Add(peerTimeout))
				errs[d] = exchange(conn)
				conn.SetDeadline(time.Time{})
			}
		})
	}
	all.Wait()
	t.Cleanup(func() {
		for _, conn := range conns {
			if conn != nil {
				reset(conn)
			}
		}
	})
	must(t, errors.Join(errs...))
	return conns
}

// chat has all connections exchange 64 bytes every so often for so long, at least once, and returns how long each exchange took,
// sorted. An exchange that takes long delays only the next of the same connection, so that the others show it too.
func chat(conns []*net.TCPConn, every, total time.Duration) ([]time.Duration, error) {
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		took []time.Duration
		errs []error
	)
	// The race detector allows 8,128 goroutines.
	const atOnce = 2000
	for first := 0; first < len(conns); first += atOnce {
		group := conns[first:min(first+atOnce, len(conns))]
		start := time.Now()
		for i, conn := range group {
			all.Go(func() {
				own, err := chatOne(conn, start.Add(every*time.Duration(i)/time.Duration(len(group))), start.Add(total), every)
				mu.Lock()
				defer mu.Unlock()
				took = append(took, own...)
				if err != nil {
					errs = append(errs, err)
				}
			})
		}
		all.Wait()
	}
	slices.Sort(took)
	if len(errs) > 0 {
		return took, fmt.Errorf("%d of %d sessions failed, the first: %w", len(errs), len(conns), errs[0])
	}
	return took, nil
}

func chatOne(conn *net.TCPConn, next, end time.Time, every time.Duration) (took []time.Duration, err error) {
	message := slices.Repeat([]byte("x"), 64)
	conn.SetDeadline(time.Now().Add(peerTimeout))
	for {
		time.Sleep(time.Until(next))
		start := time.Now()
		if _, err = conn.Write(message); err == nil {
			_, err = io.ReadFull(conn, message)
		}
		if err != nil {
			return took, err
		}
		took = append(took, time.Since(start))
		if next = next.Add(every); !next.Before(end) {
			return took, nil
		}
	}
}
