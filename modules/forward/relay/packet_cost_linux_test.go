package relay

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The tests of this file that are not parallel look at the whole process.

// packetEnds are the ways in which a session can come to its end.
var packetEnds = map[string]func(*packetSession){
	"close": func(s *packetSession) { s.relay.Close(adminClosed) },
	"evict": func(s *packetSession) { s.network.evict() },
	"idle":  nil, // by itself
	"busy": func(s *packetSession) {
		for i := range 10 {
			s.sendUp(numbered(i))
			s.sendDown(numbered(i))
		}
		s.relay.Close(adminClosed)
	},
}

func TestPacketDescriptorsComeBack(t *testing.T) {
	for _, p := range packetPairs {
		t.Run(p.name, func(t *testing.T) {
			t.Run("warm up", func(t *testing.T) { p.open(t) })
			before := len(descriptors(t))
			for name, end := range packetEnds {
				t.Run(name, func(t *testing.T) { openAndEndPackets(t, p, 50, end) })
			}
			t.Run("no upstream", func(t *testing.T) {
				for range 50 {
					p.start(t, only()).want(ConnectFailed)
				}
			})
			t.Run("moved upstream", func(t *testing.T) {
				n := &nexts{addr: p.newPort(t).addr}
				s := p.start(t, n.next)
				s.knock()
				n.set(p.newPort(t).addr)
				eventually(t, "another upstream", func() bool {
					s.knock()
					return n.calls() >= 3
				})
			})
			eventually(t, "all descriptors closed", func() bool { return len(descriptors(t)) <= before })
		})
	}
}

func openAndEndPackets(t *testing.T, p packetPair, n int, end func(*packetSession)) {
	var l Limits
	if end == nil {
		l.Idle, end = time.Second, func(*packetSession) {}
	}
	sessions := make([]*packetSession, n)
	for i := range sessions {
		sessions[i] = p.open(t, packetLimits(l))
	}
	for _, s := range sessions {
		end(s)
	}
	for _, s := range sessions {
		s.result()
	}
}

func TestIdlePacketSessionsHoldNothing(t *testing.T) {
	p := loopPacketPairs[0]
	p.open(t) // starts the loops
	sock := p.listen(t)
	before := runtime.NumGoroutine()
	for i := range 500 {
		s := p.start(t, always(sock.LocalAddr()))
		s.upstream = sock
		s.exchange(numbered(i))
	}
	eventually(t, "no goroutines but the harness's", func() bool {
		return runtime.NumGoroutine() <= before+500 && borrowed.Load() == 0
	})
}

func TestDatagramsAllocateNothing(t *testing.T) {
	for _, p := range loopPacketPairs { // of the others the harness allocates
		s := p.open(t, func(c *PacketConfig) {
			c.Dropped = func(Drop) {}
			c.MaxReplyRatio, c.MaxReplies = 1, 1<<40
		})
		message := make([]byte, 100)
		allocs := testing.AllocsPerRun(1000, func() {
			if _, err := s.client.Write(message); err != nil {
				t.Fatal(err)
			}
			if _, _, err := s.upstream.ReadFromUDPAddrPort(message); err != nil {
				t.Fatal(err)
			}
			if _, err := s.upstream.WriteToUDPAddrPort(message, s.peer); err != nil {
				t.Fatal(err)
			}
			if _, err := s.client.Read(message); err != nil {
				t.Fatal(err)
			}
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations per exchange", p.name, allocs)
		}
	}
}

// What is refused again and again costs no memory either.
func TestRefusedDatagramsAllocateNothing(t *testing.T) {
	p := loopPacketPairs[0]
	var refused atomic.Int64
	s := p.start(t, always(p.newPort(t).addr), func(c *PacketConfig) { c.Dropped = func(Drop) { refused.Add(1) } })
	message := make([]byte, 100)
	knock := func() {
		if _, err := s.client.Write(message); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "refusal", func() bool { knock(); return refused.Load() > 0 })
	allocs := testing.AllocsPerRun(100, func() {
		before := refused.Load()
		for knock(); refused.Load() == before; knock() {
			time.Sleep(10 * time.Microsecond)
		}
	})
	if allocs > 0.5 { // a datagram's share of asking for the upstream, once a second
		t.Errorf("%v allocations per datagram", allocs)
	}
}

// A panic in a loop names the session that was served.
func TestPanicInALoopNamesThePacketSession(t *testing.T) {
	t.Parallel()
	child, output, err := inChild(t)
	if child {
		loopPacketPairs[0].open(t) // another session, which is not to blame
		s := loopPacketPairs[0].start(t, func(context.Context, error) (net.Addr, error) {
			return nil, poison{errNoMore}
		}, func(c *PacketConfig) { c.Name = sessionName("the guilty one") })
		s.result()
		return
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("the child ended with %v, want a crash", err)
	}
	if want := "relay: session the guilty one: poison"; !strings.Contains(output, want) {
		t.Errorf("no %q in the output: %s", want, output)
	}
}

// Where there is no descriptor for the socket to the upstream, others end all the time.
func TestShortageOfDescriptorsForPackets(t *testing.T) {
	t.Parallel()
	if !inChildWithFewDescriptors(t) {
		return
	}
	for _, p := range packetEngines {
		t.Run("warm up", func(t *testing.T) { p.open(t) }) // loops need descriptors
		t.Run(p.name+"/passes", func(t *testing.T) {
			for _, limit := range []time.Duration{patience, 0} {
				sock := p.listen(t)
				n := &nexts{addr: sock.LocalAddr()}
				s := p.prepare(t, n.next, packetLimits(Limits{Connect: limit}))
				s.upstream = sock
				relent := exhaust(t, 0)
				s.run()
				s.sendUp([]byte("hello"))
				select {
				case r := <-s.ended:
					t.Fatalf("did not wait: %v", r.Err)
				case <-time.After(200 * time.Millisecond):
				}
				relent()
				s.wantUp([]byte("hello"))
				s.down([]byte("hello"))
				if n.calls() != 1 {
					t.Errorf("attempts that failed: %v", n.failed[1:])
				}
			}
		})
		t.Run(p.name+"/lasts", func(t *testing.T) {
			s := p.prepare(t, only(p.listen(t).LocalAddr()), packetLimits(Limits{Connect: 200 * time.Millisecond}))
			exhaust(t, 0)
			s.run()
			if r := s.want(ConnectFailed); !errors.Is(r.Err, syscall.EMFILE) {
				t.Errorf("error: %v", r.Err)
			}
		})
		t.Run(p.name+"/is closed", func(t *testing.T) {
			s := p.prepare(t, only(p.listen(t).LocalAddr()), packetLimits(Limits{Connect: time.Hour}))
			exhaust(t, 0)
			s.run()
			s.relay.Close(adminClosed)
			s.want(adminClosed)
		})
	}
}
