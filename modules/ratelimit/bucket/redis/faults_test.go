package redis

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// hurried is the timeout of decisions where the server fails, so that tests see what a connection waits.
const hurried = 100 * time.Millisecond

func hurry(o *Options) { o.Timeout = hurried }

// fault is a way for a server to fail, and to come back.
type fault struct {
	fail, heal func(*server)
	after      time.Duration // heal, it is well
}

var faults = map[string]fault{
	"stopped": {
		func(s *server) { s.signal(syscall.SIGTERM); _ = s.cmd.Wait(); s.cmd = nil },
		func(s *server) { s.start() },
		0,
	},
	"killed": {func(s *server) { s.kill() }, func(s *server) { s.start() }, 0},
	"paused": {func(s *server) { s.signal(syscall.SIGSTOP) }, func(s *server) { s.signal(syscall.SIGCONT) }, 0},
	"slow": {
		func(s *server) { go func() { _, _ = s.tryDo("DEBUG", "SLEEP", "5") }() },
		func(*server) {},
		5 * time.Second,
	},
	"out of memory": {
		func(s *server) { s.do("CONFIG", "SET", "maxmemory", "1") },
		func(s *server) { s.do("CONFIG", "SET", "maxmemory", "0") },
		0,
	},
	"read only": {
		func(s *server) { s.do("REPLICAOF", "127.0.0.1", "1") },
		func(s *server) { s.do("REPLICAOF", "NO", "ONE") },
		0,
	},
}

// Whatever happens to Redis, no decision takes longer than its timeout, each policy holds, hardly any waits
// once the breaker is open, no goroutines pile up, and all is well within five seconds of Redis being well.
func TestFaults(t *testing.T) {
	t.Parallel()
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := startServer(t)
			store := open(t, server, hurry)
			allows := open(t, server, hurry, func(o *Options) { o.OnError = Allow })
			denies := open(t, server, hurry, func(o *Options) { o.OnError = Deny })
			count := text(bucket.NewCount(2, 3), "x")
			store.admitted(2, count)
			limit := hourly(t, 1, 1<<10)

			f.fail(server)
			fails(t, store, text(limit, "x"))
			fails(t, allows, text(limit, "x"))
			fails(t, denies, text(limit, "x"))
			goroutines := runtime.NumGoroutine()
			start := time.Now()
			for i := range 2000 {
				if d := store.Decide(now(), text(limit, fmt.Sprint(i))); d.Refused {
					t.Fatalf("refused by this machine: %+v", d)
				}
			}
			if each := time.Since(start) / 2000; each > hurried/10 {
				t.Errorf("a decision takes %v while the breaker is open", each)
			}
			if n := runtime.NumGoroutine(); n > goroutines+100 { // of other tests too
				t.Errorf("%d goroutines, %d before", n, goroutines)
			}
			if n := store.admitted(3, count); n != 1 { // three at once, of which two were counted before
				t.Errorf("%d more at once, want 1", n)
			}

			f.heal(server)
			healed := time.Now()
			for _, s := range []*Store{store, allows, denies} {
				eventually(t, s.connected)
			}
			if took := time.Since(healed); took > f.after+20*time.Second { // 5 on a machine that is not busy
				t.Errorf("recovered after %v", took)
			}
			other := open(t, server) // the next node knows what the first one holds
			if n := other.admitted(1, count); n != 0 {
				t.Error("what was held before is not known any more")
			}
			if d := store.Decide(now(), text(limit, "x")); d.Failed || d.Refused {
				t.Errorf("after recovery: %+v", d)
			}
		})
	}
}

// fails requires that a store does what its policy says from the first decision that Redis does not answer, until it
// asks Redis no more.
func fails(t *testing.T, s *Store, requests []bucket.Request) {
	t.Helper()
	onError := s.policy.Load().onError
	follows := func(d bucket.Decision) error {
		if d.Failed != (onError != Local) || d.Refused != (onError == Deny) {
			return fmt.Errorf("%s: %+v", onError, d)
		}
		return nil
	}
	eventually(t, func() error {
		if d := decideWithin(t, s, requests, hurried); d.Failed || d.Refused {
			if err := follows(d); err != nil {
				t.Fatal(err)
			}
		}
		return s.disconnected()
	})
	if err := follows(decideWithin(t, s, requests, 0)); err != nil {
		t.Error(err)
	}
}

// busy is what a busy machine may add to a decision. It is less than a decision takes that waits for the end of a connection.
const busy = connTimeout * 3 / 4

// decideWithin requires a decision in that time.
func decideWithin(t *testing.T, s *Store, requests []bucket.Request, most time.Duration) bucket.Decision {
	t.Helper()
	start := time.Now()
	d := s.Decide(now(), requests)
	if took := time.Since(start); took > most+busy {
		t.Errorf("a decision took %v, want at most %v", took, most)
	}
	return d
}

// Many that ask when Redis stops answering all get their answer, and what waits for Redis on their behalf ends with the
// connection. Nothing runs beside this test, whose goroutines are counted.
func TestPausedUnderLoad(t *testing.T) {
	server := startServer(t)
	store := open(t, server, hurry)
	limit := hourly(t, 1, 1<<10)
	idle := runtime.NumGoroutine()
	server.signal(syscall.SIGSTOP)
	underLoad(t, store, limit)
	if err := store.disconnected(); err != nil {
		t.Error(err)
	}
	eventually(t, func() error { return atMost(idle + 20) }) // those of tries, which go on
	server.signal(syscall.SIGCONT)
	eventually(t, store.connected)
	eventually(t, func() error { return atMost(idle) })
}

// The same where every answer comes, but five seconds late, as of a network that is at fault and not the server. Nothing is
// well again while it is so.
func TestLateUnderLoad(t *testing.T) {
	server, late := startServer(t), new(atomic.Int64)
	store := open(t, behind(t, server, late), hurry)
	limit := hourly(t, 1, 1<<10)
	idle := runtime.NumGoroutine()
	late.Store(int64(5 * time.Second))
	for start := time.Now(); time.Since(start) < 7*time.Second; <-time.After(probeEvery) {
		underLoad(t, store, limit)
		if err := store.disconnected(); err != nil {
			t.Fatal(err)
		}
		if err := atMost(idle + 300); err != nil { // the 200 who asked before the breaker opened, and tries: not those of each round
			t.Fatal(err)
		}
	}
	late.Store(0)
	healed := time.Now()
	eventually(t, store.connected)
	if took := time.Since(healed); took > 20*time.Second {
		t.Errorf("recovered after %v", took)
	}
	eventually(t, func() error { return atMost(idle) })
}

// behind returns the way to a server on which every answer is late by so many nanoseconds.
func behind(t *testing.T, s *server, late *atomic.Int64) *server {
	t.Helper()
	path := strings.TrimPrefix(s.url, "unix://")
	ln, err := net.Listen("unix", path+".late")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			redis, err := net.Dial("unix", path)
			if err != nil {
				client.Close()
				continue
			}
			all.Go(func() { _, _ = io.Copy(redis, client); redis.Close() })
			all.Go(func() {
				defer client.Close()
				b := make([]byte, 64<<10)
				for {
					n, err := redis.Read(b)
					if err != nil {
						return
					}
					select {
					case <-time.After(time.Duration(late.Load())):
					case <-ended:
						return
					}
					if _, err := client.Write(b[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { close(ended); ln.Close(); s.kill(); all.Wait() })
	return &server{t: t, url: "unix://" + path + ".late"}
}

func underLoad(t *testing.T, store *Store, limit *bucket.Limit) {
	t.Helper()
	var clients sync.WaitGroup
	for i := range 200 {
		clients.Go(func() {
			for range 50 {
				decideWithin(t, store, text(limit, fmt.Sprint(i)), 2*hurried)
			}
		})
	}
	clients.Wait()
}

func atMost(goroutines int) error {
	if n := runtime.NumGoroutine(); n > goroutines {
		return fmt.Errorf("%d goroutines, want at most %d", n, goroutines)
	}
	return nil
}

// What each policy does without Redis, from the very beginning.
func TestPolicies(t *testing.T) {
	t.Parallel()
	rate, count := text(hourly(t, 1, 3), "x"), text(bucket.NewCount(2, 2), "x")
	both := append(text(hourly(t, 3, 5), "x"), text(bucket.NewCount(4, 3), "x")...)
	for policy, want := range map[Policy][3]int{Local: {3, 2, 3}, Allow: {9, 9, 9}, Deny: {0, 0, 0}} {
		store, err := New(Options{URL: "unix:///nonexistent", Timeout: hurried, Prefix: "x", Name: "limits", OnError: policy}, bucket.NewMemory(10))
		if err != nil {
			t.Fatal(err)
		}
		got := [3]int{store.admitted(9, rate), store.admitted(9, count), store.admitted(9, both)}
		if got != want {
			t.Errorf("%s: admitted %v, want %v", policy, got, want)
		}
		if policy == Local {
			d := store.Decide(now(), both)
			if !d.Refused || d.Limit != 1 || d.Failed {
				t.Errorf("%+v, want it refused by the count", d)
			}
			store.Release(now(), both)
			store.Release(now(), both)
			if n := store.admitted(9, both); n != 2 {
				t.Errorf("%d after two were given back, want 2", n)
			}
			store.Release(now(), both)
			if d = store.Decide(now(), both); !d.Refused || d.Limit != 0 || d.Retry == 0 {
				t.Errorf("%+v, want it refused by the rate", d)
			}
		} else if d := store.Decide(now(), rate); !d.Failed {
			t.Errorf("%s: %+v, want it to be called a failure", policy, d)
		}
		store.Close()
	}
}

// Whoever has used up a burst in Redis has none left on this machine.
func TestNoFreshBurstWithoutRedis(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	store := open(t, server)
	requests := text(hourly(t, 1, 10), "x")
	if n := store.admitted(7, requests); n != 7 {
		t.Fatalf("admitted %d", n)
	}
	server.kill()
	eventually(t, func() error { store.Decide(now(), text(hourly(t, 2, 100), "y")); return store.disconnected() })
	if n := store.admitted(10, requests); n != 3 {
		t.Errorf("this machine has admitted %d more, want 3", n)
	}
}

// Emptied, Redis begins anew, but the living sessions are counted.
func TestFlushed(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	a, b := open(t, server), open(t, server)
	rate, count := text(hourly(t, 1, 4), "x"), text(bucket.NewCount(2, 3), "x")
	other := text(bucket.NewCount(2, 3), "y")
	a.admitted(4, rate)
	a.admitted(3, count)
	a.admitted(1, other)
	for _, flush := range [][]string{{"FLUSHALL"}, {"SCRIPT", "FLUSH"}} {
		server.do(flush...)
	}
	start := time.Now()
	if n := a.admitted(9, rate); n != 4 {
		t.Errorf("the rate admits %d, want a new burst of 4", n)
	}
	eventually(t, func() error { // with the next heartbeat
		held := server.strings("HVALS", a.key(count[0].Key))
		if len(held) != 1 || held[0][0] != '3' {
			return fmt.Errorf("Redis knows %q", held)
		}
		return nil
	})
	if took := time.Since(start); took > heartbeat+10*time.Second {
		t.Errorf("what is held was told after %v", took)
	}
	if n := b.admitted(1, count); n != 0 {
		t.Error("admitted what the other node holds")
	}
}

// A key that somebody else has put there fails alone.
func TestWrongType(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	store := open(t, server, func(o *Options) { o.OnError = Deny })
	limit, count := hourly(t, 1, 4), bucket.NewCount(2, 3)
	server.do("RPUSH", store.key(limit.ForText("list")), "a")
	server.do("SET", store.key(limit.ForText("text")), "a")
	server.do("SET", store.key(count.ForText("text")), "a")
	server.do("HSET", store.key(count.ForText("hash")), "node", "a")
	for range 5 {
		for _, requests := range [][]bucket.Request{text(limit, "list"), text(limit, "text"), text(count, "text")} {
			if d := store.Decide(now(), requests); !d.Failed || !d.Refused {
				t.Errorf("%s: %+v, want it refused because it failed", requests[0].Key, d)
			}
		}
	}
	if d := store.Decide(now(), text(count, "hash")); d.Refused { // of a node that does not live
		t.Errorf("%+v", d)
	}
	if err := store.connected(); err != nil {
		t.Error(err)
	}
	if n := store.admitted(9, text(limit, "x")); n != 4 {
		t.Errorf("another key admits %d, want 4", n)
	}
}

// told is what a store has said.
type told struct {
	mu       sync.Mutex
	changes  []string
	keys     []string
	calls    int
	failures int
}

func (s *told) listen(o *Options) {
	o.Changed = func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil {
			s.changes = append(s.changes, err.Error())
		} else {
			s.changes = append(s.changes, "works again")
		}
	}
	o.BadKey = func(err error) { s.mu.Lock(); defer s.mu.Unlock(); s.keys = append(s.keys, err.Error()) }
	o.Observe = func(_ time.Duration, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.calls++; err != nil {
			s.failures++
		}
	}
}

func (s *told) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.changes)
}

// said returns an error until each of these was said, in this order, and nothing else.
func (s *told) said(want ...string) error {
	if all := s.all(); !slices.EqualFunc(all, want, strings.Contains) {
		return fmt.Errorf("said %q, want %q", all, want)
	}
	return nil
}

func (s *told) count() (calls, failures int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls, s.failures
}

// What is wrong is said once, however many decisions fail for it, and that it is over. A server that was there from the
// beginning is not worth a word.
func TestTold(t *testing.T) {
	t.Parallel()
	server, said := startServer(t), new(told)
	store := open(t, server, hurry, said.listen)
	limit := text(hourly(t, 1, 1000), "x")
	store.admitted(5, limit)
	must(t, said.said())
	server.kill()
	eventually(t, func() error { store.admitted(20, limit); return store.disconnected() })
	failing(t, said, 5)
	server.start()
	eventually(t, store.connected)
	eventually(t, func() error {
		if all := said.all(); len(all) < 2 || all[len(all)-1] != "works again" {
			return fmt.Errorf("said %q", all)
		}
		return nil
	})
	if calls, failures := said.count(); calls < 6 || failures == 0 || failures == calls {
		t.Errorf("%d calls of which %d failed", calls, failures)
	}
	counts := make(map[string]int)
	for _, change := range said.all() { // the connection that broke, and the server that is not there
		if counts[change]++; counts[change] > 1 {
			t.Errorf("said %q", said.all())
		}
	}
}

// failing waits until that many more calls have failed.
func failing(t *testing.T, said *told, more int) {
	t.Helper()
	_, before := said.count()
	eventually(t, func() error {
		if _, failures := said.count(); failures < before+more {
			return fmt.Errorf("%d calls have failed", failures-before)
		}
		return nil
	})
}

// A Redis that never worked says why, once, and that it does, once somebody has mended it.
func TestNeverWorked(t *testing.T) {
	t.Parallel()
	guarded := guardedServer(t, "secret")
	cert, key := certificate(t, t.TempDir())
	plain, encrypted, closed := freeAddr(t), freeAddr(t), freeAddr(t)
	_, plainPort, _ := net.SplitHostPort(plain)
	_, encryptedPort, _ := net.SplitHostPort(encrypted)
	startServer(t, "--port", plainPort, "--bind", "127.0.0.1", "--tls-port", encryptedPort, "--tls-cert-file", cert, "--tls-key-file", key,
		"--tls-ca-cert-file", cert, "--tls-auth-clients", "no")
	old := behaving(t, "-ERR unknown command `HELLO`, with args beginning with: `3` `AUTH` `default` `secret`\r\n")
	for name, c := range map[string]struct{ url, reason string }{
		"the wrong password":     {withPassword(guarded, "wrong"), "WRONGPASS"},
		"no password":            {withPassword(guarded, ""), "NOAUTH"},
		"a port that is closed":  {"redis://:secret@" + closed, "connection refused"},
		"a name that is unknown": {"redis://:secret@nowhere.invalid", "lookup of \"nowhere.invalid\""},
		"TLS to a plain port":    {"rediss://:secret@" + plain, "written redis://"},
		"plain to a TLS port":    {"redis://:secret@" + encrypted, "rediss://"},
		"an old server":          {"redis://:secret@" + old, "***"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			said := new(told)
			options := Options{URL: c.url, Timeout: patient, Prefix: "test:", Name: "limits", OnError: Local}
			said.listen(&options)
			store, err := New(options, bucket.NewMemory(10))
			must(t, err)
			defer store.Close()
			eventually(t, func() error { return said.said(c.reason) })
			store.admitted(100, text(hourly(t, 1, 1000), "x"))
			failing(t, said, 4)
			must(t, said.said(c.reason))
			if strings.Contains(said.all()[0], "secret") {
				t.Errorf("the password is said: %q", said.all())
			}
		})
	}
	t.Run("mended", func(t *testing.T) {
		t.Parallel()
		mended, said := guardedServer(t, "another"), new(told)
		options := Options{URL: withPassword(mended, "secret"), Timeout: patient, Prefix: "test:", Name: "limits", OnError: Local}
		said.listen(&options)
		store, err := New(options, bucket.NewMemory(10))
		must(t, err)
		defer store.Close()
		failing(t, said, 3)
		mended.do("CONFIG", "SET", "requirepass", "secret")
		eventually(t, store.connected)
		eventually(t, func() error { return said.said("WRONGPASS", "works again") })
	})
}

// guardedServer starts a server with a password.
func guardedServer(t *testing.T, password string) *server {
	t.Helper()
	s := newServer(t, "--requirepass", password)
	s.url = withPassword(s, password)
	s.start()
	return s
}

// withPassword returns the server's URL with another password, or without one.
func withPassword(s *server, password string) string {
	path := s.url[strings.Index(s.url, "/tmp"):]
	if password == "" {
		return "unix://" + path
	}
	return "unix://:" + password + "@" + path
}

// behaving is a server that answers everything with the same text.
func behaving(t *testing.T, answer string) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(time.Minute))
				for b := make([]byte, 1024); ; {
					n, err := conn.Read(b)
					if err != nil {
						return
					}
					commands := bytes.Count(b[:n], []byte("*")) // each is an array
					_, _ = io.WriteString(conn, strings.Repeat(answer, commands))
				}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); all.Wait() })
	return ln.Addr().String()
}

// The set of nodes is needed for everything: where something else is in its place, Redis is not used, which is said with
// the key's name, and it is again once that is gone.
func TestWrongTypeOfNodes(t *testing.T) {
	t.Parallel()
	server, said := startServer(t), new(told)
	store := open(t, server, said.listen)
	count := text(bucket.NewCount(2, 1000), "x")
	name := fmt.Sprintf("key %q", store.nodesKey())
	server.do("SET", store.nodesKey(), "mine") // while it runs
	eventually(t, func() error { store.admitted(1, count); return store.disconnected() })
	failing(t, said, 4)
	must(t, said.said(name))
	server.do("DEL", store.nodesKey())
	eventually(t, func() error { return said.said(name, "works again") })

	server.do("DEL", store.nodesKey())
	server.do("SET", store.nodesKey(), "mine") // when another one starts
	options, other := Options{URL: server.url, Timeout: patient, Prefix: "test:", Name: "limits", OnError: Local}, new(told)
	other.listen(&options)
	late, err := New(options, bucket.NewMemory(10))
	must(t, err)
	t.Cleanup(late.Close)
	eventually(t, func() error { return other.said(name) })
	server.do("DEL", store.nodesKey())
	eventually(t, func() error { return other.said(name, "works again") })
}

// A key that holds something else is named, once. It keeps nothing else from being shared.
func TestBadKeyIsNamed(t *testing.T) {
	t.Parallel()
	server, said := startServer(t), new(told)
	a, b := open(t, server, said.listen), open(t, server)
	limit, count := hourly(t, 1, 4), bucket.NewCount(2, 3)
	server.do("RPUSH", a.key(limit.ForText("list")), "a")
	server.do("SET", a.key(limit.ForText("text")), "a")
	server.do("SET", a.key(count.ForText("text")), "a")
	for i, requests := range [][]bucket.Request{text(limit, "list"), text(limit, "text"), text(count, "text")} {
		a.admitted(9, requests)
		eventually(t, func() error {
			said.mu.Lock()
			defer said.mu.Unlock()
			if len(said.keys) != i+1 || !strings.Contains(said.keys[i], fmt.Sprintf("key %q", a.key(requests[0].Key))) {
				return fmt.Errorf("said %q, want the key of %s", said.keys, requests[0].Key)
			}
			return nil
		})
	}
	// What is held of the others is told all the same.
	var others []bucket.Request
	for i := range 10 {
		others = append(others, text(count, fmt.Sprint(i))...)
		a.admitted(3, others[i:])
	}
	for i := range others {
		a.Release(now(), others[i:i+1])
	}
	eventually(t, func() error {
		for i := range others {
			if b.admitted(1, others[i:i+1]) == 0 {
				return fmt.Errorf("%s is not told", others[i].Key)
			}
			b.Release(now(), others[i:i+1])
		}
		return nil
	})
	must(t, a.connected())
	must(t, said.said())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A store whose server is never there leaves nothing behind, which TestMain sees, and its sessions end.
func TestCloseWithoutServer(t *testing.T) {
	t.Parallel()
	store, err := New(Options{URL: "redis://127.0.0.1:1", Timeout: hurried, Prefix: "x", Name: "limits", OnError: Local}, bucket.NewMemory(10))
	if err != nil {
		t.Fatal(err)
	}
	count := text(bucket.NewCount(2, 2), "x")
	store.admitted(2, count)
	store.Close()
	store.Release(now(), count)
	store.Release(now(), count)
	if n := store.admitted(3, count); n != 2 {
		t.Errorf("admitted %d, want 2", n)
	}
}

var errNotYet = errors.New("not yet")
