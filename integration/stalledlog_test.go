package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// fullPipe returns the end of a pipe that is full and that nobody reads.
func fullPipe(t testing.TB) *os.File {
	t.Helper()
	var ends [2]int
	must(t, unix.Pipe2(ends[:], unix.O_CLOEXEC))
	t.Cleanup(func() { unix.Close(ends[0]) })
	_, err := unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, 4096)
	must(t, err)
	must(t, unix.SetNonblock(ends[1], true))
	for err = nil; err == nil; {
		_, err = unix.Write(ends[1], []byte("full\n"))
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	must(t, unix.SetNonblock(ends[1], false))
	file := os.NewFile(uintptr(ends[1]), "full pipe")
	t.Cleanup(func() { file.Close() })
	return file
}

// stalledCollector accepts connections and reads nothing.
func stalledCollector(t testing.TB) string {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) (err error) {
		failed := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
		return errors.Join(failed, err)
	}}
	ln, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	must(t, err)
	held := make(chan struct{})
	serveOn(t, ln, func(net.Conn) { <-held })
	t.Cleanup(func() { close(held) })
	return ln.Addr().String()
}

// accessLogTo sends the access log to a writer, and everything else to stderr.
func accessLogTo(config, writer gate.JSON) gate.JSON {
	const logger = "layer4.log.access"
	return config.With("logging", gate.JSON{"logs": gate.JSON{
		"default":  gate.JSON{"exclude": []string{logger}, "encoder": gate.JSON{"format": "json"}},
		"sessions": gate.JSON{"include": []string{logger}, "writer": writer, "encoder": gate.JSON{"format": "json"}},
	}})
}

// denying is a gate that denies 127.0.0.2 and forwards for everybody else.
func denying(addr, upstream string) gate.JSON {
	acl := gate.JSON{"handler": "acl", "rules": []gate.JSON{{"deny": []string{"127.0.0.2"}}}}
	return gate.Layer4(gate.Listen(addr, acl, gate.Forward(upstream)))
}

// bothKinds has one client denied and one served.
func bothKinds(addr string) error {
	if in, err := letIn("127.0.0.2", addr); err != nil || in {
		return fmt.Errorf("a client that is to be denied: let in %t, %w", in, err)
	}
	if in, err := letIn("127.0.0.1", addr); err != nil || !in {
		return fmt.Errorf("a client that is to be served: let in %t, %w", in, err)
	}
	return nil
}

// Denied and served clients, reloads and the end of the process don't wait for an access log that takes nothing.
func TestAnAccessLogThatNobodyReads(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		writer func() gate.JSON
	}{
		{"full pipe", func() gate.JSON { return gate.JSON{"output": "stdout"} }},
		{"stalled collector", func() gate.JSON { return gate.JSON{"output": "net", "address": stalledCollector(t)} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			addr := gate.ReserveAddr(t)
			config := accessLogTo(denying(addr, serve(t, echo)), c.writer()).
				WithApp("portgate", gate.JSON{"access_log": gate.JSON{"queue": 100}})
			p := gate.Start(t, config, gate.WithStdout(fullPipe(t)), gate.WithoutRace())
			must(t, bothKinds(addr))
			goroutines := p.Goroutines()
			gate.Eventually(t, peerTimeout, func() error {
				for range 200 {
					must(t, oneRequest(addr))
				}
				m := p.Metrics()
				if m.Sum("caddy_portgate_access_log_dropped_total") == 0 {
					return fmt.Errorf("nothing is dropped after %v sessions", m.Sum("caddy_portgate_sessions_total"))
				}
				return equal(m, "caddy_portgate_degraded", 1, label("what", "log"))
			})
			for range 5 {
				start := time.Now()
				p.Load(config)
				if took := time.Since(start); took > 10*time.Second+tolerance {
					t.Errorf("a reload took %v", took)
				}
				must(t, bothKinds(addr))
			}
			if n := p.Goroutines(); n > goroutines+20 {
				t.Errorf("%d goroutines, there were %d", n, goroutines)
			}
			gate.Eventually(t, peerTimeout, func() error {
				if !strings.Contains(p.Output(), `"level":"warn"`) || !strings.Contains(p.Output(), "the queue is full") {
					return errors.New("the log does not say that entries are dropped")
				}
				return nil
			})
			mustEndSoon(t, p)
		})
	}
}

// mustEndSoon sends SIGTERM to a process that has no sessions.
func mustEndSoon(t *testing.T, p *gate.Process) {
	t.Helper()
	p.Terminate()
	if code := p.Wait(peerTimeout); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// With the writer queued that is so where all logs go there, those of Caddy itself too.
func TestALogThatNobodyReads(t *testing.T) {
	t.Parallel()
	addr := gate.ReserveAddr(t)
	config := denying(addr, serve(t, echo)).With("logging", gate.JSON{"logs": gate.JSON{
		"default": gate.JSON{"writer": gate.JSON{"output": "queued", "writer": gate.JSON{"output": "stdout"}}},
	}})
	p := gate.Start(t, config, gate.WithStdout(fullPipe(t)), gate.WithoutRace())
	for range 5 {
		for range 20 {
			must(t, bothKinds(addr))
		}
		p.Load(config)
	}
	mustEndSoon(t, p)
}

// Connections take as long as without a log. The gates take turns, and the medians of their rounds leave out what else the machine does;
// where that does not suffice, there are more rounds.
func TestConnectionsWithALogThatNobodyReads(t *testing.T) {
	const (
		each                 = 2000
		minRounds, maxRounds = 7, 20
		atMost               = 3
	)
	upstream := serve(t, echo)
	kinds := []string{"none", "full pipe", "stalled collector"}
	addrs, p99 := make(map[string]string), make(map[string][]time.Duration)
	for kind, writer := range map[string]gate.JSON{
		"none": {"output": "discard"}, "full pipe": {"output": "stdout"}, "stalled collector": {"output": "net", "address": stalledCollector(t)},
	} {
		addrs[kind] = gate.ReserveAddr(t)
		gate.Start(t, accessLogTo(denying(addrs[kind], upstream), writer), gate.WithStdout(fullPipe(t)), gate.WithoutRace())
	}
	slow := func(kind string) bool { return median(p99[kind]) > atMost*median(p99["none"]) }
	for round := 0; round < minRounds || round < maxRounds && slices.ContainsFunc(kinds, slow); round++ {
		for _, kind := range kinds {
			took := connectMany(t, addrs[kind], each)
			p99[kind] = append(p99[kind], percentile(took, 99))
		}
	}
	for _, kind := range kinds {
		t.Logf("%-18s p99 %v of %v", kind, median(p99[kind]), p99[kind])
		if slow(kind) {
			t.Errorf("%s: p99 is %v, without a log %v", kind, median(p99[kind]), median(p99["none"]))
		}
	}
}

// connectMany has n clients served, 2000 a second, and a tenth as many more denied, and returns how long each that is served has taken, in order.
func connectMany(t *testing.T, addr string, n int) []time.Duration {
	t.Helper()
	const perSecond = 2000
	took := make([]time.Duration, n)
	var clients sync.WaitGroup
	start := time.Now()
	for i := range n {
		due := start.Add(time.Duration(i) * time.Second / perSecond)
		time.Sleep(time.Until(due))
		clients.Go(func() {
			if err := oneRequest(addr); err != nil {
				t.Error(err)
			}
			took[i] = time.Since(due)
		})
		if i%10 == 0 {
			clients.Go(func() { _, _ = letIn("127.0.0.2", addr) })
		}
	}
	clients.Wait()
	slices.Sort(took)
	return took
}
