package redis

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/portgate/caddy-portgate/modules/ratelimit/bucket"
)

// steppable starts a server whose clock step sets, by so many seconds off from the machine's.
func steppable(t *testing.T) (s *server, step func(seconds int64)) {
	t.Helper()
	library, err := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if err != nil || len(library) == 0 {
		t.Fatalf("no libfaketime (%v)", err)
	}
	file := filepath.Join(t.TempDir(), "offset")
	set := func(seconds int64) {
		if err := os.WriteFile(file+".new", fmt.Appendf(nil, "%+d\n", seconds), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	set(0)
	s = newServer(t)
	s.env = []string{
		// The server's own malloc asks for the time when libfaketime is not ready, and both wait for ever.
		"LD_PRELOAD=" + library[0] + " libc.so.6",
		"FAKETIME_TIMESTAMP_FILE=" + file, "FAKETIME_NO_CACHE=1",
		"FAKETIME_DONT_FAKE_MONOTONIC=1", // which no step of a real clock touches
	}
	s.start()
	return s, func(seconds int64) {
		t.Helper()
		set(seconds)
		if off := s.milliseconds() - time.Now().UnixMilli() - 1000*seconds; off < -60_000 || off > 60_000 {
			t.Fatalf("the clock of Redis is %d ms off from what it was set to", off)
		}
	}
}

// milliseconds is what the server's clock shows.
func (s *server) milliseconds() int64 {
	s.t.Helper()
	answer := s.do("TIME")
	at, err := answer.AsIntSlice()
	if err != nil {
		s.t.Fatal(err)
	}
	return at[0]*1000 + at[1]/1000
}

// expires requires that a key ends by itself within that time.
func (s *server) expires(key string, most time.Duration) {
	s.t.Helper()
	answer := s.do("PTTL", key)
	if left := time.Duration(mustInt(s.t, answer.ToInt64)) * time.Millisecond; left <= 0 || left > most {
		s.t.Errorf("%s expires after %v, want at most %v", key, left, most)
	}
}

func perMinute(t *testing.T, id uint16, n, burst int64) *bucket.Limit {
	t.Helper()
	l, err := bucket.NewEvents(id, n, time.Minute, burst, 0)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Set forward by an hour, Redis's clock gives one more burst and nothing else. Set back, it gives none, and keeps
// nobody out for longer than it takes a bucket to fill. Keys expire when it is full.
func TestClockStepsAndRates(t *testing.T) {
	t.Parallel()
	slow, quick := perMinute(t, 1, 1, 3), perMinute(t, 2, 600, 10)
	for seconds, burst := range map[int64]int{3600: 3, -3600: 0} {
		t.Run(fmt.Sprint(seconds), func(t *testing.T) {
			t.Parallel()
			server, step := steppable(t)
			store := open(t, server)
			if n := store.admitted(10, text(slow, "x")); n != 3 {
				t.Fatalf("admitted %d, want 3", n)
			}
			store.admitted(20, text(quick, "x"))
			step(seconds)
			if n := store.admitted(10, text(slow, "x")); n != burst {
				t.Errorf("admitted %d after the step, want %d", n, burst)
			}
			start := time.Now()
			eventually(t, func() error { return admits(store, text(quick, "x")) })
			if took := time.Since(start); took > time.Second+late { // it fills in one
				t.Errorf("kept out for %v", took)
			}
			server.expires(store.key(slow.ForText("x")), 181*time.Second)
			server.forgets("*2:x")
		})
	}
}

// What nodes that live hold is known all the time where Redis's clock is set back, and again with the next heartbeat
// where it is set forward. What a node held that was killed counts no longer than it would have.
func TestClockStepsAndCounts(t *testing.T) {
	t.Parallel()
	for _, seconds := range []int64{3600, -3600} {
		t.Run(fmt.Sprint(seconds), func(t *testing.T) {
			t.Parallel()
			server, step := steppable(t)
			lives, killed, asks := open(t, server), open(t, server), open(t, server)
			count := text(bucket.NewCount(2, 4), "x")
			if lives.admitted(3, count)+killed.admitted(1, count) != 4 {
				t.Fatal("4 at once")
			}
			killed.health.crash()
			step(seconds)
			start := time.Now()
			if seconds < 0 && asks.admitted(1, count) != 0 {
				t.Error("admitted where 4 are counted")
			}
			eventually(t, func() error { return server.knows(lives, count, 3) })
			if took := time.Since(start); took > heartbeat+late {
				t.Errorf("what a living node holds was not known for %v", took)
			}
			eventually(t, func() error { return admits(asks, count) })
			if took := time.Since(start); took > leaseTime+late {
				t.Errorf("what a killed node held came back after %v, want at most %v", took, leaseTime)
			}
			for ; time.Since(start) < 2*leaseTime; time.Sleep(50 * time.Millisecond) { // leases end, and are renewed
				if asks.admitted(1, count) != 0 {
					t.Fatalf("more than 4 at once after %v", time.Since(start))
				}
			}
			server.expires(asks.key(count[0].Key), countLife)
			server.expires(asks.nodesKey(), 2*countLife)
		})
	}
}

// find returns what a command finds, "" where it finds nothing.
func (s *server) find(args ...string) string {
	s.t.Helper()
	answer, err := s.tryDo(args...)
	if rueidis.IsRedisNil(err) {
		return ""
	}
	found, other := answer.ToString()
	if err := errors.Join(err, other); err != nil {
		s.t.Fatalf("%v: %v", args, err)
	}
	return found
}

// lease is how long a node will be counted if it is not heard of.
func (s *server) lease(nodes, name string) time.Duration {
	s.t.Helper()
	until, _ := strconv.ParseInt(s.find("ZSCORE", nodes, name), 10, 64) // 0 where it is not known
	return time.Duration(until-s.milliseconds()) * time.Millisecond
}

// knows tells whether that many are counted of what a node holds.
func (s *server) knows(node *Store, count []bucket.Request, n int64) error {
	s.t.Helper()
	name := node.counts.nodeName()
	held := s.find("HGET", node.key(count[0].Key), name)
	if left := s.lease(node.nodesKey(), name); !strings.HasPrefix(held, fmt.Sprint(n, ":")) || left <= 0 {
		return fmt.Errorf("Redis knows %q for %v, want %d", held, left, n)
	}
	return nil
}

// Where the clock was set back, the lease of a killed node is cut as soon as somebody asks for what it held.
func TestLeaseIsCutWhenAsked(t *testing.T) {
	t.Parallel()
	server, step := steppable(t)
	asks, killed := open(t, server), open(t, server)
	count := text(bucket.NewCount(2, 1), "x")
	killed.admitted(1, count)
	name := killed.counts.nodeName()
	killed.health.crash()
	step(-3600)
	if asks.admitted(1, count) != 0 {
		t.Error("admitted where 1 is counted")
	}
	if left := server.lease(asks.nodesKey(), name); left > leaseTime {
		t.Errorf("a killed node is counted for %v, want at most %v", left, leaseTime)
	}
}

// Where nobody asks, it is enough that another node says that it lives.
func TestLeaseIsCutUnasked(t *testing.T) {
	t.Parallel()
	server, step := steppable(t)
	lives, killed := open(t, server), open(t, server)
	lives.admitted(1, text(bucket.NewCount(2, 1), "x"))
	killed.admitted(1, text(bucket.NewCount(2, 1), "y"))
	name := killed.counts.nodeName()
	killed.health.crash()
	step(-3600)
	start := time.Now()
	eventually(t, func() error {
		if left := server.lease(lives.nodesKey(), name); left > leaseTime {
			return fmt.Errorf("a killed node is counted for %v, want at most %v", left, leaseTime)
		}
		return nil
	})
	if took := time.Since(start); took > heartbeat+late {
		t.Errorf("took %v", took)
	}
}
