package session

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portgate/caddy-portgate/modules/internal/meter"
)

func lineWith(network, listener string) *Line {
	for _, l := range Lines() {
		if l.Network == network && l.Listener == listener {
			return l
		}
	}
	return nil
}

// Sessions are counted by listener and network, and all together, from begin to end.
func TestLines(t *testing.T) {
	sc, _, _ := newScope(t, 0, 0)
	const listener = "test.lines:1"
	before := ReadTotals()
	begin := func(network string) (*Session, *still) {
		s, m := (&Arrival{Network: network, Listener: listener}).Begin(sc), &still{}
		s.SetMover(m)
		s.SetUpstream("test.upstream", nil, nil)
		return s, m
	}
	a, moving := begin("tcp")
	b, _ := begin("udp")
	tcp, udp := lineWith("tcp", listener), lineWith("udp", listener)
	if tcp == nil || udp == nil || tcp.Living.Load() != 1 || udp.Living.Load() != 1 || tcp.Datagrams() || !udp.Datagrams() {
		t.Fatalf("%+v, %+v", tcp, udp)
	}
	moving.up, moving.down = 100, 200
	steps := 0
	if replaced := CountLiving(func() { steps++ }); replaced != 0 || steps < 2 {
		t.Errorf("%d of %d replaced", replaced, steps)
	}
	if tcp.BytesUp.Load() != 100 || tcp.BytesDown.Load() != 200 || udp.BytesUp.Load() != 0 {
		t.Errorf("%d and %d bytes", tcp.BytesUp.Load(), tcp.BytesDown.Load())
	}
	moving.up = 150
	a.End(End{Status: StatusDone, Reason: "client_fin"})
	a.End(End{Status: StatusDenied, Reason: "twice"})
	b.End(End{Status: StatusDenied, Reason: "test.denied"})
	after := ReadTotals()
	if tcp.Living.Load() != 0 || tcp.Begun.Load() != 1 || tcp.BytesUp.Load() != 150 || udp.Living.Load() != 0 {
		t.Errorf("after the end: %d living, %d begun, %d bytes", tcp.Living.Load(), tcp.Begun.Load(), tcp.BytesUp.Load())
	}
	if after.Begun-before.Begun != 2 || after.BytesUp-before.BytesUp != 150 || after.BytesDown-before.BytesDown != 200 ||
		after.Refused["test.denied"] != 1 || after.Refused["twice"] != 0 || after.Refused["client_fin"] != before.Refused["client_fin"] {
		t.Errorf("%+v, after %+v", after, before)
	}
}

// still is a mover of which the test says what it has moved.
type still struct{ up, down int64 }

func (*still) Close(string)              {}
func (*still) LastActive() time.Time     { return time.Now() }
func (s *still) Moved() (up, down int64) { return s.up, s.down }

// A line goes with the series of its listener, and not while somebody has that.
func TestLinesGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const listener = "test.lines:2"
		meter.Hold("listener", listener)
		held := lineOf("tcp", listener)
		meter.Hold("listener", listener)
		meter.Release("listener", listener)
		time.Sleep(time.Hour)
		if lineWith("tcp", listener) != held || lineOf("tcp", listener) != held {
			t.Error("a line has gone that somebody has")
		}
		meter.Release("listener", listener)
		time.Sleep(time.Hour)
		if lineWith("tcp", listener) != nil {
			t.Error("a line is left that nobody has")
		}
	})
}

func TestRefusalsAreCountedOnce(t *testing.T) {
	var r refusals
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range 1000 {
				r.add([]string{"a", "b", "c", "d"}[i%4])
			}
		})
	}
	all.Wait()
	for reason, n := range r.read() {
		if n != 2000 {
			t.Errorf("%s: %d", reason, n)
		}
	}
	if n := testing.AllocsPerRun(100, func() { r.add("a") }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
