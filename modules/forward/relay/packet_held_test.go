package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// cycle gives the addresses one after the other, again and again, as a pool does whose upstreams may come back.
func cycle(calls *atomic.Int64, addrs ...net.Addr) func(context.Context, error) (net.Addr, error) {
	return func(context.Context, error) (net.Addr, error) {
		return addrs[int(calls.Add(1)-1)%len(addrs)], nil
	}
}

// What a dead upstream refuses is sent to the next one: no question is lost, and none is sent twice.
func TestRefusedPacketsAreSentToTheNextUpstream(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		for dead := 1; dead <= 3; dead++ {
			var addrs []net.Addr
			for range dead {
				addrs = append(addrs, p.newPort(t).addr)
			}
			up := p.listen(t)
			var calls atomic.Int64
			var got attempts
			s := p.start(t, cycle(&calls, append(addrs, up.LocalAddr())...), got.packets)
			s.upstream = up
			s.exchange([]byte("question"))
			for i, a := range got.await(t, dead+1) {
				if i < dead && (a.addr != addrs[i].String() || !errors.Is(a.err, syscall.ECONNREFUSED)) || i == dead && a.err != nil {
					t.Errorf("attempt %d: %v", i, a)
				}
			}
			s.exchange([]byte("another one"))
			s.relay.Close(adminClosed)
			if r := s.want(adminClosed); r.DatagramsUp != 2 || r.BytesUp != 19 || r.Dropped != 0 || r.DatagramsDown != 2 {
				t.Errorf("%d dead: %+v", dead, r)
			}
		}
	})
}

// A client that asks two questions at once gets both answered, in order.
func TestRefusedPacketsKeepTheirOrder(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		addr, up := p.newPort(t).addr, p.listen(t)
		asked, answer := make(chan struct{}), make(chan struct{})
		s := p.start(t, func(_ context.Context, failed error) (net.Addr, error) {
			if failed == nil {
				return addr, nil
			}
			close(asked)
			<-answer
			return up.LocalAddr(), nil
		})
		s.upstream = up
		s.sendUp([]byte("A"))
		<-asked
		s.sendUp([]byte("AAAA"))
		eventually(t, "second question", func() bool { return s.relay.Stats().DatagramsUp == 2 })
		close(answer)
		s.wantUp([]byte("A"))
		s.wantUp([]byte("AAAA"))
		s.down([]byte("answer"))
		if n := s.dropped(DropUpstreamRefused); n != 0 {
			t.Errorf("%d datagrams count as refused", n)
		}
	})
}

// Where all refuse, the datagram goes once to each and once more to the first; then Next is asked once a second, and again at once
// where that leads to another one.
func TestUpstreamsThatAllRefuse(t *testing.T) {
	overPackets(t, packetEngines, func(t *testing.T, p packetPair) {
		n := &nexts{}
		addrs := []net.Addr{p.newPort(t).addr, p.newPort(t).addr}
		s := p.start(t, func(ctx context.Context, failed error) (net.Addr, error) {
			n.set(addrs[n.calls()%len(addrs)])
			return n.next(ctx, failed)
		})
		s.sendUp([]byte("anybody?"))
		eventually(t, "loss", func() bool { return s.dropped(DropUpstreamRefused) == 1 })
		n.mu.Lock()
		defer n.mu.Unlock()
		for i := 4; i < len(n.at); i++ {
			if pause := n.at[i].Sub(n.at[i-2]); pause < askInterval {
				t.Errorf("calls %d to %d of Next within %s", i-1, i+1, pause)
			}
		}
	})
}

// An upstream that has answered may be refusing for a moment: what it refuses then is lost, and nothing is kept of a session
// that has its answers.
func TestNothingIsHeldOfSessionsThatHadAnAnswer(t *testing.T) {
	for _, p := range packetPairs {
		t.Run(p.name, func(t *testing.T) { // not parallel: others hold datagrams
			before := heldTotal.Load()
			up, other := p.newPort(t), p.listen(t)
			var calls atomic.Int64
			s := p.start(t, cycle(&calls, up.addr, other.LocalAddr()))
			s.upstream = up.open(t)
			s.sendUp([]byte("question"))
			s.wantUp([]byte("question"))
			eventually(t, "an unanswered question to be held", func() bool { return heldTotal.Load() > before })
			s.down([]byte("answer"))
			eventually(t, "release", func() bool { return heldTotal.Load() == before })
			s.upstream.Close()
			s.sendUp([]byte("lost"))
			eventually(t, "refusal", func() bool { return s.dropped(DropUpstreamRefused) == 1 })
			eventually(t, "another upstream", func() bool { return calls.Load() == 2 })
			s.upstream = other
			eventually(t, "a datagram at the other upstream", func() bool {
				s.sendUp(knocking) // is lost as long as the socket leads to the former one
				_ = other.SetReadDeadline(time.Now().Add(time.Millisecond))
				_, _, err := other.ReadFromUDPAddrPort(make([]byte, len(knocking)))
				return err == nil
			})
			_ = other.SetReadDeadline(time.Now().Add(patience))
			s.exchange([]byte("next"))
			if heldTotal.Load() != before {
				t.Error("something is held of a session that had an answer")
			}
		})
	}
}

// What is held goes with the session.
func TestHeldPacketsGoWithTheSession(t *testing.T) {
	for _, p := range packetEngines {
		t.Run(p.name, func(t *testing.T) {
			before := heldTotal.Load()
			up := p.listen(t)
			s := p.start(t, always(up.LocalAddr()))
			s.upstream = up
			s.up([]byte("question"))
			s.relay.Close(adminClosed)
			s.want(adminClosed)
			if got := heldTotal.Load(); got != before {
				t.Errorf("%d bytes are held", got-before)
			}
		})
	}
}

// kept returns what would be sent again.
func kept(h *held, age time.Duration) (all []string) {
	h.resend(age, func(b []byte) bool { all = append(all, string(b)); return false })
	return all
}

func TestHeldKeepsTheLast(t *testing.T) {
	var h held
	defer h.release()
	for i := range 10 {
		h.add(fmt.Appendf(nil, "datagram %d", i), false, 0)
	}
	if got, want := kept(&h, 0), []string{"datagram 6", "datagram 7", "datagram 8", "datagram 9"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	large := make([]byte, heldMaxBytes-5)
	h.add(large, false, 0)
	h.add([]byte("small"), false, 0)
	if got := kept(&h, 0); len(got) != 2 || len(got[0]) != len(large) || got[1] != "small" {
		t.Errorf("got %.20q", got)
	}
	h.add(make([]byte, heldMaxBytes+1), false, 0) // does not fit
	if got := kept(&h, 0); len(got) != 0 {
		t.Errorf("got %.20q", got)
	}
	h.add(nil, false, 0)
	if got := kept(&h, 0); !slices.Equal(got, []string{""}) {
		t.Errorf("an empty datagram: got %q", got)
	}
}

// What is old is not sent again.
func TestHeldForgets(t *testing.T) {
	var h held
	defer h.release()
	h.add([]byte("old"), false, 0)
	h.refused()
	if lost := h.add([]byte("new"), false, heldFor+1); lost != 1 {
		t.Errorf("%d lost, want 1", lost)
	}
	if got := kept(&h, heldFor+1); !slices.Equal(got, []string{"new"}) {
		t.Errorf("got %q", got)
	}
	h.refused()
	if lost := h.resend(3*heldFor, func([]byte) bool { t.Error("sent again"); return false }); lost != 1 {
		t.Errorf("%d lost, want 1", lost)
	}
}

// All sessions together keep no more than a bound, and what they have kept is given back.
func TestHeldInTotal(t *testing.T) {
	before := heldTotal.Load()
	all := make([]held, heldTotalMax/heldMaxBytes+100)
	full := make([]byte, heldMaxBytes)
	n := 0
	for i := range all {
		all[i].add(full, false, 0)
		n += all[i].count
	}
	if got := heldTotal.Load(); got > heldTotalMax || n > heldTotalMax/heldMaxBytes || n < len(all)-200 {
		t.Errorf("%d sessions keep %d bytes", n, got)
	}
	for i := range all {
		all[i].release()
	}
	if got := heldTotal.Load(); got != before {
		t.Errorf("%d bytes were not given back", got-before)
	}
}

// A stream of datagrams to which nobody answers costs no memory for each.
func TestHeldAllocatesNothing(t *testing.T) {
	var h held
	defer h.release()
	b := make([]byte, 1000)
	h.add(make([]byte, heldMaxBytes), false, 0)
	if allocs := testing.AllocsPerRun(100, func() { h.add(b, false, 0) }); allocs > 0 {
		t.Errorf("%v allocations for each datagram", allocs)
	}
}

func TestHeldAsks(t *testing.T) {
	a, b := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2}
	var none *held
	if none.asks(a, 0, false) || !none.asks(a, 0, true) || none.refused() || none.giveUp() != 0 {
		t.Error("a session that holds nothing")
	}
	h := new(held)
	defer h.release()
	if h.asks(a, 0, false) {
		t.Error("asks at once with nothing to send again")
	}
	h.add([]byte("question"), false, 0)
	for i, c := range []struct {
		addr *net.UDPAddr
		due  bool
		want bool
	}{
		{a, false, true}, {b, false, true}, {a, false, false}, {b, false, false}, {b, true, true}, {b, false, false}, {a, false, true},
	} {
		if got := h.asks(c.addr, 0, c.due); got != c.want {
			t.Errorf("step %d: got %t", i, got)
		}
	}
	if h.add([]byte("late"), false, heldFor*3); h.asks(&net.UDPAddr{Port: 3}, heldFor*5, false) {
		t.Error("asks at once for what is too old to be sent again")
	}
}
