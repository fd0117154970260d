package check

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
)

// The server of a benchmark is a process of its own, so that its work is not counted.
func init() {
	if os.Getenv("CHECK_TEST_SERVER") == "" {
		return
	}
	ln, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(ln.Addr().(*net.TCPAddr).Port)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				b := make([]byte, 512)
				if n, _ := conn.Read(b); n > 0 {
					_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
				}
			}()
		}
	}()
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // until the benchmark ends
	os.Exit(0)
}

func otherProcess(b *testing.B) (port uint16) {
	b.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), "CHECK_TEST_SERVER=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	if _, err := fmt.Fscan(out, &port); err != nil {
		b.Fatal(err)
	}
	return port
}

// manyAddresses are those of 10,000 upstreams.
func manyAddresses(port uint16) (all []netip.AddrPort) {
	for i := range 10_000 {
		all = append(all, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), port))
	}
	return all
}

// processorTime is what this process has used, of which the system has used a part for it: over the loopback interface, that has what it does with packets
// as the server, too.
func processorTime() (all, system time.Duration) {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), time.Duration(usage.Stime.Nano())
}

// BenchmarkTenThousandUpstreams checks each of 10,000 upstreams every 5 s, for 10 s, and reports what part of a core that takes. A plain
// dialer makes the same connections beside it. Use -benchtime 1x.
func BenchmarkTenThousandUpstreams(b *testing.B) {
	const interval, duration = 5 * time.Second, 10 * time.Second
	measure := func(b *testing.B, checks *atomic.Int64, failed *atomic.Int64) {
		for b.Loop() {
			all, system := processorTime()
			count := checks.Load()
			time.Sleep(duration)
			allAfter, systemAfter := processorTime()
			used, made := allAfter-all, checks.Load()-count
			b.ReportMetric(100*(systemAfter-system).Seconds()/duration.Seconds(), "%system")
			b.ReportMetric(100*used.Seconds()/duration.Seconds(), "%core")
			b.ReportMetric(float64(used.Microseconds())/float64(made), "us/check")
			b.ReportMetric(float64(made)/duration.Seconds(), "checks/s")
		}
		if n := failed.Load(); n > 0 {
			b.Errorf("%d checks have failed", n)
		}
	}
	for _, probe := range []Probe{{Kind: TCP}, {Kind: HTTP, Text: "/"}} {
		b.Run(probe.Kind, func(b *testing.B) {
			var checks, failed atomic.Int64
			c := NewChecker(1000)
			defer c.Close()
			g, err := NewGroup(c, Spec{Probe: probe, Interval: interval, Timeout: 2 * time.Second, Thresholds: upstream.Thresholds{Fails: 3, Passes: 2}}, nil,
				func(r Result) {
					checks.Add(1)
					if r.Outcome != Passed {
						failed.Add(1)
					}
				})
			if err != nil {
				b.Fatal(err)
			}
			for _, addr := range manyAddresses(otherProcess(b)) {
				parsed, _ := upstream.Parse(addr.String())
				defer g.Hold(Wanted{Name: addr.String(), Addr: parsed}).Release()
			}
			measure(b, &checks, &failed)
		})
	}
	b.Run("dialer", func(b *testing.B) {
		var checks, failed atomic.Int64
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for i, addr := range manyAddresses(otherProcess(b)) {
			wg.Go(func() {
				timer := time.NewTimer(interval * time.Duration(i) / 10_000)
				defer timer.Stop()
				for {
					select {
					case <-timer.C:
					case <-ctx.Done():
						return
					}
					timer.Reset(interval)
					dialer := net.Dialer{Timeout: 2 * time.Second}
					conn, err := dialer.Dial("tcp", addr.String())
					checks.Add(1)
					if err != nil {
						failed.Add(1)
						continue
					}
					_ = conn.(*net.TCPConn).SetLinger(0)
					conn.Close()
				}
			})
		}
		measure(b, &checks, &failed)
		cancel()
		wg.Wait()
	})
}

// A server does not accept the connections of checks that only connect, and nobody is left in TIME_WAIT.
func TestServerDoesNotSeeThatItIsChecked(t *testing.T) {
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	before := waiting(t, ln.Addr())
	for range 100 {
		if err := check(t, l, Probe{Kind: TCP}, ln.Addr()); err != nil {
			t.Fatal(err)
		}
	}
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	first, err := ln.Accept() // in the order in which they were connected
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if first.RemoteAddr().String() != client.LocalAddr().String() {
		t.Errorf("the server has accepted a check from %s", first.RemoteAddr())
	}
	for pair := range waiting(t, ln.Addr()) {
		if !before[pair] {
			t.Errorf("in TIME_WAIT: %s", pair)
		}
	}
}

// waiting returns the connections of an address that are in TIME_WAIT. It may have had others before.
func waiting(t *testing.T, addr net.Addr) map[string]bool {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	pairs, port := make(map[string]bool), fmt.Sprintf(":%04X", addr.(*net.TCPAddr).Port)
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) > 3 && fields[3] == "06" && (strings.HasSuffix(fields[1], port) || strings.HasSuffix(fields[2], port)) {
			pairs[fields[1]+" "+fields[2]] = true
		}
	}
	return pairs
}
