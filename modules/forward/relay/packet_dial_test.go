package relay

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// port is one that a server may come to and go from, without anybody else being given it.
type port struct {
	addr *net.UDPAddr
	host packetPair
}

// newPort takes a port on which nobody listens: the socket that has it only hears itself.
func (p packetPair) newPort(t testing.TB) port {
	t.Helper()
	own := p.listen(t)
	holder, err := net.DialUDP("udp", nil, own.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	reserve(t, holder)
	return port{holder.LocalAddr().(*net.UDPAddr), p}
}

// open brings a server.
func (p port) open(t testing.TB) *net.UDPConn {
	t.Helper()
	lc := net.ListenConfig{Control: shared}
	conn, err := lc.ListenPacket(t.Context(), "udp", p.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.UDPConn)
}

// nexts counts the calls of a Next, and keeps its errors.
type nexts struct {
	mu     sync.Mutex
	addr   net.Addr
	failed []error
	at     []time.Time
	busy   atomic.Bool
}

func (n *nexts) next(_ context.Context, failed error) (net.Addr, error) {
	if !n.busy.CompareAndSwap(false, true) {
		panic("calls overlap")
	}
	defer n.busy.Store(false)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failed, n.at = append(n.failed, failed), append(n.at, time.Now())
	if n.addr == nil {
		return nil, errNoMore
	}
	return n.addr, nil
}

func (n *nexts) set(addr net.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addr = addr
}

func (n *nexts) calls() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.failed)
}

// knocking is what is sent to a closed port. Some of it may come late.
var knocking = []byte("anybody there?")

// knock sends datagrams until one is answered with the refusal of the upstream.
func (s *packetSession) knock() {
	s.Helper()
	before := s.dropped(DropUpstreamRefused)
	eventually(s, "refusal", func() bool {
		s.sendUp(knocking)
		return s.dropped(DropUpstreamRefused) > before
	})
}

// The upstream comes back at the same address: no datagram is lost that is sent from then on.
func TestPacketUpstreamThatRefusesAndReturns(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		port := p.newPort(t)
		n := &nexts{addr: port.addr}
		s := p.start(t, n.next)
		for range 3 {
			s.knock()
			s.upstream = port.open(t)
			for i := range 10 {
				s.exchange(numbered(i))
			}
			s.upstream.Close()
		}
		s.relay.Close(adminClosed)
		if r := s.want(adminClosed); r.Err != nil || r.Dropped != int64(s.dropped(DropUpstreamRefused)) {
			t.Errorf("result %+v", r)
		}
	})
}

// The upstream has moved: it is asked for at once, then at most once a second, and found.
func TestPacketUpstreamThatMoves(t *testing.T) {
	t.Cleanup(measureLag())
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		former := p.newPort(t)
		n := &nexts{addr: former.addr}
		s := p.start(t, n.next)
		eventually(t, "being asked three times more", func() bool {
			s.knock()
			return n.calls() == 4
		})
		for i := 2; i < 4; i++ {
			if pause := n.at[i].Sub(n.at[i-1]); pause < askInterval {
				t.Errorf("asked again after %s", pause)
			}
		}
		for i, err := range n.failed {
			if (i > 0) != errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("call %d of Next got the error %v", i+1, err)
			}
		}
		n.set(nil) // the name is not known for a while
		eventually(t, "being asked", func() bool {
			s.knock()
			return n.calls() == 5
		})
		s.upstream = p.listen(t)
		n.set(s.upstream.LocalAddr())
		moved := time.Now()
		eventually(t, "a datagram at the new address", func() bool {
			s.sendUp([]byte("hello"))
			_ = s.upstream.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, peer, err := s.upstream.ReadFromUDPAddrPort(make([]byte, 10))
			s.peer = peer
			return err == nil
		})
		if took := time.Since(moved); took > 2*time.Second+time.Duration(5*lag.Load()) {
			t.Errorf("found after %s", took)
		}
		s.down([]byte("hello"))
	})
}

func TestPacketNextFails(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		for want, err := range map[Reason]error{
			ConnectFailed:  errNoMore,
			ConnectTimeout: &net.DNSError{Err: "no answer", IsTimeout: true},
		} {
			s := p.prepare(t, func(context.Context, error) (net.Addr, error) { return nil, err })
			s.sendUp([]byte("hello"))
			s.network.await(t, 1)
			s.run()
			if r := s.want(want); r.Err != err || r.DatagramsUp != 0 {
				t.Errorf("result: %+v, want the error %v", r, err)
			}
		}
	})
}

func TestPacketAddressThatCannotBeUsed(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		sock := p.listen(t)
		next := only(&net.UnixAddr{Net: "unixgram", Name: "/nonexistent/s"}, &net.UDPAddr{IP: net.IP{1, 2, 3}, Port: 1}, sock.LocalAddr())
		s := p.start(t, next)
		s.upstream = sock
		s.exchange([]byte("hello"))
	})
}

// While the upstream is looked for, as much is kept as the session might have waiting in the network.
func TestPacketsWaitForTheUpstream(t *testing.T) {
	overPackets(t, loopPacketPairs, func(t *testing.T, p packetPair) {
		for _, size := range []int{10, 60_000} {
			found, sock := make(chan struct{}), p.listen(t)
			s := p.start(t, func(ctx context.Context, _ error) (net.Addr, error) {
				select {
				case <-found:
				case <-ctx.Done():
				}
				return sock.LocalAddr(), ctx.Err()
			})
			s.upstream = sock
			const all = 100
			for i := range all {
				s.sendUp(append(numbered(i), make([]byte, size)...))
				s.network.await(t, i+1)
			}
			kept := min(64, 128<<10/(4+size))
			eventually(t, "drops", func() bool { return s.dropped(DropQueueFull) == all-kept })
			close(found)
			for i := range kept {
				s.wantUp(append(numbered(i), make([]byte, size)...))
			}
			s.exchange([]byte("end"))
		}
	})
}
