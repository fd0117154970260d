package relay

import (
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests of this file look at the whole process, so none of them is parallel.

// overSockets runs a test over the pairs whose sockets the relay gets at, one after the other.
func overSockets(t *testing.T, test func(*testing.T, pair)) {
	for _, p := range pairs {
		if p.spliced {
			t.Run(p.name, func(t *testing.T) { test(t, p) })
		}
	}
}

// oneWay moves n bytes from one end to the other.
func (s *session) oneWay(from, to stream, n int64) {
	s.Helper()
	var writer sync.WaitGroup
	writer.Go(func() { s.mustSend(from, 3, n) })
	s.mustReceive(to, 3, n)
	writer.Wait()
}

func TestBulkIsSpliced(t *testing.T) {
	overSockets(t, func(t *testing.T, p pair) {
		s, n := p.open(t), bulk()
		s.oneWay(s.client, s.upstream, n)
		s.oneWay(s.upstream, s.client, n)
		if spliced := s.relay.Stats().Spliced; spliced < 2*n*9/10 {
			t.Errorf("%d of %d bytes were spliced", spliced, 2*n)
		}
	})
}

// Small messages are cheaper to copy.
func TestSmallMessagesAreNotSpliced(t *testing.T) {
	overSockets(t, func(t *testing.T, p pair) {
		s := p.open(t)
		for range 100 {
			s.exchange(1000)
		}
		if spliced := s.relay.Stats().Spliced; spliced != 0 {
			t.Errorf("%d bytes were spliced", spliced)
		}
	})
}

// However much an idle session has moved, and in what size, it holds nothing.
func TestIdleSessionHoldsNothing(t *testing.T) {
	overSockets(t, func(t *testing.T, p pair) {
		s := p.open(t)
		for _, step := range []func(){
			func() {},
			func() { s.exchange(100) },
			func() { s.oneWay(s.upstream, s.client, bulk()/4) },
			func() { s.oneWay(s.client, s.upstream, bulk()/4) },
			func() {
				for range 20 { // small again
					s.exchange(100)
				}
			},
			func() { s.oneWay(s.client, s.upstream, 30<<10) },
		} {
			step()
			eventually(t, "nothing held", func() bool {
				return borrowed.Load() == 0 && pipesTaken.Load() == 0
			})
		}
	})
}

// What peers that read nothing hold is given back when their session ends.
func TestStuckSessionGivesBackWhatItHolds(t *testing.T) {
	overSockets(t, func(t *testing.T, p pair) {
		for _, up := range []bool{true, false} {
			s := p.open(t)
			from := s.upstream
			if up {
				from = s.client
			}
			eventually(t, "something held", func() bool {
				_ = from.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
				_ = send(from, 1, 1<<40)
				return borrowed.Load()+pipesTaken.Load() > 0
			})
			s.relay.Close(adminClosed)
			s.want(adminClosed)
		}
		eventually(t, "nothing held", func() bool { return borrowed.Load() == 0 && pipesTaken.Load() == 0 })
	})
}

// ends are the ways in which a session can come to its end.
var ends = map[string]func(*session){
	"FIN":            func(s *session) { s.client.Close(); s.wantEOF(s.upstream); s.upstream.Close() },
	"client reset":   func(s *session) { s.reset(s.client) },
	"upstream reset": func(s *session) { s.reset(s.upstream) },
	"close":          func(s *session) { s.relay.Close(adminClosed) },
	"idle":           nil, // by itself
	"stuck": func(s *session) {
		_ = s.upstream.SetWriteDeadline(time.Now().Add(time.Millisecond))
		_ = send(s.upstream, 1, 1<<40)
		s.relay.Close(adminClosed)
	},
}

func TestDescriptorsComeBack(t *testing.T) {
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			sessions := 100
			if raceDetector {
				sessions = 50
			} else if p.name == engines[0].name || p.name == engines[1].name {
				sessions = 1000
			}
			t.Run("warm up", func(t *testing.T) { p.open(t).exchange(1) })
			before := len(descriptors(t))
			for name, end := range ends {
				const batch = 50
				for range sessions / batch {
					t.Run(name, func(t *testing.T) { openAndEnd(t, p, batch, end) })
				}
			}
			t.Run("unreachable", func(t *testing.T) {
				addr := closedAddr(t)
				for range sessions {
					s := p.start(t, only(addr))
					s.want(ConnectFailed)
					s.client.Close()
				}
			})
			eventually(t, "all descriptors closed", func() bool {
				runtime.GC() // of the pipes that wait for their next use
				return len(descriptors(t)) <= before
			})
		})
	}
}

func openAndEnd(t *testing.T, p pair, n int, end func(*session)) {
	var l Limits
	if end == nil {
		l.Idle, end = 50*time.Millisecond, func(*session) {}
	}
	sessions := make([]*session, n)
	for i := range sessions {
		sessions[i] = p.open(t, limits(l))
	}
	for _, s := range sessions {
		end(s)
	}
	for _, s := range sessions {
		s.result()
	}
}

func descriptors(t testing.TB) (fds []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

func TestIdleSessionsNeedNoGoroutine(t *testing.T) {
	p := loopPairs[0]
	p.open(t).exchange(1) // starts the loops
	before := runtime.NumGoroutine()
	for range 1000 {
		p.open(t).exchange(10)
	}
	eventually(t, fmt.Sprintf("%d goroutines as before", before), func() bool {
		return runtime.NumGoroutine() <= before
	})
}

func TestSmallMessagesAllocateNothing(t *testing.T) {
	for _, p := range engines {
		if raceDetector && !p.loop {
			continue // it makes sync.Pool forget
		}
		s := p.open(t)
		message := make([]byte, 100)
		allocs := testing.AllocsPerRun(1000, func() {
			for _, way := range [][2]stream{{s.client, s.upstream}, {s.upstream, s.client}} {
				if _, err := way[0].Write(message); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(way[1], message); err != nil {
					t.Fatal(err)
				}
			}
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations per exchange", p.name, allocs)
		}
	}
}

func TestBulkAllocatesNothing(t *testing.T) {
	s := loopPairs[0].open(t)
	chunk, sink := make([]byte, 64<<10), make([]byte, 64<<10)
	allocs := testing.AllocsPerRun(500, func() {
		if _, err := s.client.Write(chunk); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s.upstream, sink); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations per 64 KiB", allocs)
	}
}

// keptAlive returns after what silence the relay asks the peer that is the test's end whether it is
// still there; zero is never. The relay's end is somewhere among the descriptors of the process.
func keptAlive(t testing.TB, theirs net.Conn) time.Duration {
	t.Helper()
	for _, fd := range descriptors(t) {
		local, err := unix.Getsockname(fd)
		remote, err2 := unix.Getpeername(fd)
		if err != nil || err2 != nil || !is(local, theirs.RemoteAddr()) || !is(remote, theirs.LocalAddr()) {
			continue
		}
		on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
		idle, err2 := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		return time.Duration(on*idle) * time.Second
	}
	t.Fatal("the relay's socket was not found")
	return 0
}

func is(sa unix.Sockaddr, addr net.Addr) bool {
	in4, ok := sa.(*unix.SockaddrInet4)
	return ok && addr.String() == (&net.TCPAddr{IP: in4.Addr[:], Port: in4.Port}).String()
}

// Peers that went without a word are found out, on both sides. An event loop sees to that only for
// sessions that have lived for a while.
func TestKeepAlive(t *testing.T) {
	for _, p := range engines {
		for _, want := range []time.Duration{0, time.Hour} {
			t.Run(fmt.Sprint(p.name, want), func(t *testing.T) {
				s := p.open(t, limits(Limits{Idle: 2 * time.Second}), func(c *Config) { c.KeepAlive = want })
				eventually(t, "keepalive", func() bool {
					s.exchange(1)
					for _, theirs := range []stream{s.client, s.upstream} {
						if got := keptAlive(t, theirs); got != want {
							return false
						}
					}
					return true
				})
			})
		}
	}
}

// A process with few descriptors would else have none left when many peers read nothing.
func TestPipesAreFewWhereDescriptorsAre(t *testing.T) {
	for descriptors, want := range map[uint64]int64{0: 1, 256: 2, 1024: 8, 8192: 64, 1 << 20: 64, math.MaxUint64: 64} {
		if got := pipesFor(descriptors); got != want {
			t.Errorf("%d of %d descriptors, want %d", got, descriptors, want)
		}
	}
}
