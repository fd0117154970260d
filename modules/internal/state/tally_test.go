package state

import (
	"sync"
	"sync/atomic"
	"testing"
)

func counts(t *Tallies[string]) map[string]int64 {
	all := make(map[string]int64)
	t.Each(func(key string, living int64) { all[key] = living })
	return all
}

// A count is there as long as a config or a session needs it.
func TestTallyOutlivesConfigs(t *testing.T) {
	t.Parallel()
	var all Tallies[string]
	first := all.Hold("a")
	session := first.Begin()
	second := all.Hold("a") // of the next config
	first.Release()
	if !all.Held("a") || all.Held("b") || all.Living("a") != 1 || all.Living("b") != 0 {
		t.Errorf("held %v and %v, %d and %d live", all.Held("a"), all.Held("b"), all.Living("a"), all.Living("b"))
	}
	if second != first || second.Living().Load() != 1 {
		t.Fatalf("%d live for the next config", second.Living().Load())
	}
	second.Release() // a config without it
	if got := counts(&all); got["a"] != 1 || all.Held("a") {
		t.Fatalf("counted %v while a session lives, held %v", got, all.Held("a"))
	}
	third := all.Hold("a")
	if third.Living().Load() != 1 {
		t.Error("the session is forgotten")
	}
	third.Release()
	session.End()
	if got := counts(&all); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// A session that begins after its config has ended is counted where others look.
func TestTallyOfALateSession(t *testing.T) {
	t.Parallel()
	var all Tallies[string]
	old := all.Hold("a")
	old.Release()
	late := old.Begin()
	if got := counts(&all); got["a"] != 1 {
		t.Errorf("counted %v", got)
	}
	late.End()
	now := all.Hold("a")
	late = old.Begin()
	if now == old || now.Living().Load() != 1 || old.Living().Load() != 0 {
		t.Errorf("counted %d now and %d before", now.Living().Load(), old.Living().Load())
	}
	late.End()
	now.Release()
	if got := counts(&all); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// However configs and sessions come and go at the same time, nothing is counted twice, or left.
func TestTallyConcurrently(t *testing.T) {
	t.Parallel()
	var all Tallies[string]
	lasting := all.Hold("a").Begin()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 2000 {
				c := all.Hold("a")
				one := c.Begin()
				c.Release()
				two := c.Begin()
				one.End()
				two.End()
			}
		})
		wg.Go(func() {
			for range 2000 {
				c := all.Hold("b")
				c.Release()
				c.Begin().End()
			}
		})
	}
	wg.Wait()
	if got := counts(&all); got["a"] != 1 || got["b"] != 0 {
		t.Errorf("counted %v", got)
	}
	lasting.End()
	lasting.Release()
	if got := counts(&all); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// However many begin at once, with whatever limits, no more live than the highest limit says, and each that ends is told of once.
func TestTallyBelow(t *testing.T) {
	t.Parallel()
	var all Tallies[string]
	c := all.Hold("a")
	var ended, begun, most atomic.Int64
	stop := c.Watch(func(living int64) {
		if living < 0 {
			t.Errorf("%d live", living)
		}
		ended.Add(1)
	})
	other := c.Watch(func(int64) {})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 5000 {
				one, ok := c.BeginBelow(int64(2 + i%2*3))
				if !ok {
					continue
				}
				begun.Add(1)
				for now := one.Living().Load(); now > most.Load(); now = one.Living().Load() {
					most.Store(now)
				}
				one.End()
			}
		})
	}
	wg.Wait()
	if most.Load() > 5 || begun.Load() == 0 || ended.Load() != begun.Load() || c.Living().Load() != 0 {
		t.Errorf("%d at once, %d begun, %d ended, %d left", most.Load(), begun.Load(), ended.Load(), c.Living().Load())
	}
	stop()
	other()
	c.Begin().End()
	if ended.Load() != begun.Load() || c.ends.Load() != nil {
		t.Error("watched on")
	}
	c.Release()
}

// A limit holds for sessions of a config that was replaced long before.
func TestTallyBelowOfALateSession(t *testing.T) {
	t.Parallel()
	var all Tallies[string]
	old := all.Hold("a")
	old.Release()
	now := all.Hold("a")
	one, ok := old.BeginBelow(1)
	if !ok || one != now || !one.Is(old) {
		t.Fatal("not counted where others look")
	}
	if _, ok := old.BeginBelow(1); ok || now.Living().Load() != 1 || old.Living().Load() != 0 {
		t.Errorf("counted %d now and %d before", now.Living().Load(), old.Living().Load())
	}
	one.End()
	now.Release()
	late, ok := old.BeginBelow(1)
	if !ok || counts(&all)["a"] != 1 {
		t.Errorf("counted %v", counts(&all))
	}
	late.End()
	if got := counts(&all); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// Whoever needs to know is told in turns that there is a tally of a key and that there is none, however configs and sessions come and go.
func TestTalliesTell(t *testing.T) {
	t.Parallel()
	there := make(map[string]int) // guarded by the tallies
	tell := func(by int) func(string) {
		return func(key string) {
			if there[key] += by; there[key] < 0 || there[key] > 1 {
				t.Errorf("%s is there %d times", key, there[key])
			}
		}
	}
	all := Tallies[string]{Begun: tell(1), Over: tell(-1)}
	lasting := all.Hold("b")
	if there["b"] != 1 || there["a"] != 0 || !all.Has("b") || all.Has("a") {
		t.Errorf("there are %v", there)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				c := all.Hold("a")
				one := c.Begin()
				c.Release()
				one.End()
				c.Begin().End()
			}
		})
	}
	wg.Wait()
	if there["a"] != 0 || there["b"] != 1 {
		t.Errorf("there are %v", there)
	}
	lasting.Release()
	if there["b"] != 0 || all.Has("b") {
		t.Errorf("left: %v", there)
	}
}
