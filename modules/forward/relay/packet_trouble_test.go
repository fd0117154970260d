package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// What each error means, where the network has reported it and where the system itself has found it.
func TestErrorEffects(t *testing.T) {
	t.Parallel()
	for errno, want := range map[syscall.Errno][2]effect{
		0:                    {effectNone, effectNone},
		syscall.ECONNREFUSED: {effectRefused, effectRefused},
		syscall.EHOSTUNREACH: {effectRefused, effectStale},
		syscall.ENETUNREACH:  {effectRefused, effectStale},
		syscall.EINVAL:       {effectLost, effectStale},
		syscall.EMSGSIZE:     {effectTooLarge, effectLost},
		syscall.EAGAIN:       {effectFull, effectFull},
		syscall.ENOBUFS:      {effectFull, effectFull},
		syscall.EPERM:        {effectLost, effectLost},
		syscall.EFAULT:       {effectLost, effectLost}, // in no table
	} {
		if got := [2]effect{reportedEffect(errno), ownEffect(errno)}; got != want {
			t.Errorf("%v: got %v, want %v", errno, got, want)
		}
	}
}

// A datagram is sent again where the first error may be that of another one.
func TestSendTwice(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		first, second, reported, own syscall.Errno
		again                        bool
	}{
		{syscall.ECONNREFUSED, 0, syscall.ECONNREFUSED, 0, true},
		{syscall.ECONNREFUSED, syscall.ECONNREFUSED, syscall.ECONNREFUSED, syscall.ECONNREFUSED, true},
		{syscall.EMSGSIZE, 0, syscall.EMSGSIZE, 0, true},
		{syscall.EMSGSIZE, syscall.EMSGSIZE, 0, syscall.EMSGSIZE, true},
		{syscall.ENETUNREACH, 0, syscall.ENETUNREACH, 0, true},
		{syscall.ENETUNREACH, syscall.ENETUNREACH, 0, syscall.ENETUNREACH, true},
		{syscall.EMSGSIZE, syscall.ENETUNREACH, syscall.EMSGSIZE, syscall.ENETUNREACH, true},
		{syscall.EINVAL, 0, 0, syscall.EINVAL, false},
		{syscall.EPERM, 0, 0, syscall.EPERM, false},
		{syscall.EAGAIN, 0, 0, syscall.EAGAIN, false},
	} {
		again := false
		reported, own := sendTwice(c.first, func() syscall.Errno {
			again = true
			return c.second
		})
		if reported != c.reported || own != c.own || again != c.again {
			t.Errorf("%v and %v: got %v and %v, sent again: %t", c.first, c.second, reported, own, again)
		}
	}
}

func TestLargePacketsAreKeptForASmallerWay(t *testing.T) {
	t.Parallel()
	var h held
	defer h.release()
	for i, size := range []int{1240, 10, 1400, 20, 1300} { // the oldest is not kept
		h.add(make([]byte, size), i%2 == 0, 0)
	}
	h.add(make([]byte, 1240), true, 0) // too large with the preface
	h.add(make([]byte, 1240), false, 0)
	preface := &Preface{Header: make([]byte, 52)}
	var sent []string
	send := func(b []byte, prefaced bool) { sent = append(sent, fmt.Sprint(len(b), prefaced)) }
	for range 2 { // the second report is of the other one
		if !h.resendLarge(heldFor, 1252, preface, send) {
			t.Error("no large datagram is kept")
		}
	}
	if want := []string{"1300 true", "1240 true"}; !slices.Equal(sent, want) {
		t.Errorf("sent again: %q, want %q", sent, want)
	}
	if h.resendLarge(heldFor, 1472, preface, send) || h.resendLarge(heldFor+1, 0, preface, send) || (*held)(nil).resendLarge(0, 0, preface, send) {
		t.Error("what is not kept is taken for kept")
	}
}

func TestAddressBook(t *testing.T) {
	t.Parallel()
	one, other, third := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.3")
	var book *addressBook
	if book.lost(one) {
		t.Error("lost before anything is known")
	}
	book = book.next([]netip.Addr{one, netip.AddrFrom16(third.As16())})
	if book.lost(one) || book.lost(other) {
		t.Error("lost at the beginning")
	}
	if again := book.next([]netip.Addr{third, one}); again != book {
		t.Error("another book of the same addresses")
	}
	book = book.next([]netip.Addr{other})
	if !book.lost(one) || !book.lost(third) || book.lost(other) {
		t.Error("the first two are gone")
	}
	book = book.next([]netip.Addr{one, other})
	if book.lost(one) || !book.lost(third) || book.lost(netip.MustParseAddr("203.0.113.1")) {
		t.Error("one has come back, and another one was never there")
	}
	for i := range 3 * goneMax {
		book = book.next([]netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})})
	}
	if n := len(book.gone); n > goneMax {
		t.Errorf("%d addresses are remembered", n)
	}
}

// reopens checks that the session's next datagram reaches the upstream from another socket than before, and that a reply comes back.
func (s *packetSession) reopens(all *sockets) {
	s.Helper()
	former := s.peer
	s.exchange([]byte("through another socket"))
	if s.peer == former {
		s.Errorf("from the same socket %s", former)
	}
	if n := all.count(); n != 1 {
		s.Errorf("%d sockets are tracked", n)
	}
}

// A socket that is of no use any more is replaced with the client's next datagram, which is not lost. The session stays.
func TestPacketSocketOfNoUse(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		all := newSockets(t)
		n := &nexts{}
		up := p.listen(t)
		n.set(up.LocalAddr())
		s := p.start(t, n.next, func(c *PacketConfig) { c.Track = all })
		s.upstream = up
		s.exchange([]byte("hello"))
		for i := range 3 {
			disconnect(t, s)
			s.reopens(all)
			var lost *Lost
			if got := n.failed[i+1]; !errors.As(got, &lost) || lost.Refused {
				t.Errorf("Next got the error %#v", got)
			}
		}
		s.relay.Close(adminClosed)
		if r := s.want(adminClosed); r.Dropped != 0 || r.DatagramsUp != 4 || r.DatagramsDown != 4 {
			t.Errorf("%+v", r)
		}
	})
}

// A session whose source address is gone does not wait for an error, which there is none of for IPv6.
func TestPacketSourceThatIsGone(t *testing.T) {
	t.Cleanup(func() { ownAddresses.Store(nil) })
	for _, p := range packetPairs {
		t.Run(p.name, func(t *testing.T) { // not parallel: no other session may lose its address
			there := []netip.Addr{netip.MustParseAddr(p.host)}
			ownAddresses.Store((*addressBook)(nil).next(there))
			all := newSockets(t)
			s := p.open(t, func(c *PacketConfig) { c.Track = all })
			former := s.peer
			ownAddresses.Store(ownAddresses.Load().next(append(there, netip.MustParseAddr("192.0.2.1"))))
			s.exchange([]byte("another address has come"))
			if s.peer != former {
				t.Error("another socket because an address has come")
			}
			ownAddresses.Store(ownAddresses.Load().next(nil))
			s.reopens(all)
			former = s.peer
			s.exchange([]byte("once is enough"))
			if s.peer != former {
				t.Error("opened again and again")
			}
		})
	}
}

// An upstream that is silent may have moved: it is looked for again, and kept where it has not.
func TestPacketUpstreamThatMovesSilently(t *testing.T) {
	defer func(before time.Duration) { silentFor = before }(silentFor)
	silentFor = 100 * time.Millisecond
	for _, p := range packetPairs {
		t.Run(p.name, func(t *testing.T) { // not parallel: silentFor is for all
			n := &nexts{}
			former, next := p.listen(t), p.listen(t)
			n.set(former.LocalAddr())
			var attempts atomic.Int32
			s := p.start(t, n.next, func(c *PacketConfig) {
				c.Named = true
				c.Attempt = func(_ net.Addr, _ time.Duration, err error) {
					if err != nil {
						attempts.Add(1)
					}
				}
			})
			s.upstream = former
			s.exchange([]byte("hello"))
			socket := s.peer
			eventually(t, "Next to be asked twice", func() bool {
				s.sendUp(knocking)
				return n.calls() >= 3
			})
			var lost *Lost
			if !errors.As(n.failed[1], &lost) || lost.Refused || !strings.Contains(lost.Error(), "has sent nothing") {
				t.Errorf("Next got the error %v", n.failed[1])
			}
			s.exchange([]byte("there it is"))
			if s.peer != socket {
				t.Error("another socket to an upstream that has not moved")
			}
			n.set(next.LocalAddr())
			s.upstream = next
			eventually(t, "a datagram at the new address", func() bool {
				s.sendUp(knocking)
				_ = next.SetReadDeadline(time.Now().Add(time.Millisecond))
				_, peer, err := next.ReadFromUDPAddrPort(make([]byte, packetSize))
				s.peer = peer
				return err == nil
			})
			s.down([]byte("hello again"))
			if attempts.Load() != 0 {
				t.Error("silence is taken for a failure")
			}
		})
	}
}

// An upstream that can't have moved is not asked for, however long it is silent.
func TestPacketSilenceWithoutANameIsNothing(t *testing.T) {
	defer func(before time.Duration) { silentFor = before }(silentFor)
	silentFor = time.Millisecond
	for _, p := range packetEngines {
		t.Run(p.name, func(t *testing.T) {
			n := &nexts{}
			up := p.listen(t)
			n.set(up.LocalAddr())
			s := p.start(t, n.next)
			s.upstream = up
			for i := range 20 {
				s.up(numbered(i))
				time.Sleep(time.Millisecond) // longer than silentFor
			}
			if n.calls() != 1 {
				t.Errorf("Next was called %d times", n.calls())
			}
		})
	}
}

// An error of a socket that another one has replaced meanwhile says nothing about that.
func TestAnErrorOfTheFormerSocketIsLate(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	g := &goroutinePackets{PacketRelay: NewPacket(PacketConfig{Next: func(context.Context, error) (net.Addr, error) {
		asked.Add(1)
		return nil, errNoMore
	}})}
	g.ctx, g.cancel = context.WithCancel(t.Context())
	former, current := &packetSocket{addr: new(net.UDPAddr)}, &packetSocket{addr: new(net.UDPAddr)}
	g.state.upstream = current
	g.reportedBy(former, syscall.ECONNREFUSED)
	g.asks.Wait()
	if n := asked.Load(); n != 0 {
		t.Errorf("Next was asked %d times", n)
	}
	g.reportedBy(current, syscall.ECONNREFUSED)
	g.asks.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("an error of the socket in use: Next was asked %d times", n)
	}
}
