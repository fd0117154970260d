package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// Nine thousand sessions idle, a thousand chat and four move as much as they can. The chatting ones must not wait for the others: a
// session that always has more to move gives way after a bounded amount, and an idle one takes no time at all.
func TestBulkSessionsDoNotStarveOthers(t *testing.T) { chatBesideBulk(t, 9000, 4, 10) }

// Three hundred that move as much as they can take hardly more from those that chat than four do. (Where each had its turn before them,
// it was thirty times what it is without.)
func TestManyBulkSessionsDoNotStarveOthers(t *testing.T) { chatBesideBulk(t, 0, 300, 10) }

// chatBesideBulk asks how many times as long exchanges take, by the 99th percentile, as without bulk.
//
// The ends of the chatting sessions run before everybody else, and those of the bulk after, as if they were on machines of their own. Else
// what is measured is how long the ends of the bulk keep the others from the processors, whoever is in between.
//
// The medians of several rounds, taken in turn, leave out what else the machine does; where that does not suffice, there are more
// rounds. A round in which a busy machine leaves the ends of the bulk too little time has measured nothing: it does not count, and there is another one.
// What a loop serves first, tests of the relay count.
func chatBesideBulk(t *testing.T, idle, bulky int, atMost float64) {
	t.Helper()
	const (
		chatting             = 1000
		minRounds, maxRounds = 5, 15    // that count
		mostRounds           = 60       // whether they count or not
		enough               = 32 * mib // of bulk in a round: for a thousand messages of the others, thousands of quanta
	)
	source, echo := startProcess(t, last, "source").listen(), startProcess(t, first, "echo").listen()
	addr, datagrams, bulk := gate.ReserveAddr(t), gate.ReserveAddr(t), gate.ReserveAddr(t)
	p := gate.Start(t, gate.Layer4(
		gate.Listen(addr, gate.Forward(echo)), gate.Listen(bulk, gate.Forward(source)),
		gate.ListenUDP(datagrams, gate.Forward(serveUDP(t, echoUDP)).With("idle_timeout", "10m")),
	).WithApp("portgate", gate.JSON{"max_sessions": idle + chatting + bulky, "reserve_descriptors": 32}), gate.WithoutRace())
	streams, pairs := idleSessions(t, idle, chatting+bulky)
	idleStreams, idlePairs := openMany(t, addr, streams), askMany(t, datagrams, pairs)
	chatters := startProcess(t, first, "chat", addr, strconv.Itoa(chatting))
	t.Logf("idle: %d TCP and %d UDP sessions; %d that chat; %d descriptors", streams, pairs, chatting, p.Descriptors())

	var without, with []time.Duration
	measure := func(kind string) (p99 time.Duration) {
		var exchanges int
		var p50, most time.Duration
		answer := chatters.ask("go")
		if _, err := fmt.Sscan(answer, &exchanges, &p50, &p99, &most); err != nil {
			t.Fatalf("the chatting clients said %q: %v", answer, err)
		}
		t.Logf("%-7s bulk: %d exchanges, p50 %v, p99 %v, max %v", kind, exchanges, p50, p99, most)
		return p99
	}
	times := func() float64 { return float64(median(with)) / float64(median(without)) }
	moved := func() float64 { return p.Metrics().Sum("caddy_portgate_bytes_total", label("listener", bulk)) }
	rounds := 0
	for ; rounds < mostRounds && (len(with) < minRounds || len(with) < maxRounds && times() > atMost); rounds++ {
		quiet, before := measure("without"), moved()
		drain := startProcess(t, last, "drain", slices.Repeat([]string{bulk}, bulky)...)
		drain.listen()
		loud, bytes := measure("with"), moved()-before
		drain.stop()
		if bytes >= enough {
			without, with = append(without, quiet), append(with, loud)
		}
	}
	if len(with) < minRounds {
		t.Fatalf("in %d of %d rounds the bulk sessions have moved %d MiB", len(with), rounds, enough/mib)
	}
	t.Logf("medians of p99: %v without bulk, %v with it: %.1f times; %d of %d rounds count; %.0f MiB of bulk", median(without), median(with), times(), len(with), rounds, moved()/mib)
	if times() > atMost {
		t.Errorf("p99 of an exchange is %v with bulk sessions, want at most %v times the %v without", median(with), atMost, median(without))
	}
	// A session whose client has gone ends when its upstream has acknowledged everything. That one comes last, after all others on the machine.
	gate.Eventually(t, 10*peerTimeout, func() error { return equal(p.Metrics(), "caddy_portgate_sessions_active", idle+chatting) })
	_, err := chat(idleStreams, 0, 0) // each once: none was lost
	must(t, err)
	for _, conn := range idlePairs {
		must(t, conn.SetDeadline(time.Now().Add(peerTimeout)))
		mustExchange(t, conn)
	}
}

func median(durations []time.Duration) time.Duration {
	return percentile(slices.Sorted(slices.Values(durations)), 50)
}

func percentile(sorted []time.Duration, p int) time.Duration { return sorted[len(sorted)*p/100] }

// idleSessions tells how many of so many sessions can be TCP beside so many others that are, and how many have to be UDP. A TCP session
// takes two descriptors of the gateway, a UDP session one, and the hard limit of a process is often 20,000, which no test can raise.
func idleSessions(t *testing.T, all, others int) (streams, pairs int) {
	t.Helper()
	const spare = 200 // listeners, pipes, the log, ...
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	left := int(min(limit.Max, 1<<20)) - spare - 2*others
	streams = min(all, left-all)
	if streams < all/2 {
		t.Fatalf("at most %d open files: this test needs 20,000", limit.Max)
	}
	return streams, all - streams
}

// askMany opens UDP sessions with an exchange in each.
func askMany(t testing.TB, addr string, n int) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = dialUDP(t, addr)
		mustExchange(t, conns[i])
	}
	return conns
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
	conn.SetDeadline(time.Now().Add(connTimeout))
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
