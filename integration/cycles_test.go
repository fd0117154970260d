package integration

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// Two hundred thousand sessions, ended in every way that there is, leave nothing behind.
func TestCyclesOfConnectAndCloseLeaveNothing(t *testing.T) {
	const (
		first, warmUp, cycles = 1000, 20_000, 200_000
		parts                 = 4 // so that each takes seconds

		// What else lives on Caddy's heap differs by some KiB. A leak of only eight bytes per session would be three times this.
		heapGrowsKiB = 512
		// The Go runtime gives memory back when it likes.
		residentGrowsKiB = 8 << 10
	)
	upstream, _ := startOwnProcess(t, "ender")
	bulkUpstream, accepted := accepting(t)
	addr, refused, bulk := gate.ReserveAddr(t), gate.ReserveAddr(t), gate.ReserveAddr(t)
	config := gate.Layer4(gate.Listen(addr, gate.Forward(upstream)), gate.Listen(refused, gate.Forward(gate.ReserveAddr(t))),
		gate.Listen(bulk, gate.Forward(bulkUpstream)))
	// Without the access log, which would be 80 MB.
	config = config.With("logging", gate.JSON{"logs": gate.JSON{"default": gate.JSON{"exclude": []string{"layer4.log.access"}}}})
	p := gate.Start(t, config, gate.WithoutRace())
	total := 0
	run := func(n int) {
		t.Helper()
		total += n
		start := time.Now()
		if said, _ := startOwnProcess(t, "cycles", addr, refused, strconv.Itoa(n)); said != "done" {
			t.Fatalf("the client said %q", said)
		}
		t.Logf("%d cycles in %v", n, time.Since(start).Round(time.Millisecond))
		gate.Eventually(t, peerTimeout, func() error {
			m := p.Metrics()
			return errors.Join(equal(m, "caddy_portgate_sessions_total", total), equal(m, "caddy_portgate_sessions_active", 0))
		})
	}
	run(first) // what is made once and kept is made
	before := p.Baseline()
	run(warmUp - first)
	before.MustReturn(t, peerTimeout)
	heap, resident := p.HeapKiB(), p.ResidentKiB()
	for range parts {
		run(cycles / parts)
	}
	before.MustReturn(t, peerTimeout)
	var heapNow, residentNow int
	gate.Eventually(t, peerTimeout, func() error {
		heapNow, residentNow = p.HeapKiB(), p.ResidentKiB()
		if heapNow > heap+heapGrowsKiB || residentNow > resident+residentGrowsKiB {
			return fmt.Errorf("heap %d KiB (was %d), resident %d KiB (was %d)", heapNow, heap, residentNow, resident)
		}
		return nil
	})
	t.Logf("heap %d KiB (was %d), resident %d KiB (was %d)", heapNow, heap, residentNow, resident)
	// The number of pipes is limited. Had a session that ended in midstream kept one, bulk would not be spliced any more.
	client, bulkEnd := pair(t, bulk, accepted)
	mustSplice(t, p, "down", bulkEnd, client)
}

// The way in which a session of a cycle ends. The client says it in its first byte, so that the upstream does its part.
const (
	endAtOnce      = 'o' // the client resets as soon as it is connected; nobody is told
	endByClient    = 'c' // the client finishes first, then the upstream
	endByUpstream  = 'u' // the upstream finishes first
	resetByClient  = 'C' // after an exchange
	resetUpstream  = 'U' // the upstream resets
	resetMidstream = 'm' // the client resets in the middle of bulk that it gets
	endRefused     = 'r' // no upstream can be reached
)

// cycleWays is what the cycles are made of. Those that end in order are few: they leave a socket in TIME_WAIT for a minute, on the
// side that finished first.
var cycleWays = []byte{
	endAtOnce, resetByClient, resetUpstream, endAtOnce, resetByClient, endRefused, endAtOnce, resetByClient, resetUpstream, endByUpstream,
	endAtOnce, resetByClient, resetUpstream, endAtOnce, resetByClient, endRefused, endAtOnce, resetByClient, resetUpstream, endByClient,
}

// One in so many is of the kind that moves bulk: it takes a hundred times as long.
const midstreamEvery = 200

const (
	bulkOfCycle = 512 << 10
	readOfBulk  = 128 << 10
)

// endForever is the upstream of the cycles.
func endForever(listening int) {
	command := make([]byte, 16)
	onEachEvent(listening, func(int) {}, func(fd int) {
		n, errno := rawIO(unix.SYS_READ, fd, command)
		if errno != 0 || n == 0 {
			_ = unix.Close(fd)
			return
		}
		switch command[0] {
		case resetByClient:
			_, _ = rawIO(unix.SYS_WRITE, fd, command[:1])
		case endByUpstream:
			_, _ = rawIO(unix.SYS_WRITE, fd, command[:1])
			_ = unix.Close(fd)
		case resetUpstream:
			resetFD(fd)
		case resetMidstream:
			// What the socket does not take at once is left out.
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, bulkOfCycle)
			_ = unix.Sendto(fd, make([]byte, bulkOfCycle), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
		}
	})
}

func resetFD(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}

// cycle is the client of the cycles.
func cycle(args []string) {
	const clients = 16
	n, err := strconv.Atoi(args[2])
	check("number", err)
	var all sync.WaitGroup
	for client := range clients {
		all.Go(func() {
			to, refused, buf := sockaddr(args[0]), sockaddr(args[1]), make([]byte, readOfBulk)
			for i := client; i < n; i += clients {
				way, addr := cycleWays[i/clients%len(cycleWays)], to
				if i/clients%midstreamEvery == 0 {
					way = resetMidstream
				}
				if way == endRefused {
					addr = refused
				}
				check(fmt.Sprintf("cycle %d, which ends as %q", i, way), cycleOnce(addr, way, buf))
			}
		})
	}
	all.Wait()
	fmt.Println("done")
}

// cycleOnce is one session. It closes its end, and returns an error if the other did not end as it should.
func cycleOnce(addr *unix.SockaddrInet4, way byte, buf []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, addr); err != nil {
		_ = unix.Close(fd)
		if way == endRefused && err == unix.ECONNRESET {
			return nil
		}
		return os.NewSyscallError("connect", err)
	}
	defer func() {
		if way == endByClient || way == endByUpstream {
			_ = unix.Close(fd)
		} else {
			resetFD(fd)
		}
	}()
	if way == endAtOnce {
		return nil
	}
	_, errno := rawIO(unix.SYS_WRITE, fd, append(buf[:0], way))
	if way == endRefused && (errno == unix.ECONNRESET || errno == unix.EPIPE) {
		return nil // the reset was faster
	}
	if errno != 0 {
		return os.NewSyscallError("write", errno)
	}
	if way == endByClient {
		if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
			return os.NewSyscallError("shutdown", err)
		}
	}
	return awaitEnd(fd, way, buf)
}

// awaitEnd reads until what the way promises has come.
func awaitEnd(fd int, way byte, buf []byte) error {
	wantBytes, wantEnd, wantReset := 0, false, false
	switch way {
	case endByClient:
		wantEnd = true
	case endByUpstream:
		wantBytes, wantEnd = 1, true
	case resetByClient:
		wantBytes = 1
	case resetUpstream, endRefused:
		wantReset = true
	case resetMidstream:
		wantBytes = readOfBulk
	}
	for got := 0; ; {
		if got >= wantBytes && !wantEnd && !wantReset {
			return nil
		}
		n, errno := blockingRead(fd, buf)
		switch {
		case errno == unix.ECONNRESET && wantReset, errno == 0 && n == 0 && wantEnd && got == wantBytes:
			return nil
		case errno == 0 && n > 0:
			got += n
		default:
			return fmt.Errorf("after %d bytes: read gave %d and %w", got, n, errno)
		}
	}
}
