package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// count may be read while lookups are under way.
type count struct{ atomic.Int64 }

func (c *count) get() int { return int(c.Load()) }

// nameServer answers lookups as a test says.
type nameServer struct {
	mu      sync.Mutex
	ips     []netip.Addr
	err     error
	takes   time.Duration // never, where it is more than the lookup may take
	asked   count
	now     count // lookups under way
	most    int   // of now
	told    []string
	strict  error // what Confirm finds
	names   *Names
	results []error
}

var (
	errServer   = &net.DNSError{Err: "server misbehaving", IsTemporary: true}
	errNotFound = &net.DNSError{Err: "no such host", IsNotFound: true}
)

func newNameServer(ips ...string) *nameServer {
	s := new(nameServer)
	s.answer(ips...)
	s.names = NewNames(NamesConfig{
		Lookup: s.lookup,
		Confirm: func(context.Context, string, string) ([]netip.Addr, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return nil, s.strict
		},
		Looked: func(err error) { s.results = append(s.results, err) },
		Old: func(_, host string, age time.Duration, err error) {
			s.told = append(s.told, fmt.Sprintf("old %s %s: %v", host, age, err))
		},
		Over: func(_, host string, err error) { s.told = append(s.told, fmt.Sprintf("over %s: %v", host, err)) },
	})
	return s
}

func (s *nameServer) answer(ips ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ips, s.err, s.takes = nil, nil, 0
	for _, ip := range ips {
		s.ips = append(s.ips, netip.MustParseAddr(ip))
	}
}

func (s *nameServer) fail(err error, takes time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.strict, s.takes = err, err, takes
}

func (s *nameServer) lookup(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	s.mu.Lock()
	s.asked.Add(1)
	s.most = max(s.most, int(s.now.Add(1)))
	ips, err, takes := s.ips, s.err, s.takes
	s.mu.Unlock()
	defer s.now.Add(-1)
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return slices.Clone(ips), nil
}

// ask is what a session gets that can wait for up to 3 s.
func (s *nameServer) ask(host string, stale time.Duration) string {
	ips, err := s.names.find(context.Background(), nameKey{"ip", host}, stale, 3*time.Second)
	if err != nil {
		return err.Error()
	}
	return strings.Trim(fmt.Sprint(ips), "[]")
}

// inBubble calls test with a name server of one address, and a name that a config has.
func inBubble(t *testing.T, test func(t *testing.T, s *nameServer, ask func(want string, asked int))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newNameServer("10.0.0.1")
		test(t, s, func(want string, asked int) {
			t.Helper()
			start := time.Now()
			got := s.ask("a", 24*time.Hour)
			synctest.Wait()
			if got != want || s.asked.get() != asked {
				t.Errorf("got %q after %d lookups, want %q after %d", got, s.asked.get(), want, asked)
			}
			if took := time.Since(start); took > 0 {
				t.Errorf("a session has waited for %s", took)
			}
		})
		time.Sleep(lookupLimit)
		synctest.Wait()
		if s.most > 1 {
			t.Errorf("%d lookups of one name at once", s.most)
		}
	})
}

const day = 24 * time.Hour

func hold(s *nameServer) { s.names.hold(nameKey{"ip", "a"}) }

func TestNamesAreLookedUpAgainAfterASecond(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *nameServer, ask func(string, int)) {
		ask("10.0.0.1", 1)
		ask("10.0.0.1", 1)
		time.Sleep(time.Hour) // a name that nobody asks for costs nothing
		s.answer("10.0.0.2")
		ask("10.0.0.1", 2) // at once, with the old answer
		ask("10.0.0.2", 2)
		time.Sleep(freshFor)
		ask("10.0.0.2", 3)
	})
}

// The name of a config is looked up when that is loaded, so that no session waits, and not again for the next config.
func TestNamesOfConfigsAreLookedUpAtOnce(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *nameServer, ask func(string, int)) {
		hold(s)
		synctest.Wait()
		ask("10.0.0.1", 1)
		time.Sleep(time.Minute)
		s.fail(errServer, 0)
		hold(s)
		s.names.release(nameKey{"ip", "a"})
		s.names.release(nameKey{"ip", "a"})
		hold(s)
		synctest.Wait()
		ask("10.0.0.1", 2) // what was known is still known
	})
}

// While the name server fails sessions use the last answer, for as long as they may. The log says so, and when it is over.
func TestOldAnswer(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *nameServer, ask func(string, int)) {
		hold(s)
		synctest.Wait()
		s.fail(errServer, 0)
		time.Sleep(time.Minute)
		for i := range 10 {
			ask("10.0.0.1", 2+i) // a failure is remembered for a second, too
			ask("10.0.0.1", 2+i)
			time.Sleep(freshFor)
		}
		if want := []string{"old a 1m0s: lookup : server misbehaving"}; !slices.Equal(s.told, want) {
			t.Errorf("told %q", s.told)
		}
		before := s.asked.get()
		time.Sleep(4 * retryEvery) // without a session it is tried all the same: it is to be known when it works
		synctest.Wait()
		if n := s.asked.get() - before; n != 4 {
			t.Errorf("%d lookups", n)
		}
		s.answer("10.0.0.3")
		time.Sleep(retryEvery)
		synctest.Wait()
		before = s.asked.get()
		if len(s.told) != 2 || s.told[1] != "over a: <nil>" {
			t.Errorf("told %q", s.told)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if s.asked.get() != before {
			t.Error("looked up while nobody asks")
		}
		ask("10.0.0.3", before+1)
	})
}

func TestStaleIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newNameServer("10.0.0.1")
		check := func(stale time.Duration, want string) {
			t.Helper()
			if got := s.ask("a", stale); got != want {
				t.Errorf("stale %s: got %s, want %s", stale, got, want)
			}
			synctest.Wait()
		}
		check(time.Hour, "10.0.0.1")
		s.fail(errServer, 0)
		check(0, "10.0.0.1") // what is no second old is not old
		time.Sleep(freshFor)
		check(0, "lookup : server misbehaving")
		check(time.Hour, "10.0.0.1")
		time.Sleep(time.Hour - freshFor)
		check(time.Hour, "10.0.0.1")
		time.Sleep(freshFor)
		for range 2 {
			check(time.Hour, "lookup : server misbehaving; the last answer is 1h0m1s old, and stale is 1h0m0s")
		}
		check(day, "10.0.0.1") // another handler
		time.Sleep(freshFor)
		// A name that nobody has asked for since long is waited for: it may have moved.
		s.answer("10.0.0.1")
		s.ask("a", 0)
		time.Sleep(2 * time.Hour)
		s.answer("10.0.0.2")
		if got := s.ask("a", time.Hour); got != "10.0.0.2" {
			t.Errorf("got %s", got)
		}
		if s.most > 1 {
			t.Errorf("%d lookups at once", s.most)
		}
	})
}

// A name server that doesn't answer is not on the way of a session whose upstream is known.
func TestSilentNameServer(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *nameServer, ask func(string, int)) {
		ask("10.0.0.1", 1)
		s.fail(nil, time.Hour)
		time.Sleep(freshFor)
		asked := 1
		for i := range 1000 {
			if i*100%int((lookupLimit+freshFor)/time.Millisecond) == 0 {
				asked++
			}
			ask("10.0.0.1", asked)
			time.Sleep(100 * time.Millisecond)
		}
		// It answers late: that is the answer all the same.
		s.answer("10.0.0.2")
		s.takes = 5 * time.Second
		time.Sleep(lookupLimit)
		s.ask("a", day)
		time.Sleep(6 * time.Second)
		if got := s.ask("a", day); got != "10.0.0.2" {
			t.Errorf("got %s", got)
		}
	})
}

// Sessions that wait for the same name share one lookup, each with its own deadline. It goes on when they have given up.
func TestSessionsShareALookup(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newNameServer("10.0.0.1")
		s.takes = 5 * time.Second
		var got sync.Map
		for i := range 100 {
			time.Sleep(100 * time.Millisecond)
			go func() {
				start := time.Now()
				ips := s.ask("a", 0)
				got.Store(i, fmt.Sprint(ips, " after ", time.Since(start)))
			}()
			if i == 49 {
				break
			}
		}
		time.Sleep(time.Minute)
		for i, want := range map[int]string{
			0:  "lookup a: no answer within 3s after 3s",
			19: "lookup a: no answer within 3s after 3s",
			21: "10.0.0.1 after 2.9s",
			49: "10.0.0.1 after 100ms",
		} {
			if text, _ := got.Load(i); text != want {
				t.Errorf("session %d: %v, want %s", i, text, want)
			}
		}
		if s.asked.get() != 1 || len(s.results) != 1 || s.results[0] != nil {
			t.Errorf("%d lookups, %v", s.asked.get(), s.results)
		}
	})
}

// The failure of a name that was never known is remembered for a second, too.
func TestFailureIsRemembered(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *nameServer, ask func(string, int)) {
		s.fail(errServer, 0)
		ask("lookup : server misbehaving", 1)
		ask("lookup : server misbehaving", 1)
		time.Sleep(freshFor)
		ask("lookup : server misbehaving", 2)
		s.answer("10.0.0.1")
		ask("lookup : server misbehaving", 2)
		time.Sleep(freshFor)
		ask("10.0.0.1", 3)
	})
}

// That there is no such name is an answer. It counts when the last good one is half a minute old: a name server that has just
// started may not know the name yet.
func TestNotFound(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *nameServer, ask func(string, int)) {
		hold(s)
		synctest.Wait()
		ask("10.0.0.1", 1)
		s.fail(errNotFound, 0)
		time.Sleep(freshFor)
		asked := 1
		for age := freshFor; age <= holdNotFound; age += freshFor {
			asked++
			ask("10.0.0.1", asked)
			time.Sleep(freshFor)
		}
		ask("lookup : no such host", asked+1)
		if want := []string{"old a 2s: lookup : no such host", "over a: lookup : no such host"}; !slices.Equal(s.told, want) {
			t.Errorf("told %q", s.told)
		}
		s.answer("10.0.0.2")
		time.Sleep(freshFor)
		ask("10.0.0.2", asked+2)
		// Only some of the questions were answered in that way, and others not at all.
		s.fail(errNotFound, 0)
		s.strict = errServer
		time.Sleep(time.Hour)
		ask("10.0.0.2", asked+3)
		time.Sleep(time.Minute)
		ask("10.0.0.2", asked+4)
	})
}

// A name that was removed does not come back because its name server fails later.
func TestRemovedNameStaysRemoved(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *nameServer, ask func(string, int)) {
		hold(s)
		synctest.Wait()
		s.fail(errNotFound, 0)
		time.Sleep(time.Hour)
		ask("10.0.0.1", 2) // nobody has asked meanwhile
		ask("lookup : no such host", 2)
		s.fail(errServer, 0)
		time.Sleep(freshFor)
		ask("lookup : server misbehaving", 3)
		s.answer("10.0.0.2")
		time.Sleep(freshFor)
		ask("10.0.0.2", 4)
	})
}

// A session that is closed does not wait. A lookup that waits for others, and that nobody needs, is given up.
func TestLookupsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newNameServer("10.0.0.1")
		s.fail(nil, time.Hour)
		ctx, cancel := context.WithCancel(t.Context())
		for i := range maxChosen + 10 {
			go func() {
				_, err := s.names.find(ctx, nameKey{"ip", fmt.Sprint("of-a-client-", i)}, day, time.Hour)
				if err != errTooMany && !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
			}()
		}
		synctest.Wait()
		if len(s.names.records) != maxChosen || s.now.get() != maxLookups {
			t.Errorf("%d names, %d lookups under way", len(s.names.records), s.now.get())
		}
		hold(s) // clients do not keep it from being looked up
		synctest.Wait()
		if s.now.get() != maxLookups+1 {
			t.Errorf("%d lookups under way", s.now.get())
		}
		cancel()
		synctest.Wait()
		if n := s.now.get(); n < 1 || n > maxLookups+1 {
			t.Errorf("%d lookups under way", n)
		}
		time.Sleep(lookupLimit)
		synctest.Wait()
		if s.now.get() != 0 || s.asked.get() > maxChosen/2 { // a few more get slots while the sessions leave one by one
			t.Errorf("%d of %d lookups under way", s.now.get(), s.asked.get())
		}
		s.answer("10.0.0.1")
		for i := range 2 * maxChosen {
			if got := s.ask(fmt.Sprint("more-", i), day); got != "10.0.0.1" {
				t.Fatal(got)
			}
		}
		if len(s.names.records) != maxChosen+1 || s.names.records[nameKey{"ip", "a"}] == nil {
			t.Errorf("%d names", len(s.names.records))
		}
	})
}

// Names whose server is silent don't keep those of other clients from being looked up for longer than their own sessions wait. While there are
// slots, their lookups go on.
func TestLookupsThatNobodyNeedsMakeWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newNameServer("10.0.0.1")
		s.fail(nil, time.Hour)
		silent := func() {
			var sessions sync.WaitGroup
			for i := range maxLookups {
				sessions.Go(func() { s.ask(fmt.Sprint("silent-", i), day) })
			}
			sessions.Wait()
			synctest.Wait()
		}
		silent()
		if s.now.get() != maxLookups || len(s.names.unwanted) != maxLookups {
			t.Errorf("%d lookups under way, nobody needs %d", s.now.get(), len(s.names.unwanted))
		}
		s.answer("10.0.0.1")
		for i := range 10 { // each takes the slot of another one
			if got := s.ask(fmt.Sprint("other-", i), day); got != "10.0.0.1" {
				t.Errorf("another name: %s", got)
			}
		}
		synctest.Wait()
		if s.now.get() != maxLookups-1 {
			t.Errorf("%d lookups under way", s.now.get())
		}

		s.fail(nil, time.Hour)
		go silent()
		synctest.Wait()
		s.answer("10.0.0.1")
		time.Sleep(time.Millisecond) // so that this session waits a moment longer than theirs
		if got := s.ask("waits", day); got != "10.0.0.1" {
			t.Errorf("who waits longer than they do: %s", got)
		}
		time.Sleep(lookupLimit)
		synctest.Wait()
		if s.now.get() != 0 || len(s.names.unwanted) != 0 || s.names.queued != 0 {
			t.Errorf("left: %d lookups, %d unwanted, %d queued", s.now.get(), len(s.names.unwanted), s.names.queued)
		}
	})
}

// A config that goes takes its lookups along, and what the log has said is over.
func TestReleasedNames(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, s *nameServer, ask func(string, int)) {
		a := nameKey{"ip", "a"}
		s.fail(errServer, 5*time.Second)
		hold(s)
		synctest.Wait()
		s.names.release(a)
		synctest.Wait()
		if s.now.get() != 0 || s.results != nil {
			t.Errorf("%d lookups under way, %v", s.now.get(), s.results)
		}
		s.answer("10.0.0.1")
		hold(s)
		synctest.Wait()
		s.fail(errServer, 0)
		time.Sleep(freshFor)
		ask("10.0.0.1", 3)
		ask("10.0.0.1", 3)
		s.names.release(a)
		if len(s.told) != 2 || s.told[1] != "over a: "+ErrReleased.Error() {
			t.Errorf("told %q", s.told)
		}
		time.Sleep(time.Hour)
		if s.asked.get() != 3 {
			t.Error("looked up for nobody")
		}
	})
}

// A walk whose only way on is to look names up again is not ready: an event loop must not wait for that.
func TestReadyWithNothingButNewAddresses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newNameServer("10.0.0.9")
		pool := NewPool([]Upstream{{Name: "a:1", Addr: mustParse(t, "a:1")}, {Name: "udp/10.0.0.2:2", Addr: mustParse(t, "udp/10.0.0.2:2")}})
		pool.Failures = NewFailures(Policy{MaxFails: 1, FailDuration: time.Hour}, time.Now, nil)
		pool.Hold(s.names)
		synctest.Wait()
		pool.Failures.Failed("a:1", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.9:1")), errServer)
		pool.Failures.Failed("udp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.2:2")), errServer) // all are out
		s.fail(errServer, time.Second)
		time.Sleep(freshFor)
		walk := pool.Walk()
		walk.Stale, walk.LookupTimeout = day, 3*time.Second
		ready, start := walk.Ready(), time.Now()
		_, _ = walk.Next(t.Context(), nil)
		if waited := time.Since(start); ready && waited > 0 {
			t.Errorf("ready, and has waited for %s", waited)
		} else if waited == 0 {
			t.Error("the walk had no name to wait for")
		}
		pool.Release()
	})
}

// A walk that must not wait says so, and goes on from there when it may.
func TestReady(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newNameServer("10.0.0.9")
		pool := NewPool([]Upstream{{Name: "a:1", Addr: mustParse(t, "a:1")}, {Name: "10.0.0.2:2", Addr: mustParse(t, "10.0.0.2:2")}})
		walk := func() *Walk {
			pool.base, pool.last = nil, -1
			walk := pool.Walk()
			walk.Retries, walk.Stale, walk.LookupTimeout = 1, day, time.Second
			return walk
		}
		check := func(w *Walk, ready bool, want ...string) {
			t.Helper()
			for range 2 { // to ask changes nothing
				if w.Ready() != ready {
					t.Errorf("ready is not %t", ready)
				}
			}
			for _, want := range want {
				if addr, err := w.Next(t.Context(), nil); err != nil || addr.String() != want {
					t.Errorf("got %v, %v, want %s", addr, err, want)
				}
			}
		}
		s.fail(errServer, 100*time.Millisecond)
		pool.Hold(s.names)
		check(walk(), false, "10.0.0.2:2")
		check(walk(), true, "10.0.0.2:2") // the failure is known
		s.answer("10.0.0.9")
		time.Sleep(freshFor)
		check(walk(), false, "10.0.0.9:1", "10.0.0.2:2")
		check(walk(), true, "10.0.0.9:1", "10.0.0.2:2")
		pool.Release()
	})
}

// Addresses are tried in turn of their families, and the family that has worked for a port comes first next time.
func TestFamilies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newNameServer("2001:db8::1", "2001:db8::2", "10.0.0.1", "::ffff:10.0.0.2", "10.0.0.3")
		pool := NewPool([]Upstream{{Name: "a:1", Addr: mustParse(t, "a:1")}})
		pool.Hold(s.names)
		defer pool.Release()
		six := []string{"[2001:db8::1]:1", "10.0.0.1:1", "[2001:db8::2]:1", "10.0.0.2:1", "10.0.0.3:1"}
		four := []string{"10.0.0.1:1", "[2001:db8::1]:1", "10.0.0.2:1", "[2001:db8::2]:1", "10.0.0.3:1"}
		check := func(datagrams bool, want []string, works int) {
			t.Helper()
			walk := pool.Walk()
			walk.Stale, walk.LookupTimeout, walk.Datagrams = day, time.Second, datagrams
			var got []string
			var addrs []net.Addr
			addr, err := walk.Next(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for ; addr != nil; addr = walk.Another(nil) {
				got, addrs = append(got, addr.String()), append(addrs, addr)
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			walk.Source().Works(addrs[works])
		}
		check(false, six, 0)
		check(false, six, 1)
		check(false, four, 0)
		check(true, six, 1) // the server for datagrams is another one
		check(true, four, 1)
		check(true, six, 0)
		check(false, four, 4)
		check(false, four, 1)
		check(false, six, 0)
		(Source{}).Works(&net.UnixAddr{})
		for i := range 2 * maxFamilies {
			s.names.prefer(service{host: fmt.Sprint(i)}, true)
		}
		if n := len(s.names.families); n != maxFamilies {
			t.Errorf("%d families are remembered", n)
		}
	})
}

// The system knows this machine by name. One that it does not know is not found, or can't be asked for.
func TestSystemLookup(t *testing.T) {
	t.Parallel()
	names := NewNames(NamesConfig{})
	ips, err := names.find(t.Context(), mustParse(t, "tcp4/:80").nameKey(), 0, time.Hour)
	if want := []netip.Addr{netip.MustParseAddr("127.0.0.1")}; err != nil || !slices.Equal(ips, want) {
		t.Errorf("got %v, %v", ips, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if ips, err := names.find(ctx, nameKey{"ip", "no.such.name.invalid"}, 0, time.Hour); err == nil {
		t.Errorf("got %v", ips)
	}
}

// A session whose upstream may have moved waits for the lookup, and does with the old answer if that fails.
func TestRenew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newNameServer("10.0.0.1")
		pool := NewPool([]Upstream{{Name: "a:1", Addr: mustParse(t, "a:1")}})
		pool.Hold(s.names)
		defer pool.Release()
		check := func(want string) {
			t.Helper()
			walk := pool.Walk()
			walk.Stale, walk.LookupTimeout, walk.Renew = day, 3*time.Second, true
			if addr, err := walk.Next(t.Context(), nil); err != nil || addr.String() != want {
				t.Errorf("got %v, %v, want %s", addr, err, want)
			}
		}
		check("10.0.0.1:1")
		time.Sleep(freshFor)
		s.answer("10.0.0.2")
		s.takes = 2 * time.Second
		check("10.0.0.2:1")
		s.fail(errServer, 0)
		time.Sleep(freshFor)
		check("10.0.0.2:1")
		check("10.0.0.2:1")
	})
}

// The addresses of a name that are known have all failed. The session waits for the lookup and tries those that are new, each once.
func TestNewAddressesAfterAllHaveFailed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newNameServer("10.0.0.1", "10.0.0.2")
		pool := NewPool([]Upstream{{Name: "a:1", Addr: mustParse(t, "a:1")}, {Name: "10.0.0.9:1", Addr: mustParse(t, "10.0.0.9:1")}})
		pool.Hold(s.names)
		defer pool.Release()
		check := func(want ...string) (waited time.Duration) {
			t.Helper()
			pool.base, pool.last = nil, -1
			walk := pool.Walk()
			walk.Stale, walk.LookupTimeout, walk.Retries = day, 3*time.Second, 5
			var failed error
			var got []string
			start := time.Now()
			for {
				addr, err := walk.Next(t.Context(), failed)
				if err != nil {
					break
				}
				if got = append(got, addr.String()); len(got) > 10 {
					break
				}
				failed = errRefused
			}
			if !slices.Equal(got, want) {
				t.Errorf("tried %q, want %q", got, want)
			}
			return time.Since(start)
		}
		check("10.0.0.1:1", "10.0.0.2:1", "10.0.0.9:1")
		time.Sleep(time.Hour)
		s.answer("10.0.0.2", "10.0.0.3")
		s.takes = time.Second
		check("10.0.0.1:1", "10.0.0.2:1", "10.0.0.9:1", "10.0.0.3:1")
		// While the name server fails nobody waits for it.
		s.fail(errServer, 2*time.Second)
		time.Sleep(time.Hour)
		check("10.0.0.2:1", "10.0.0.3:1", "10.0.0.9:1")
		time.Sleep(time.Minute)
		if waited := check("10.0.0.2:1", "10.0.0.3:1", "10.0.0.9:1"); waited > 0 {
			t.Errorf("waited for %s", waited)
		}
	})
}
