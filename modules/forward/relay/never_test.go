package relay

import (
	"testing"
	"time"
)

// longest are durations at the end of what a Duration holds: limits that an operator sets so that they never pass.
var longest = []time.Duration{never, never - 1, never - time.Second, 2562047*time.Hour + 47*time.Minute + 16*time.Second, never / 2}

func TestLater(t *testing.T) {
	for _, c := range []struct{ t, d, want time.Duration }{
		{0, 0, 0},
		{time.Hour, time.Minute, time.Hour + time.Minute},
		{0, never, never},
		{1, never, never},
		{never, 1, never},
		{never, never, never},
		{1, never - 1, never},
		{1, never - 2, never - 1},
		{2, never - 1, never},
	} {
		if got := later(c.t, c.d); got != c.want {
			t.Errorf("later(%d, %d): got %d, want %d", c.t, c.d, got, c.want)
		}
	}
}

// A limit that lies too far ahead does not pass, and does not hide one that is nearer.
func TestExpiresNearTheEndOfDurations(t *testing.T) {
	const age = time.Hour
	for _, long := range longest {
		for name, l := range map[string]Limits{
			"idle":       {Idle: long},
			"half-close": {Idle: time.Minute, HalfClose: long},
			"lifetime":   {Lifetime: long},
			"all":        {Idle: long, HalfClose: long, Lifetime: long},
		} {
			if at, reason := l.expires(age, true, true); at < age+never/4 {
				t.Errorf("%s of %s: ends after %s with %s", name, long, at, reason)
			}
		}
		near := Limits{Idle: long, Lifetime: 2 * time.Hour}
		if at, reason := near.expires(age, true, false); at != near.Lifetime || reason != MaxLifetime {
			t.Errorf("idle of %s hides the lifetime: got %s, %s", long, at, reason)
		}
	}
}

// Both engines serve a session under the longest limits as they do without any.
func TestTheLongestLimitsEndNothing(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		for _, long := range longest {
			ln := p.listen(t)
			s := p.start(t, only(ln.Addr()), limits(Limits{Connect: long, Idle: long, HalfClose: long, Lifetime: long}))
			s.acceptFrom(ln)
			s.exchange(1)
			s.client.CloseWrite()
			s.wantEOF(s.upstream)
			s.stays()
			s.mustSend(s.upstream, 2, 1)
			s.mustReceive(s.client, 2, 1)
		}
	})
}

func TestTheLongestConnectTimeoutWaits(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		for _, long := range longest {
			addr, _ := deaf(t)
			s := p.start(t, only(addr), limits(Limits{Connect: long}))
			s.stays()
		}
	})
}

// stays sees that the session does not end within a few ticks of the wheel.
func (s *session) stays() {
	s.Helper()
	select {
	case r := <-s.ended:
		s.Errorf("ended: %s, %v", r.Reason, r.Err)
		s.ended <- r
	case <-time.After(200 * time.Millisecond):
	}
}

func TestTheLongestLimitsEndNoPackets(t *testing.T) {
	overPackets(t, packetEngines, func(t *testing.T, p packetPair) {
		for _, long := range longest {
			s := p.open(t, packetLimits(Limits{Connect: long, Idle: long, Lifetime: long}))
			select {
			case r := <-s.ended:
				t.Errorf("ended: %s", r.Reason)
			case <-time.After(200 * time.Millisecond):
			}
			s.exchange([]byte("still there"))
		}
	})
}

// A pacer may want the longest pause: the direction then stands still, and its silence is not the peers'.
func TestTheLongestPause(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		for _, long := range longest {
			s := p.open(t, pacedBy(pausing(long), nil), limits(Limits{Idle: 100 * time.Millisecond}))
			s.mustSend(s.client, 1, 10)
			s.stays()
			if up := s.relay.Stats().BytesUp; up > 0 {
				t.Errorf("pause of %s: %d bytes were sent", long, up)
			}
		}
	})
}

type pausing time.Duration

func (pausing) Quantum() int              { return 1 << 20 }
func (p pausing) Moved(int) time.Duration { return time.Duration(p) }

func TestLongestKeepAlive(t *testing.T) {
	for _, long := range longest {
		if c := keepAliveAfter(long); c.Enable {
			t.Errorf("keepalive of %s: probes are sent: %v", long, c)
		}
	}
	// Linux refuses more than 32767 seconds.
	if c := keepAliveAfter(1000 * time.Hour); !c.Enable || c.Idle != keepAliveMax || c.Interval != keepAliveMax {
		t.Errorf("keepalive of 1000h: %v", c)
	}
}
