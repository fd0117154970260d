package relay

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func packetPreface(each bool) func(*PacketConfig) {
	return func(c *PacketConfig) { c.Preface = &Preface{Header: []byte("header "), Each: each} }
}

// upAs sends a datagram of the client, and checks how it arrives.
func (s *packetSession) upAs(b, want string) {
	s.Helper()
	s.sendUp([]byte(b))
	s.wantUp([]byte(want))
}

// Each datagram has the preface, and replies have none.
func TestPrefaceOfEachPacket(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		up := p.listen(t)
		var asked atomic.Int64
		s := p.start(t, always(up.LocalAddr()), packetPreface(true), func(c *PacketConfig) {
			c.AllowUp = func(size int) bool { asked.Add(int64(size)); return true }
		})
		s.upstream = up
		for range 3 {
			s.upAs("hello", "header hello")
			s.upAs("", "header ")
			s.down([]byte("reply"))
		}
		s.relay.Close(adminClosed)
		if r := s.want(adminClosed); r.BytesUp != 15 || r.DatagramsUp != 6 || r.BytesDown != 15 || asked.Load() != 15 {
			t.Errorf("%+v, and a limit for %d bytes", r.PacketStats, asked.Load())
		}
	})
}

// Only the first datagram to an upstream has the preface, and the first one to the next upstream too.
func TestPrefaceOfTheFirstPacket(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		up, other := p.listen(t), p.listen(t)
		s := p.start(t, func(_ context.Context, failed error) (net.Addr, error) {
			if failed == nil {
				return up.LocalAddr(), nil
			}
			return other.LocalAddr(), nil
		}, packetPreface(false))
		s.upstream = up
		s.upAs("one", "header one")
		s.upAs("two", "two")
		s.down([]byte("reply"))
		s.upAs("three", "three")
		up.Close()
		s.upstream = other
		s.sendUp([]byte("lost")) // an upstream has answered, so nothing is kept
		eventually(t, "refusal", func() bool { return s.dropped(DropUpstreamRefused) == 1 })
		eventually(t, "the next upstream", func() bool {
			s.sendUp([]byte("knock"))
			_ = other.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			buf := make([]byte, packetSize)
			n, peer, err := other.ReadFromUDPAddrPort(buf)
			if err != nil {
				return false
			}
			if s.peer = peer; string(buf[:n]) != "header knock" {
				t.Errorf("the next upstream got %q first", buf[:n])
			}
			return true
		})
	})
}

// What an upstream has refused is sent to the next one as that is to get it.
func TestPrefaceOfPacketsThatAreSentAgain(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		for _, each := range []bool{true, false} {
			dead, up := p.newPort(t).addr, p.listen(t)
			asked, answer := make(chan struct{}), make(chan struct{})
			s := p.start(t, func(_ context.Context, failed error) (net.Addr, error) {
				if failed == nil {
					return dead, nil
				}
				close(asked)
				<-answer
				return up.LocalAddr(), nil
			}, packetPreface(each))
			s.upstream = up
			s.sendUp([]byte("A"))
			<-asked
			s.sendUp([]byte("AAAA"))
			eventually(t, "second question", func() bool { return s.relay.Stats().DatagramsUp == 2 })
			close(answer)
			s.wantUp([]byte("header A"))
			second := "AAAA"
			if each {
				second = "header AAAA"
			}
			s.wantUp([]byte(second))
			s.upAs("more", strings.TrimSuffix(second, "AAAA")+"more")
			s.down([]byte("answer"))
		}
	})
}

// An upstream that refuses has lost what it was told, and comes back at the same address.
func TestPrefaceAfterARefusal(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		port := p.newPort(t)
		up := port.open(t)
		s := p.start(t, always(port.addr), packetPreface(false))
		s.upstream = up
		s.upAs("one", "header one")
		s.down([]byte("reply"))
		up.Close()
		s.sendUp([]byte("lost"))
		eventually(t, "refusal", func() bool { return s.dropped(DropUpstreamRefused) == 1 })
		s.upstream = port.open(t)
		s.upAs("two", "header two")
		s.upAs("three", "three")
	})
}

// A datagram that is too large with the preface is dropped, and counted.
func TestPacketsThatAreTooLargeWithThePreface(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		up := p.listen(t)
		header := strings.Repeat("h", 52)
		s := p.start(t, always(up.LocalAddr()), func(c *PacketConfig) { c.Preface = &Preface{Header: []byte(header), Each: true} })
		s.upstream = up
		for i, size := range []int{65_480, 65_500} { // more than the system sends, and more than a buffer holds
			s.sendUp(make([]byte, size))
			eventually(t, "drop", func() bool { return s.dropped(DropSendFailed) == i+1 })
		}
		s.upAs("small", header+"small")
		largest := strings.Repeat("x", 65_507-52)
		s.upAs(largest, header+largest)
		s.relay.Close(adminClosed)
		if r := s.want(adminClosed); r.DatagramsUp != 2 || r.BytesUp != int64(len(largest)+5) || r.Dropped != 2 {
			t.Errorf("%+v", r.PacketStats)
		}
	})
}

// The preface costs no memory for each datagram.
func TestPrefaceAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector empties pools")
	}
	p, b := &Preface{Header: []byte("header "), Each: true}, make([]byte, 1200)
	var s prefaceState
	send := func([]byte) (errno syscall.Errno) { return 0 }
	if allocs := testing.AllocsPerRun(100, func() { _ = s.send(p, b, send) }); allocs > 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// What was lost on the way is sent again with the preface if it had that, and only then.
func TestPrefaceOfPacketsThatWereLostOnTheWay(t *testing.T) {
	t.Parallel()
	p, sent := &Preface{Header: []byte("header ")}, ""
	var s prefaceState
	send := func(b []byte) syscall.Errno { sent += string(b) + "\n"; return 0 }
	for _, prefaced := range []bool{false, false, true, false} {
		s.repeat(prefaced)
		if errno := s.send(p, []byte("b"), send); errno != 0 {
			t.Error(errno)
		}
	}
	if want := "header b\nb\nheader b\nb\n"; sent != want {
		t.Errorf("sent %q, want %q", sent, want)
	}
}

// Each upstream is told what is meant for it, also of what another one has refused.
func TestPrefaceOfEachPacketsUpstream(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		for _, headers := range [][2]string{{"first ", "second "}, {"first ", ""}, {"", "second "}} {
			dead, up, other := p.newPort(t).addr, p.listen(t), p.listen(t)
			var chosen atomic.Int32
			s := p.start(t, func(_ context.Context, failed error) (net.Addr, error) {
				if failed == nil {
					return dead, nil
				}
				chosen.Store(1)
				return up.LocalAddr(), nil
			}, func(c *PacketConfig) {
				c.PrefaceOf = func() *Preface {
					if header := headers[chosen.Load()]; header != "" {
						return &Preface{Header: []byte(header), Each: true}
					}
					return nil
				}
			})
			s.upstream = up
			s.sendUp([]byte("A"))
			s.wantUp([]byte(headers[1] + "A"))
			s.upAs("more", headers[1]+"more")
			direct := p.start(t, always(other.LocalAddr()), func(c *PacketConfig) {
				c.PrefaceOf = func() *Preface { return &Preface{Header: []byte("only ")} }
			})
			direct.upstream = other
			direct.upAs("one", "only one")
			direct.upAs("two", "two")
		}
	})
}
