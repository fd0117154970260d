package relay

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// attempts collects what Config.Attempt is told.
type attempts struct {
	mu  sync.Mutex
	all []attempt
}

type attempt struct {
	addr string
	took time.Duration
	err  error
}

func (a *attempts) note(addr net.Addr, took time.Duration, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, attempt{addr.String(), took, err})
}

// await waits until there are n of them.
func (a *attempts) await(t testing.TB, n int) []attempt {
	t.Helper()
	eventually(t, "attempts", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.all) >= n
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.all) != n {
		t.Fatalf("%d attempts, want %d: %v", len(a.all), n, a.all)
	}
	return slices.Clone(a.all)
}

func (a *attempts) config(c *Config)        { c.Attempt = a.note }
func (a *attempts) packets(c *PacketConfig) { c.Attempt = a.note }

// sockets is a Tracker of the sockets to all addresses but one.
type sockets struct {
	testing.TB
	ignored netip.AddrPort

	mu         sync.Mutex
	connecting int                               // between Connecting and Connected
	open       map[netip.AddrPort]netip.AddrPort // remote by local
	seen       []netip.AddrPort                  // remotes
	names      []string                          // for unix sockets; none: these are not tracked
}

func newSockets(t testing.TB) *sockets {
	s := &sockets{TB: t, open: map[netip.AddrPort]netip.AddrPort{}}
	t.Cleanup(func() {
		eventually(t, "Closed", func() bool { return s.count() == 0 })
	})
	return s
}

func (s *sockets) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open) + s.connecting
}

// remote returns where the socket with that local address leads to.
func (s *sockets) remote(local net.Addr) netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	addr, _ := addrPort(local)
	return s.open[addr]
}

func (s *sockets) Connecting(remote netip.AddrPort) TrackedSocket {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, remote)
	if remote == s.ignored {
		return nil
	}
	s.connecting++
	return &trackedSocket{sockets: s, remote: remote}
}

func (s *sockets) ConnectingUnix() (string, TrackedSocket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.names) == 0 {
		return "", nil
	}
	name := s.names[0]
	s.names = s.names[1:]
	s.connecting++
	return name, &trackedSocket{sockets: s}
}

type trackedSocket struct {
	*sockets
	local, remote netip.AddrPort
	closed        bool
}

func (s *trackedSocket) Connected(local netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.local.IsValid() || !local.IsValid() {
		s.Errorf("Connected(%s): before %s, closed %t", local, s.local, s.closed)
	}
	s.connecting--
	s.local = local
	s.open[local] = s.remote
}

func (s *trackedSocket) Closed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		s.Errorf("Closed twice: %s", s.local)
	}
	s.closed = true
	if s.local.IsValid() {
		delete(s.open, s.local)
	} else {
		s.connecting--
	}
}

func TestAttemptsOfAStream(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		ln, refuses := p.listen(t), closedAddr(t)
		var got attempts
		s := p.start(t, only(refuses, &net.UnixAddr{Net: "unix", Name: "/nonexistent/s"}, ln.Addr()), got.config)
		s.acceptFrom(ln)
		s.exchange(10)
		all := got.await(t, 3)
		for i, want := range []attempt{
			{refuses.String(), 0, syscall.ECONNREFUSED}, {"/nonexistent/s", 0, syscall.ENOENT}, {ln.Addr().String(), 0, nil},
		} {
			if a := all[i]; a.addr != want.addr || !errors.Is(a.err, want.err) || a.took < 0 || a.took > patience {
				t.Errorf("attempt %d: got %v, want %v", i, a, want)
			}
		}
		s.client.Close()
		s.upstream.Close()
		s.result()
		got.await(t, 3)
	})
}

// An attempt that times out is reported with its time; one that is cut is not.
func TestAttemptThatTakesLong(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		const limit = 50 * time.Millisecond
		var got attempts
		addr, _ := deaf(t)
		s := p.start(t, only(addr), limits(Limits{Connect: limit}), got.config)
		s.want(ConnectTimeout)
		if a := got.await(t, 1)[0]; a.addr != addr.String() || a.took < limit || connectReason(a.err) != ConnectTimeout {
			t.Errorf("got %v", a)
		}
		var cut attempts
		s = p.start(t, only(addr), cut.config)
		s.relay.Close(adminClosed)
		s.want(adminClosed)
		cut.await(t, 0)
	})
}

func TestTrackedStreams(t *testing.T) {
	overPairs(t, func(t *testing.T, p pair) {
		ln, refuses := p.listen(t), closedAddr(t)
		track := newSockets(t)
		s := p.start(t, only(refuses, ln.Addr()), func(c *Config) { c.Track = track })
		s.acceptFrom(ln)
		s.exchange(10)
		want, ok := addrPort(ln.Addr())
		if p.unix {
			ok = false
		}
		if got := track.remote(s.upstream.RemoteAddr()); ok && got != want {
			t.Errorf("the upstream's client %s leads to %s, want %s", s.upstream.RemoteAddr(), got, want)
		}
		s.client.Close()
		s.upstream.Close()
		s.result()
		if n := track.count(); n != 0 {
			t.Errorf("%d sockets were not closed at the end", n)
		}
	})
}

// However a session ends, each socket is closed once.
func TestTrackedStreamsThatAreCut(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		track := newSockets(t)
		tracked := func(c *Config) { c.Track = track }
		for _, end := range []func(*session){
			func(s *session) { s.relay.Close(adminClosed) },
			func(s *session) { s.reset(s.client) },
			func(s *session) { s.reset(s.upstream) },
		} {
			s := p.open(t, tracked)
			end(s)
			s.result()
			s.upstream.Close()
		}
		addr, _ := deaf(t)
		s := p.start(t, only(addr), limits(Limits{Connect: time.Millisecond}), tracked)
		s.want(ConnectTimeout)
		s = p.start(t, only(addr), tracked)
		eventually(t, "attempt", func() bool { return track.count() > 0 })
		s.relay.Close(adminClosed)
		s.want(adminClosed)
	})
}

// Whoever does not want a socket is not told of it.
func TestSocketsThatAreNotTracked(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		ln := p.listen(t)
		track := newSockets(t)
		track.ignored, _ = addrPort(ln.Addr())
		s := p.start(t, only(ln.Addr()), func(c *Config) { c.Track = track })
		s.acceptFrom(ln)
		s.exchange(10)
		if got := track.remote(s.upstream.RemoteAddr()); got.IsValid() || !slices.Equal(track.seen, []netip.AddrPort{track.ignored}) {
			t.Errorf("tracked: %s; asked about %v", got, track.seen)
		}
	})
}

func TestAttemptsOfPackets(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		var got attempts
		up := p.newPort(t)
		s := p.start(t, always(up.addr), got.packets)
		s.sendUp([]byte("nobody hears this"))
		a := got.await(t, 1)[0]
		if a.addr != up.addr.String() || !errors.Is(a.err, syscall.ECONNREFUSED) || a.took < 0 || a.took > patience {
			t.Errorf("got %v", a)
		}
		s.upstream = up.open(t)
		s.exchange([]byte("hello"))
		s.exchange([]byte("again"))
		for _, a := range got.await(t, 2)[1:] {
			if a.addr != up.addr.String() || a.err != nil {
				t.Errorf("got %v", a)
			}
		}
	})
}

func TestAttemptWithAnAddressThatCannotBeUsed(t *testing.T) {
	overPackets(t, packetEngines, func(t *testing.T, p packetPair) {
		var got attempts
		s := p.start(t, only(&net.UnixAddr{Net: "unixgram", Name: "/nonexistent/s"}), got.packets)
		s.want(ConnectFailed)
		if a := got.await(t, 1)[0]; a.addr != "/nonexistent/s" || a.err == nil {
			t.Errorf("got %v", a)
		}
	})
}

func TestTrackedPackets(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		track := newSockets(t)
		s := p.open(t, func(c *PacketConfig) { c.Track = track })
		want, _ := addrPort(s.upstream.LocalAddr())
		if got := track.remote(net.UDPAddrFromAddrPort(s.peer)); got != want {
			t.Errorf("the upstream's client %s leads to %s, want %s", s.peer, got, want)
		}
		s.relay.Close(adminClosed)
		s.want(adminClosed)
		if n := track.count(); n != 0 {
			t.Errorf("%d sockets were not closed at the end", n)
		}
	})
}
