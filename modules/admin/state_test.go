package admin

import (
	"fmt"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// The history goes on over configs, whether they run or are rejected, and what records it ends with the last one: TestMain finds goroutines that
// are left.
func TestRecorderOverConfigs(t *testing.T) {
	provision := func() (end func(error)) {
		ctx, end := caddy.NewContextWithCause(caddy.ActiveContext())
		if err := new(stateAPI).Provision(ctx); err != nil {
			t.Fatal(err)
		}
		return end
	}
	until := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(waitFor); !is(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("not in time: " + what)
			}
		}
	}
	until("other tests have ended", func() bool { return current() == nil })
	end := provision()
	first := current()
	for i := range 100 {
		next := provision()
		if i%2 == 0 {
			next(fmt.Errorf("configuration error: %w", fmt.Errorf("the %dth is bad", i)))
		} else {
			end(fmt.Errorf("stopping apps"))
			end = next
		}
		if current() != first {
			t.Fatalf("after %d configs: the history is another one", i)
		}
	}
	end(fmt.Errorf("stopping apps"))
	until("the recorder ends", func() bool { return current() == nil })
	select {
	case <-first.stopped:
	default:
		t.Error("its goroutine has not ended")
	}
}

// What a look at 9,000 sessions costs, of which there is one every 5 seconds, or each second while somebody asks.
func BenchmarkLook(b *testing.B) {
	scope, _ := newScope(b)
	for i := range 9000 {
		begin(b, scope, "tcp", "test.bench:1", fmt.Sprintf("192.0.2.%d:%d", i%250+1, i%60000+1), "127.0.0.1:9", 0)
	}
	r := newRecorder(counting{
		count:  func(func()) int { return ofSessions.count(func() {}) },
		totals: ofSessions.totals, all: ofSessions.all,
	})
	defer func() { _ = r.Destruct() }()
	for b.Loop() {
		r.mu.Lock()
		r.look()
		r.mu.Unlock()
	}
}

// What a report of the status costs beside the look.
func BenchmarkStatus(b *testing.B) {
	for b.Loop() {
		_ = readStatus()
	}
}
