package redis

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket/storetest"
)

func TestContract(t *testing.T) {
	server := startServer(t)
	var prefix atomic.Int64
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		own := func(o *Options) { o.Prefix = fmt.Sprint("contract", prefix.Add(1)) }
		return storetest.Subject{Store: open(t, server, own), Now: now, Pass: time.Sleep}
	})
}

// Two nodes admit together what one would alone, and count what both hold.
func TestNodesShare(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	a, b := open(t, server), open(t, server)
	rate, count := text(hourly(t, 1, 100), "x"), text(bucket.NewCount(2, 5), "x")
	var admitted [2]int
	var both sync.WaitGroup
	both.Go(func() { admitted[0] = a.admitted(90, rate) })
	both.Go(func() { admitted[1] = b.admitted(90, rate) })
	both.Wait()
	if admitted[0]+admitted[1] != 100 {
		t.Errorf("admitted %v, want 100 together", admitted)
	}
	if n, m := a.admitted(3, count), b.admitted(3, count); n != 3 || m != 2 {
		t.Errorf("one holds %d, the other %d, want 3 and 2", n, m)
	}
	a.Release(now(), count)
	eventually(t, func() error { // Redis is told soon
		if b.admitted(1, count) != 1 {
			return errors.New("what one gives back, the other does not get")
		}
		return nil
	})
	if a.admitted(1, count) != 0 {
		t.Error("more than 5 at once")
	}
}

// What a node has taken comes back when it ends, and when it is killed.
func TestNodesThatEnd(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	count := text(bucket.NewCount(2, 3), "x")
	ends, killed, stays := open(t, server), open(t, server), open(t, server)
	if ends.admitted(1, count)+killed.admitted(2, count) != 3 || stays.admitted(1, count) != 0 {
		t.Fatal("3 at once, and no more")
	}
	stays.Close()
	stays = open(t, server)
	ends.Close()
	eventually(t, func() error { return admits(stays, count) })
	// A node that is killed takes no leave.
	start := time.Now()
	killed.health.crash()
	eventually(t, func() error { return admits(stays, count) })
	if took := time.Since(start); took < leaseTime/3 || took > 2*leaseTime+late {
		t.Errorf("what a killed node holds came back after %v, want about %v", took, leaseTime)
	}
	if n := stays.admitted(5, count); n != 1 {
		t.Errorf("then there was room for %d, want 1", n)
	}
}

func admits(s *Store, requests []bucket.Request) error {
	if d := s.Decide(now(), requests); d.Refused {
		return errors.New("refused")
	}
	return nil
}

// crash ends the store's goroutine as the end of the process would, as far as Redis can tell.
func (h *health) crash() {
	h.store.counts.mu.Lock()
	h.store.counts.node = "" // so that the farewell is another's
	h.store.counts.keys = make(map[bucket.Key]*held)
	h.store.counts.mu.Unlock()
}

// A node that lives keeps what it holds for longer than a lease.
func TestLeaseIsRenewed(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	a, b := open(t, server), open(t, server)
	count := text(bucket.NewCount(2, 1), "x")
	a.admitted(1, count)
	for start := time.Now(); time.Since(start) < leaseTime*3/2; time.Sleep(50 * time.Millisecond) {
		if b.admitted(1, count) != 0 {
			t.Fatalf("lost after %v", time.Since(start))
		}
	}
}

// Each decision is one call of the script, once that was loaded, and every key expires.
func TestOneRoundTrip(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	store := open(t, server)
	requests := append(text(hourly(t, 1, 50), "x"), text(bucket.NewCount(2, 100), "x")...)
	requests = append(requests, text(hourly(t, 3, 80), "y")...)
	store.admitted(1, requests)
	eventually(t, func() error { // the news that the node was not known
		if store.counts.anyNews() {
			return errors.New("there is news")
		}
		return nil
	})
	server.do("CONFIG", "RESETSTAT")
	start := time.Now()
	store.admitted(100, requests)
	calls := server.calls()
	if n, beats := calls["evalsha"], 2+int(time.Since(start)/heartbeat); n < 100 || n > 100+beats {
		t.Errorf("%d calls for 100 decisions", n)
	}
	if calls["eval"] > 0 {
		t.Error("the script was sent again")
	}
	keys := server.strings("KEYS", "*")
	if len(keys) != 4 {
		t.Errorf("keys %q, want 3 and the nodes", keys)
	}
	for _, key := range keys {
		if ttl := server.do("PTTL", key); mustInt(t, ttl.ToInt64) <= 0 {
			t.Errorf("%s does not expire", key)
		}
	}
}

func mustInt(t testing.TB, get func() (int64, error)) int64 {
	t.Helper()
	n, err := get()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Buckets that are full again are gone.
func TestKeysExpire(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	store := open(t, server)
	quick, err := bucket.NewEvents(1, 50, time.Second, 5, 0)
	if err != nil {
		t.Fatal(err)
	}
	store.admitted(5, text(quick, "x"))
	server.forgets("*1:x")
}

// forgets waits until there are no keys of a pattern.
func (s *server) forgets(pattern string) {
	s.t.Helper()
	eventually(s.t, func() error {
		if keys := s.strings("KEYS", pattern); len(keys) > 0 {
			return fmt.Errorf("still there: %q", keys)
		}
		return nil
	})
}

// Many decisions at once are sent together.
func TestPipelined(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	store := open(t, server)
	limit := hourly(t, 1, 1000)
	// While the server sleeps, all that is asked waits; then it is there at once.
	reads := func() int64 {
		answer := server.do("INFO", "stats")
		stats, err := answer.ToString()
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(stats, "total_reads_processed:")
		n := int64(0)
		_, _ = fmt.Sscanf(after, "%d", &n)
		return n
	}
	before := reads()
	var asleep, all sync.WaitGroup
	asleep.Go(func() { server.do("DEBUG", "SLEEP", "1") })
	eventually(t, func() error {
		if d := store.Decide(now(), text(limit, "probe")); d.Refused {
			t.Fatal("refused")
		}
		return nil
	})
	for i := range 500 {
		all.Go(func() {
			if d := store.Decide(now(), text(limit, fmt.Sprint(i))); d.Refused || d.Failed {
				t.Errorf("%+v", d)
			}
		})
	}
	all.Wait()
	asleep.Wait()
	if n := reads() - before; n > 250 {
		t.Errorf("500 decisions at once took %d reads of the server", n)
	}
}

func TestURLs(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"redis://localhost", "redis://user:password@127.0.0.1:6380/2", "rediss://redis.example:6379?skip_verify=true",
		"redis://a:1?addr=b:2&addr=c:3", "redis://a:26379?addr=b:26379&master_set=main&sentinel_user=u&sentinel_password=p",
		"unix:///run/redis.sock", "redis://[::1]:6379",
	} {
		if _, err := Parse(url); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	for _, url := range []string{
		"", "localhost:6379", "http://secret@localhost", "redis://u:secret@localhost/x", "redis://u:secret@[::1",
		"redis://u:secret@localhost?tls=1", "redis://u:secret@localhost/1/2", "rediss://u:secret@localhost?skip_verify=maybe",
		"redis://u:secret%zz@localhost",
	} {
		_, err := Parse(url)
		if err == nil {
			t.Errorf("%q: no error", url)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error has the password: %v", url, err)
		}
	}
}
