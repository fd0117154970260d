package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// keeping is a Keeper, what it has to do with its upstream, and what became of its connections.
type keeping struct {
	testing.TB
	*Keeper
	ln    net.Listener
	addrs atomic.Pointer[[]net.Addr]
	taken spareCount

	mu    sync.Mutex
	fates map[Fate]int
}

// spareCount counts descriptors, of which there are so many.
type spareCount struct {
	mu          sync.Mutex
	taken, most int
}

func (s *spareCount) Take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken >= s.most {
		return false
	}
	s.taken++
	return true
}

func (s *spareCount) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
}

func (s *spareCount) now() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

// keep keeps connections to a listener until the test ends. After that none is open, and no descriptor is taken.
func keep(t testing.TB, ln net.Listener, count int, with ...func(*KeeperConfig)) *keeping {
	t.Helper()
	k := &keeping{TB: t, ln: ln, fates: make(map[Fate]int), taken: spareCount{most: 1 << 20}}
	k.addrs.Store(&[]net.Addr{ln.Addr()})
	cfg := KeeperConfig{
		Count: count, MaxIdle: time.Hour, Addrs: func() []net.Addr { return *k.addrs.Load() }, Spare: &k.taken,
		Report: func(fate Fate, _ net.Addr) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.fates[fate]++
		},
	}
	for _, set := range with {
		set(&cfg)
	}
	k.Keeper = NewKeeper(cfg)
	t.Cleanup(func() {
		k.Close()
		if taken := k.taken.now(); taken != 0 {
			t.Errorf("%d descriptors are taken when the Keeper is closed", taken)
		}
	})
	return k
}

func (k *keeping) had(fate Fate) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fates[fate]
}

func (k *keeping) ready(n int) {
	k.Helper()
	eventually(k, fmt.Sprintf("%d connections ready", n), func() bool { return k.Ready() == n })
}

// accepts returns the next connection of the upstream.
func (k *keeping) accepts() net.Conn {
	k.Helper()
	_ = k.ln.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(patience))
	conn, err := k.ln.Accept()
	if err != nil {
		k.Fatal(err)
	}
	k.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// way has a relay use what is kept.
func (k *keeping) way(c *Config) {
	preface := c.Preface
	c.Way = func() Way { return Way{Preface: preface, Kept: k.Keeper} }
}

// session runs a relay whose upstream is conn, if it takes what is kept.
func (k *keeping) session(p pair, conn net.Conn, with ...func(*Config)) *session {
	k.Helper()
	s := p.prepare(k, only(k.ln.Addr()), append(with, k.way)...)
	s.run()
	s.upstream = conn.(stream)
	return s
}

// A session has a connection that was there before it, and another one takes its place.
func TestKeptConnectionIsUsed(t *testing.T) {
	over(t, plainPairs, func(t *testing.T, p pair) {
		k := keep(t, p.listen(t), 1)
		for n := range 3 {
			k.ready(1)
			s := k.session(p, k.accepts(), prefaced)
			s.reads(s.upstream, preface)
			s.exchange(10)
			s.client.CloseWrite()
			s.wantEOF(s.upstream)
			s.upstream.CloseWrite()
			if r := s.want(ClientFIN); r.BytesUp != 10 || r.BytesDown != 10 {
				t.Errorf("%+v", r.Stats)
			}
			if used := k.had(KeptUsed); used != n+1 {
				t.Errorf("%d were used after session %d", used, n)
			}
		}
		k.ready(1)
		if taken := k.taken.now(); taken != 1 {
			t.Errorf("%d descriptors are taken for one connection", taken)
		}
	})
}

// Nobody has to wait for a server that takes no connection any more: one is there. (It would be tried for seconds.)
func TestKeptConnectionNeedsNoServerThatAccepts(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		k := keep(t, p.listen(t), 1)
		k.ready(1)
		conn := k.accepts()
		k.ln.Close()
		attempts := make(chan time.Duration, 1)
		s := k.session(p, conn, func(c *Config) {
			c.Attempt = func(_ net.Addr, took time.Duration, err error) {
				if err != nil {
					t.Error(err)
				}
				attempts <- took
			}
		})
		s.exchange(10)
		<-attempts
	})
}

// echoes serves a listener until the test ends: begin is called with each connection, by number, and if it returns true all that comes
// is sent back.
func echoes(t testing.TB, ln net.Listener, begin func(n int, conn net.Conn) bool) {
	t.Helper()
	var serving sync.WaitGroup
	serving.Go(func() {
		for n := 0; ; n++ {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if !begin(n, conn) {
				t.Cleanup(func() { conn.Close() })
				continue
			}
			serving.Go(func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
}

// echoed requires that a session's server sends back what the client sends.
func (s *session) echoed() Result {
	s.Helper()
	_, _ = io.WriteString(s.client, "ping")
	s.reads(s.client, "ping")
	s.client.CloseWrite()
	s.wantEOF(s.client)
	return s.want(ClientFIN)
}

// seen waits until the system knows what has happened to what is kept.
func (k *keeping) seen() {
	k.Helper()
	eventually(k, "the end of what is kept", func() bool {
		k.Keeper.mu.Lock()
		defer k.Keeper.mu.Unlock()
		for _, p := range k.places {
			for _, c := range p.ready {
				if c.look() == "" {
					return false
				}
			}
		}
		return true
	})
}

// A connection that is dead is not handed out: the session dials, and does not fail.
func TestKeptConnectionThatIsDead(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		for name, kill := range map[string]func(conn *net.TCPConn){
			"finished": func(conn *net.TCPConn) { conn.CloseWrite() },
			"closed":   func(conn *net.TCPConn) { conn.Close() },
			"reset":    func(conn *net.TCPConn) { _ = conn.SetLinger(0); conn.Close() },
			"spoke":    func(conn *net.TCPConn) { _, _ = io.WriteString(conn, "220 hello") },
		} {
			ln, first := p.listen(t), make(chan net.Conn, 1)
			echoes(t, ln, func(n int, conn net.Conn) bool {
				if n == 0 {
					first <- conn
				}
				return n > 0
			})
			k := keep(t, ln, 1)
			k.ready(1)
			kill((<-first).(*net.TCPConn))
			k.seen()
			s := p.prepare(t, only(ln.Addr()), k.way)
			s.run()
			s.echoed()
			want := KeptClosed
			if name == "spoke" {
				want = KeptSpoke
			}
			if k.had(want) != 1 {
				t.Errorf("%s: %v", name, k.fates)
			}
		}
	})
}

// killing is a socket that dies when somebody takes it, after the Keeper has looked.
type killing struct{ kill func() }

func (killing) Connecting(netip.AddrPort) TrackedSocket        { return nil }
func (killing) ConnectingUnix() (name string, s TrackedSocket) { return "", nil }

type killed struct {
	killing
	closed *atomic.Int32
}

func (k killed) Connecting(netip.AddrPort) TrackedSocket { return k }
func (k killed) Connected(netip.AddrPort)                {}
func (k killed) Closed()                                 { k.closed.Add(1) }
func (k killed) TakenBy(Tracker)                         { k.kill() }

// An event loop looks once more before it uses a connection.
func TestKeptConnectionThatDiesWhenItIsTaken(t *testing.T) {
	over(t, loopPairs[:min(1, len(loopPairs))], func(t *testing.T, p pair) {
		ln, first := p.listen(t), make(chan net.Conn, 1)
		echoes(t, ln, func(n int, conn net.Conn) bool {
			if n == 0 {
				first <- conn
			}
			return n > 0
		})
		var closed atomic.Int32
		k := keep(t, ln, 1, func(c *KeeperConfig) {
			c.Track = func() Tracker {
				return killed{killing{func() {
					select {
					case conn := <-first:
						conn.Close()
						time.Sleep(50 * time.Millisecond) // until the FIN is there, for which the test has nothing to wait
					default:
					}
				}}, &closed}
			}
		})
		k.ready(1)
		s := p.prepare(t, only(ln.Addr()), k.way, func(c *Config) { c.Track = killing{} })
		s.run()
		s.echoed()
		if k.had(KeptUsed) != 1 || closed.Load() != 1 {
			t.Errorf("%v, %d sockets closed", k.fates, closed.Load())
		}
	})
}

// Where the server is restarted all of them are dead, and no session fails.
func TestAllKeptConnectionsAreDead(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		const count = 20
		ln, first := p.listen(t), make(chan net.Conn, count)
		echoes(t, ln, func(n int, conn net.Conn) bool {
			if n < count {
				first <- conn
			}
			return n >= count
		})
		k := keep(t, ln, count)
		k.ready(count)
		for range count {
			(<-first).Close()
		}
		k.seen()
		var all []*session
		for range 10 {
			s := p.prepare(t, only(ln.Addr()), k.way)
			s.run()
			all = append(all, s)
		}
		for _, s := range all {
			s.echoed()
		}
		k.ready(count)
		if k.had(KeptClosed) != count {
			t.Errorf("%v", k.fates)
		}
	})
}

// To a server that speaks first nothing is kept for a while, and none of its words is lost.
func TestKeptConnectionsOfAServerThatSpeaksFirst(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		ln := p.listen(t)
		echoes(t, ln, func(_ int, conn net.Conn) bool {
			_, err := io.WriteString(conn, "220 hello\n")
			return err == nil
		})
		k := keep(t, ln, 3)
		eventually(t, "its words", func() bool { return k.had(KeptSpoke) > 0 })
		k.ready(0)
		for range 3 {
			s := p.prepare(t, only(ln.Addr()), k.way)
			s.run()
			s.reads(s.client, "220 hello\n")
			s.echoed()
		}
		if k.had(KeptUsed) != 0 {
			t.Errorf("%v", k.fates)
		}
		eventually(t, "descriptors", func() bool { return k.taken.now() == 0 })
	})
}

// None is used that is older than it may be, and others take their place.
func TestKeptConnectionsExpire(t *testing.T) {
	t.Parallel()
	ln := listenTCP(t)
	var open atomic.Int32
	echoes(t, ln, func(_ int, conn net.Conn) bool { open.Add(1); return true })
	const maxIdle = 100 * time.Millisecond
	k := keep(t, ln, 2, func(c *KeeperConfig) { c.MaxIdle = maxIdle })
	k.ready(2)
	eventually(t, "other connections", func() bool { return k.had(KeptExpired) >= 4 && open.Load() >= 6 })
	for range 100 {
		if c := k.take(ln.Addr(), nil); c != nil {
			if age := time.Since(c.since); age > maxIdle+time.Second { // a pause of this goroutine between the two
				t.Errorf("one of %s is used", age)
			}
			_ = c.sock.Close()
		}
		c := &keptConn{since: time.Now().Add(-maxIdle)}
		if fate := c.fate(maxIdle); fate != KeptExpired {
			t.Fatalf("one that may be used no more: %q", fate)
		}
	}
}

// Connections to an address that the upstream does not have any more are dropped, and those of another one come with the first session.
func TestKeptConnectionsFollowTheAddresses(t *testing.T) {
	t.Parallel()
	before, after, second := listenTCP(t), listenTCP(t), listenTCP(t)
	k := keep(t, before, 2)
	k.ready(2)
	first := k.accepts()
	k.addrs.Store(&[]net.Addr{after.Addr(), second.Addr()})
	if n, err := first.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the connection to the address that is gone: %d, %v", n, err)
	}
	k.ready(2)
	if c := k.take(before.Addr(), nil); c != nil {
		t.Error("one to an address that is gone is used")
	}
	eventually(t, "none to it", func() bool { return k.had(KeptExpired) == 2 })
	if c := k.take(second.Addr(), nil); c != nil {
		t.Error("one to an address that nobody has asked for")
	}
	k.ready(4)
	for n := range 100 {
		k.take(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1 + n}, nil)
	}
	k.Keeper.mu.Lock()
	if places := len(k.places); places > keptAddrs {
		t.Errorf("%d addresses", places)
	}
	k.Keeper.mu.Unlock()
}

// A server that is away is tried again after a pause, and costs sessions nothing.
func TestKeeperOfAServerThatIsAway(t *testing.T) {
	t.Parallel()
	addr := closedAddr(t)
	k := keep(t, listenTCP(t), 5)
	k.addrs.Store(&[]net.Addr{addr})
	eventually(t, "failures", func() bool { return k.had(KeptFailed) >= 5 })
	if c := k.take(addr, nil); c != nil {
		t.Error("a connection to nobody")
	}
	k.ready(0)
	if failed := k.had(KeptFailed); failed > 10 {
		t.Errorf("%d attempts within a moment", failed)
	}
}

// Where there are no descriptors to spare, none is kept.
func TestKeeperWithoutDescriptors(t *testing.T) {
	t.Parallel()
	ln := listenTCP(t)
	echoes(t, ln, func(int, net.Conn) bool { return true })
	k := &keeping{TB: t}
	spare := &spareCount{most: 2}
	k.Keeper = NewKeeper(KeeperConfig{Count: 5, MaxIdle: time.Hour, Addrs: func() []net.Addr { return []net.Addr{ln.Addr()} }, Spare: spare})
	defer k.Close()
	k.ready(2)
	if c := k.take(ln.Addr(), nil); c == nil {
		t.Error("there is one")
	} else {
		defer c.sock.Close()
	}
	k.ready(2)
}

// A handshake may be done ahead. Tickets that the server sends after it are no words of its own.
func TestKeptConnectionInTLS(t *testing.T) {
	t.Parallel()
	for name, speaks := range map[string]bool{"silent": false, "speaks": true} {
		ln := listenTLS(t)
		var shaken atomic.Int32
		echoes(t, ln, func(_ int, conn net.Conn) bool {
			shaken.Add(1)
			if speaks {
				_, _ = io.WriteString(conn, "220 hello")
			}
			return true
		})
		k := keep(t, ln, 2, func(c *KeeperConfig) { c.Wrap = wrapTLS })
		if speaks {
			eventually(t, "its words", func() bool { return k.had(KeptSpoke) > 0 })
			k.ready(0)
			continue
		}
		k.ready(2)
		for range 5 { // looks that find tickets, and nothing
			k.look()
			eventually(t, "a look", func() bool { return len(k.wake) == 0 })
		}
		for range 4 {
			k.ready(2)
			s := engines[0].prepare(t, only(ln.Addr()), func(c *Config) {
				c.Wraps = true
				c.Way = func() Way {
					return Way{Kept: k.Keeper, Wrap: func(context.Context, net.Conn) (net.Conn, error) { return nil, errors.New("hands are shaken") }}
				}
			})
			s.run()
			s.echoed()
		}
		if k.had(KeptUsed) != 4 || k.had(KeptSpoke)+k.had(KeptClosed) != 0 {
			t.Errorf("%s: %v", name, k.fates)
		}
	}
}

// With a preface the handshake can't be done ahead. Where it fails over a connection that was kept, it is done over another one.
func TestKeptConnectionThatIsWrappedLater(t *testing.T) {
	t.Parallel()
	ln, first := listenTCP(t), make(chan net.Conn, 1)
	go func() {
		if conn, err := ln.Accept(); err == nil {
			first <- conn
		}
	}()
	k := keep(t, ln, 1)
	k.ready(1)
	dead := <-first
	var serving sync.WaitGroup
	echoes(t, ln, func(_ int, conn net.Conn) bool {
		serving.Go(func() {
			server, err := shakeHands(conn) // that one that is kept does not begin
			if err != nil {
				return
			}
			_, _ = io.Copy(server, server)
			_ = server.Close()
		})
		return false
	})
	tries := 0
	s := engines[0].prepare(t, only(ln.Addr()), func(c *Config) {
		c.Wraps = true
		c.Way = func() Way {
			return Way{Preface: []byte(preface), Kept: k.Keeper, Wrap: func(ctx context.Context, conn net.Conn) (net.Conn, error) {
				if tries++; tries == 1 {
					dead.Close()
				}
				client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
				return client, client.HandshakeContext(ctx)
			}}
		}
	})
	s.run()
	_, _ = io.WriteString(s.client, "ping")
	s.reads(s.client, preface+"ping")
	s.client.CloseWrite()
	s.wantEOF(s.client)
	s.want(ClientFIN)
	if tries != 2 || k.had(KeptUsed) != 1 {
		t.Errorf("%d handshakes, %v", tries, k.fates)
	}
}

// What takes and keeps at the same time loses no connection and no descriptor.
func TestKeeperConcurrently(t *testing.T) {
	t.Parallel()
	ln := listenTCP(t)
	var n atomic.Int32
	echoes(t, ln, func(int, net.Conn) bool { return n.Add(1)%5 != 0 })
	k := keep(t, ln, 8, func(c *KeeperConfig) { c.MaxIdle = 200 * time.Millisecond })
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				if c := k.take(ln.Addr(), nil); c != nil {
					_ = c.sock.Close()
				}
			}
		})
	}
	all.Wait()
	k.Close()
	if c := k.take(ln.Addr(), nil); c != nil {
		t.Error("a connection of a Keeper that is closed")
	}
}
