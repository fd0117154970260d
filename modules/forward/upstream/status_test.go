package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// upstreamsAt reads the addresses of upstreams.
func upstreamsAt(t *testing.T, names ...string) (upstreams []Upstream) {
	t.Helper()
	for _, name := range names {
		addr, err := Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		upstreams = append(upstreams, Upstream{Name: name, Addr: addr})
	}
	return upstreams
}

func streamAddr(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }

// An upstream is as good as its best address, and as bad as the worse of what is sent to it.
func TestStatusOfFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		policy := Policy{MaxFails: 2, FailDuration: 10 * time.Second}
		failures := NewFailures(policy, time.Now, nil)
		upstreams := upstreamsAt(t, "127.0.0.1:1", "127.0.0.2:1-2", "unix//run/x.sock", "127.0.0.3:1", "127.0.0.4:1")
		upstreams = append(upstreams, Upstream{Name: "{x}:1", Dynamic: true})
		upstreams[3].Drained, upstreams[4].Drained, upstreams[4].Maint = true, true, true
		p := NewPool(upstreams)
		p.Failures = failures
		expect := func(position int, streams, datagrams bool, state State, fails int, says string) {
			t.Helper()
			s := p.Survey(streams, datagrams).Status(position)
			if s.State != state || s.Fails != fails || (s.Err == nil) != (says == "") || s.Err != nil && !strings.Contains(s.Err.Error(), says) || s.At.IsZero() != (says == "") {
				t.Errorf("%s: %+v, want %v, %d fails, error %q", p.At(position).Name, s, state, fails, says)
			}
		}
		for i, state := range []State{Up, Up, Up, Drain, Maint, Up} {
			expect(i, true, true, state, 0, "")
		}
		fail := func(name, addr, says string) { failures.Failed(name, streamAddr(addr), errors.New(says)) }
		fail("127.0.0.1:1", "127.0.0.1:1", "first")
		expect(0, true, true, Up, 1, "first")
		time.Sleep(11 * time.Second)
		expect(0, true, true, Up, 0, "first")
		fail("127.0.0.1:1", "127.0.0.1:1", "second")
		fail("127.0.0.1:1", "127.0.0.1:1", "third")
		expect(0, true, true, Ejected, 2, "third")
		expect(0, false, true, Up, 0, "")
		if !p.Survey(true, false).Status(0).At.Equal(time.Now()) {
			t.Error("the time of the last failure is not told")
		}
		time.Sleep(11 * time.Second)
		fail("127.0.0.1:1", "127.0.0.1:1", "fourth")
		expect(0, true, false, Ejected, 3, "fourth")
		failures.Works(streamAddr("127.0.0.1:1"))
		expect(0, true, false, Up, 0, "fourth")

		fail("127.0.0.2:1-2", "127.0.0.2:1", "one")
		fail("127.0.0.2:1-2", "127.0.0.2:1", "port")
		expect(1, true, false, Up, 2, "port")
		time.Sleep(time.Second)
		fail("127.0.0.2:1-2", "127.0.0.2:2", "other")
		fail("127.0.0.2:1-2", "127.0.0.2:2", "ports")
		expect(1, true, false, Ejected, 2, "ports")

		fail("127.0.0.4:1", "127.0.0.4:1", "in maint")
		expect(4, true, false, Maint, 1, "in maint")
		expect(2, true, false, Up, 0, "")
		expect(5, true, false, Up, 0, "")
	})
}

// An address of datagrams that refuses nothing when it is tried again is in, as sessions see it.
func TestStatusOfDatagrams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		failures := NewFailures(Policy{MaxFails: 1, FailDuration: 10 * time.Second}, time.Now, nil)
		p := NewPool(upstreamsAt(t, "127.0.0.1:1"))
		p.Failures = failures
		addr := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:1"))
		failures.Failed("127.0.0.1:1", addr, errors.New("refused"))
		time.Sleep(11 * time.Second)
		if failures.out(addr, false) || p.Survey(false, true).Status(0).State != Ejected {
			t.Errorf("on trial it is %v", p.Survey(false, true).Status(0).State)
		}
		time.Sleep(2 * time.Second)
		if s := p.Survey(false, true).Status(0); s.State != Up {
			t.Errorf("after the trial it is %v", s.State)
		}
	})
}

// Of a name all addresses count, and that it can't be looked up is told.
func TestStatusOfNames(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answer, failed := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")}, error(nil)
		names := NewNames(NamesConfig{Lookup: func(context.Context, string, string) ([]netip.Addr, error) { return answer, failed }})
		failures := NewFailures(Policy{MaxFails: 1, FailDuration: time.Hour}, time.Now, nil)
		p := NewPool(upstreamsAt(t, "name.example:1"))
		p.Failures = failures
		p.Hold(names)
		defer p.Release()
		synctest.Wait()
		for i, want := range []State{Up, Ejected} {
			failures.Failed("name.example:1", net.TCPAddrFromAddrPort(netip.AddrPortFrom(answer[i], 1)), errors.New("refused"))
			if s := p.Survey(true, false).Status(0); s.State != want || s.Fails != 1 || s.Err == nil {
				t.Errorf("with %d addresses out: %+v", i+1, s)
			}
		}
		answer, failed = nil, errors.New("no name server")
		time.Sleep(2 * time.Second)
		if _, err := names.find(t.Context(), p.At(0).Addr.nameKey(), 0, time.Minute); err == nil {
			t.Error("the name is found")
		}
		if s := p.Survey(true, false).Status(0); s.Err == nil || !strings.Contains(s.Err.Error(), "no name server") {
			t.Errorf("a name that can't be looked up: %+v", s)
		}
	})
}

// Checks tell how they went, also where an address works.
func TestStatusOfChecks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := NewPool(upstreamsAt(t, "127.0.0.1:1", "127.0.0.2:1"))
		p.Health = NewHealth(Thresholds{Fails: 2, Passes: 1}, Where{})
		p.Failures = NewFailures(Policy{MaxFails: 3, FailDuration: time.Minute}, time.Now, nil)
		checked := p.Health.Add(p.upstreams[0].fixed.streams[0], false)
		expect := func(state State, fails int, err error, at time.Time) {
			t.Helper()
			s := p.Survey(true, false).Status(0)
			if s.State != state || s.Fails != fails || s.Err != err || !s.At.Equal(at) {
				t.Errorf("%+v, want %v, %d fails, %v, at %v", s, state, fails, err, at)
			}
			if s := p.Survey(true, false).Status(1); s != (Status{}) {
				t.Errorf("one that is not checked: %+v", s)
			}
		}
		expect(Up, 0, nil, time.Time{})
		time.Sleep(time.Second)
		checked.Note(nil)
		expect(Up, 0, nil, time.Now())
		p.Failures.Failed("127.0.0.1:1", p.upstreams[0].fixed.streams[0], errFailed)
		time.Sleep(time.Second)
		checked.Note(nil) // a check that passes does not hide that a session has failed
		expect(Up, 1, errFailed, time.Now())
		refused := errors.New("refused")
		for fails, state := range []State{Up, Down} {
			time.Sleep(time.Second)
			checked.Note(refused)
			expect(state, fails+1, refused, time.Now())
		}
		if p.Survey(false, true).Status(0).State != Up {
			t.Error("datagrams go to another address")
		}
	})
}

// What is told is what is decided: how many are ejected, what a breaker admits, and what has come back lately.
func TestStatusOfDecisions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const slowStart = 10 * time.Second
		p := NewPool(upstreamsAt(t, "127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1", "127.0.0.4:1"))
		p.Failures = NewFailures(Policy{MaxFails: 1, FailDuration: time.Minute}, time.Now, nil)
		p.Breakers = NewBreakers(Terms{Cause: CauseFailures, Window: time.Minute, MinSessions: 1, Open: time.Minute, HalfOpen: 1}, time.Now, nil)
		p.Returns, p.SlowStart, p.MaxEjected = NewReturns(time.Now), slowStart, 0.25
		defer p.Returns.Hold(slowStart)()
		expect := func(want ...State) {
			t.Helper()
			for i, state := range want {
				if s := p.Survey(true, false).Status(i); s.State != state {
					t.Errorf("%s is %v, want %v", p.At(i).Name, s.State, state)
				}
			}
		}
		expect(Up, Up, Up, Up)
		for i := range 2 {
			p.Failures.Failed(p.At(i).Name, p.upstreams[i].fixed.streams[0], errFailed)
			time.Sleep(time.Second)
		}
		expect(Ejected, Up, Up, Up) // one at most
		p.Returns.Address(p.upstreams[2].fixed.streams[0])
		expect(Ejected, Up, SlowStart, Up)
		time.Sleep(slowStart)
		admitted, _ := p.Breakers.admit(p.At(3).Name, p.upstreams[3].fixed.streams[0], 0, time.Now())
		p.Breakers.hear(admitted, outcome{failed: true}, errFailed)
		expect(Ejected, Up, Up, Open)
		if s := p.Survey(true, false).Status(3); s.Err != errFailed || !s.At.Equal(time.Now()) {
			t.Errorf("with an open breaker: %+v", s)
		}
		time.Sleep(2 * time.Minute)
		if _, ok := p.Breakers.admit(p.At(3).Name, p.upstreams[3].fixed.streams[0], 0, time.Now()); !ok {
			t.Error("no probe is admitted")
		}
		if s := p.Survey(true, false).Status(3); s.State != HalfOpen {
			t.Errorf("with a probe it is %v", s.State)
		}
		for i := range 4 {
			p.Failures.Failed(p.At(i).Name, p.upstreams[i].fixed.streams[0], errFailed)
		}
		expect(Ejected, Ejected, Ejected) // all are out, and are tried all the same
	})
}
