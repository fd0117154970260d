package relay

import (
	"io"
	"sync/atomic"
	"testing"
	"time"
)

// firsts is what Config.First was told.
type firsts struct {
	late   time.Duration
	calls  atomic.Int32
	told   chan struct{}
	waited time.Duration
	ended  Reason
}

func (f *firsts) config(c *Config) {
	f.told = make(chan struct{})
	c.First = &First{Late: f.late, Tell: func(waited time.Duration, ended Reason) {
		f.waited, f.ended = waited, ended
		if f.calls.Add(1) == 1 {
			close(f.told)
		}
	}}
}

func (f *firsts) want(s *session, ended Reason) {
	s.Helper()
	select {
	case <-f.told:
	case <-time.After(patience):
		s.Fatal("nobody was told of the first byte")
	}
	if f.ended != ended {
		s.Errorf("told that it ended with %q, want %q", f.ended, ended)
	}
}

// The first byte is told of once, with how long it was waited for since the client's last byte, however long the client was silent before.
func TestFirstByte(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		var first firsts
		s := p.open(t, first.config)
		const silence, pause = 500 * time.Millisecond, 100 * time.Millisecond
		time.Sleep(silence)
		asked := time.Now()
		s.mustSend(s.client, 1, 10)
		s.mustReceive(s.upstream, 1, 10)
		time.Sleep(pause)
		s.mustSend(s.upstream, 2, 10)
		s.mustReceive(s.client, 2, 10)
		first.want(s, "")
		if most := time.Since(asked) + silence/2; first.waited < pause/2 || first.waited > most {
			t.Errorf("waited %v, want %v to %v", first.waited, pause, most)
		}
		s.exchange(100_000)
		_ = s.client.CloseWrite()
		_, _ = io.Copy(io.Discard, s.upstream)
		_ = s.upstream.CloseWrite()
		s.want(ClientFIN)
		if n := first.calls.Load(); n != 1 {
			t.Errorf("told %d times", n)
		}
	})
}

// An upstream that speaks first is waited for since it was connected.
func TestFirstByteOfAnUpstreamThatSpeaksFirst(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		var first firsts
		s := p.open(t, first.config)
		time.Sleep(100 * time.Millisecond)
		s.mustSend(s.upstream, 2, 10)
		s.mustReceive(s.client, 2, 10)
		first.want(s, "")
		if first.waited < 50*time.Millisecond {
			t.Errorf("waited %v", first.waited)
		}
	})
}

// Where no byte comes, the end is told of, with its reason.
func TestNoFirstByte(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(s *session)
		want Reason
	}{
		"client's FIN": {func(s *session) {
			_ = s.client.CloseWrite()
			_, _ = io.Copy(io.Discard, s.upstream)
			_ = s.upstream.CloseWrite()
		}, ClientFIN},
		"upstream's reset": {func(s *session) { s.reset(s.upstream) }, UpstreamReset},
		"closed":           {func(s *session) { s.relay.Close("enough") }, "enough"},
	} {
		t.Run(name, func(t *testing.T) {
			over(t, engines, func(t *testing.T, p pair) {
				var first firsts
				s := p.open(t, first.config)
				s.mustSend(s.client, 1, 10)
				s.mustReceive(s.upstream, 1, 10)
				c.end(s)
				s.want(c.want)
				first.want(s, c.want)
			})
		})
	}
	t.Run("never connected", func(t *testing.T) {
		over(t, engines, func(t *testing.T, p pair) {
			var first firsts
			s := p.start(t, only(closedAddr(t)), first.config)
			s.want(ConnectFailed)
			first.want(s, ConnectFailed)
		})
	})
}

// A byte that does not come in time is told of when it is late, and only once the client has sent something.
func TestLateFirstByte(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		first := firsts{late: 100 * time.Millisecond}
		s := p.open(t, first.config)
		time.Sleep(2 * first.late)
		if n := first.calls.Load(); n != 0 {
			t.Error("it was late though nobody had asked for anything")
		}
		s.mustSend(s.client, 1, 10)
		s.mustReceive(s.upstream, 1, 10)
		if first.want(s, ""); first.waited < first.late {
			t.Errorf("waited %v", first.waited)
		}
		s.exchange(100)
		if n := first.calls.Load(); n != 1 {
			t.Errorf("told %d times", n)
		}
	})
}

// A client that gives up after it has waited for long is told of then, not when the upstream closes, too.
func TestClientGivesUpOnTheFirstByte(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		first := firsts{late: 100 * time.Millisecond}
		s := p.open(t, first.config)
		time.Sleep(2 * first.late)
		_ = s.client.CloseWrite()
		if first.want(s, ""); first.waited < first.late {
			t.Errorf("waited %v", first.waited)
		}
	})
}
