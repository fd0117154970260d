package discovery

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"testing/synctest"
	"time"
)

// scripted is a source that a test speaks for.
type scripted struct{ steps chan any }

func (s scripted) Run(ctx context.Context, to Sink) {
	for {
		select {
		case <-ctx.Done():
			return
		case step := <-s.steps:
			switch step := step.(type) {
			case Answer:
				to.Answer(step)
			case error:
				to.Failed(step)
			case nil:
				to.Same()
			}
		}
	}
}

func answer(addresses ...string) Answer {
	var c Collector
	for _, a := range addresses {
		c.Add(Entry{Address: a}, "")
	}
	answer, _ := c.Answer()
	return answer
}

var errAway = errors.New("it is away")

// told counts what a keeper does.
type told struct{ changes, good, failed, restored, expired int }

func keep(t *testing.T, grace time.Duration, stored *Kept) (*Keeper, func(any), *told) {
	t.Helper()
	var got told
	source := scripted{make(chan any)}
	k := Keep(source, KeeperConfig{
		GracePeriod: grace,
		Stored: func() (Kept, bool) {
			if stored == nil {
				return Kept{}, false
			}
			return *stored, true
		},
		Good:     func(Kept, bool) { got.good++ },
		Failed:   func(error, State) { got.failed++ },
		Restored: func(Kept) { got.restored++ },
		Expired:  func(error) { got.expired++ },
	})
	k.Follow(func() { got.changes++ })
	return k, func(step any) {
		source.steps <- step
		synctest.Wait()
	}, &got
}

func addressesOf(k *Keeper) (all []string) {
	for _, e := range k.State().Entries {
		all = append(all, e.Address)
	}
	return all
}

func want(t *testing.T, k *Keeper, got *told, want told, addresses ...string) {
	t.Helper()
	if *got != want {
		t.Errorf("got %+v, want %+v", *got, want)
	}
	if has := addressesOf(k); !reflect.DeepEqual(has, addresses) {
		t.Errorf("has %v, want %v", has, addresses)
	}
}

func TestKeeperTellsOfChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k, report, got := keep(t, time.Hour, nil)
		defer k.Close()
		if k.State().Known {
			t.Error("something is known from the beginning")
		}
		report(answer("a:1", "b:1"))
		<-k.First()
		want(t, k, got, told{changes: 1, good: 1}, "a:1", "b:1")
		report(answer("b:1", "a:1")) // the order of records in an answer means nothing
		want(t, k, got, told{changes: 1, good: 2}, "a:1", "b:1")
		report(answer("b:1"))
		want(t, k, got, told{changes: 2, good: 3}, "b:1")
	})
}

// A source that fails, or says that there is nothing, leaves what there was.
func TestKeeperKeepsTheLastGoodAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k, report, got := keep(t, time.Hour, nil)
		defer k.Close()
		report(answer("a:1"))
		report(errAway)
		report(Answer{})
		if err := k.State().Err; !errors.Is(err, ErrEmpty) {
			t.Errorf("an empty answer: %v", err)
		}
		report(answer("nowhere", "nothing"))
		if err := k.State().Err; err == nil || err.Error() != `all 2 entries are bad, the first one: "nowhere": expected host:port, host:first-last or unix//path` {
			t.Errorf("a bad answer: %v", err)
		}
		want(t, k, got, told{changes: 1, good: 1, failed: 3}, "a:1")
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		if state := k.State(); !state.Expired || !state.Known {
			t.Errorf("after the grace period: %+v", state)
		}
		want(t, k, got, told{changes: 2, good: 1, failed: 3, expired: 1}, "a:1") // whoever has nothing else uses it still
		report(errAway)
		report(answer("a:1"))
		if k.State().Expired || k.State().Err != nil {
			t.Errorf("the source is back: %+v", k.State())
		}
		want(t, k, got, told{changes: 3, good: 2, failed: 4, expired: 1}, "a:1")
	})
}

// The grace period counts from the last good answer, however often the source has failed since.
func TestKeeperGracePeriod(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k, report, got := keep(t, time.Hour, nil)
		defer k.Close()
		report(answer("a:1"))
		time.Sleep(59 * time.Minute)
		report(errAway)
		time.Sleep(30 * time.Second)
		report(answer("a:1")) // in time
		time.Sleep(50 * time.Minute)
		report(errAway)
		if k.State().Expired {
			t.Error("expired 50 minutes after an answer")
		}
		time.Sleep(10*time.Minute + time.Second)
		synctest.Wait()
		if !k.State().Expired || got.expired != 1 {
			t.Errorf("%+v after an hour", got)
		}
	})
}

// A source may say that nothing has changed, once it has answered.
func TestKeeperSame(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k, report, got := keep(t, time.Hour, &Kept{answer("old:1"), time.Now()})
		defer k.Close()
		report(nil)
		report(errAway)
		report(nil) // what an earlier process knew is not the source's answer
		if k.State().Err == nil {
			t.Error("a failure is over without an answer")
		}
		report(answer("a:1"))
		time.Sleep(time.Hour)
		report(nil)
		report(errAway)
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		if state := k.State(); state.Expired || state.Err == nil {
			t.Errorf("59 minutes after it was confirmed: %+v", state)
		}
		report(nil)
		if state := k.State(); state.Err != nil {
			t.Errorf("it answers again: %v", state.Err)
		}
		want(t, k, got, told{changes: 2, restored: 1, good: 3, failed: 2}, "a:1")
	})
}

// What an earlier process knew is used only if the source does not answer: at once if it fails, else after a second.
func TestKeeperRestores(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do    func(report func(any))
		want  told
		addrs []string
	}{
		"it answers":      {func(report func(any)) { report(answer("b:1")) }, told{changes: 1, good: 1}, []string{"b:1"}},
		"it fails":        {func(report func(any)) { report(errAway) }, told{changes: 1, restored: 1, failed: 1}, []string{"a:1"}},
		"it says nothing": {func(func(any)) { time.Sleep(restoreAfter); synctest.Wait() }, told{changes: 1, restored: 1}, []string{"a:1"}},
		"it answers late": {func(report func(any)) {
			time.Sleep(2 * restoreAfter)
			report(answer("b:1"))
		}, told{changes: 2, restored: 1, good: 1}, []string{"b:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				k, report, got := keep(t, time.Hour, &Kept{answer("a:1"), time.Now().Add(-time.Minute)})
				defer k.Close()
				c.do(report)
				time.Sleep(2 * restoreAfter)
				synctest.Wait()
				want(t, k, got, c.want, c.addrs...)
			})
		})
	}
}

// An old answer of an earlier process is used, and counts as what it is.
func TestKeeperRestoresOldAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k, report, got := keep(t, time.Hour, &Kept{answer("a:1"), time.Now().Add(-2 * time.Hour)})
		defer k.Close()
		report(errAway)
		if !k.State().Expired {
			t.Error("not expired")
		}
		want(t, k, got, told{changes: 2, restored: 1, failed: 1, expired: 1}, "a:1")
	})
}

// The grace period of an answer of an earlier process does not depend on the clock of the system, which somebody may set: neither on one that
// was set back before the process began, nor on one that is set meanwhile.
func TestKeeperWhenTheClockIsSet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k, report, got := keep(t, time.Hour, &Kept{answer("a:1"), time.Now().Add(1000 * time.Hour)})
		defer k.Close()
		report(errAway)
		time.Sleep(time.Hour)
		synctest.Wait()
		want(t, k, got, told{changes: 2, restored: 1, failed: 1, expired: 1}, "a:1")
	})
	k := Keep(scripted{}, KeeperConfig{Stored: func() (Kept, bool) { return Kept{answer("a:1"), time.Now().Add(-time.Hour).Round(0)}, true }})
	defer k.Close()
	k.restore()
	if at := k.State().Confirmed; at == at.Round(0) || time.Since(at) < time.Hour { // the clock of a synctest has no monotonic reading
		t.Errorf("%v, want a monotonic reading of an hour ago", at)
	}
}

// A source that gives more upstreams than an answer may have has failed.
func TestKeeperRefusesTooMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k, report, got := keep(t, time.Hour, nil)
		defer k.Close()
		report(answer("a:1"))
		report(Answer{Entries: make([]Entry, MaxEntries+1)})
		want(t, k, got, told{changes: 1, good: 1, failed: 1}, "a:1")
	})
}

func TestFollowerLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k, report, got := keep(t, time.Hour, nil)
		defer k.Close()
		calls := 0
		f := k.Follow(func() { calls++ })
		report(answer("a:1"))
		f.Leave()
		f.Leave()
		report(answer("b:1"))
		if calls != 1 || got.changes != 2 {
			t.Errorf("%d calls, and %d of another", calls, got.changes)
		}
	})
}

// After Close nothing is told, whatever was under way.
func TestKeeperClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k, _, got := keep(t, time.Hour, &Kept{answer("a:1"), time.Now()})
		k.Close()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		want(t, k, got, told{})

		k, report, got := keep(t, time.Hour, nil)
		report(answer("a:1"))
		report(errAway)
		k.Close()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		want(t, k, got, told{changes: 1, good: 1, failed: 1}, "a:1")
	})
}

func TestPoll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		type step struct {
			asked time.Duration
			err   error
		}
		steps := []step{
			{0, nil}, {5 * time.Second, nil}, {time.Hour, nil}, {time.Millisecond, nil}, // answers
			{0, errAway}, {0, errAway}, {0, errAway}, {0, errAway}, {0, errAway}, {0, errAway}, {0, errAway}, // failures
			{2 * time.Minute, errAway}, {24 * time.Hour, errAway}, {0, nil}, {0, errAway}, {0, nil},
		}
		pauses := []time.Duration{30, 5, 30, 1, 1, 2, 4, 8, 16, 30, 30, 120, 3600, 30, 1}
		source := scripted{make(chan any, len(steps))}
		k := Keep(source, KeeperConfig{})
		defer k.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var last time.Time
		n := 0
		Poll(ctx, sink{k, ctx}, DefaultRefresh, func(context.Context) (Answer, time.Duration, error) {
			if n > 0 {
				took, want := time.Since(last), pauses[n-1]*time.Second
				if took < want || took > want+want/8 {
					t.Errorf("paused for %v after step %d, want %v", took, n-1, want)
				}
			}
			last = time.Now()
			s := steps[n]
			if n++; n == len(steps) {
				cancel()
			}
			return answer("a:1"), s.asked, s.err
		})
	})
}

// What is known from the beginning is used until the source has its own answer, and is no answer of it.
func TestKeeperBegins(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		confirmed := time.Now()
		time.Sleep(30 * time.Minute)
		begin := func(err error, grace time.Duration) (*Keeper, scripted) {
			source := scripted{make(chan any)}
			stored := func() (Kept, bool) { t.Error("what is stored is asked for"); return Kept{}, false }
			known := State{Entries: answer("a:1").Entries, Known: true, Confirmed: confirmed, Err: err}
			return Keep(source, KeeperConfig{GracePeriod: grace, Begin: known, Stored: stored}), source
		}
		k, source := begin(nil, time.Hour)
		defer k.Close()
		<-k.First()
		source.steps <- nil // it can't say that the answer of another one holds
		source.steps <- errAway
		synctest.Wait()
		if state := k.State(); state.Expired || state.Err == nil || len(state.Entries) != 1 || !state.Confirmed.Equal(confirmed) {
			t.Errorf("%+v", state)
		}
		time.Sleep(30*time.Minute + time.Second)
		synctest.Wait()
		if !k.State().Expired {
			t.Error("an hour after its answer: not expired")
		}
		source.steps <- answer("b:1")
		synctest.Wait()
		if state := k.State(); state.Expired || state.Entries[0].Address != "b:1" {
			t.Errorf("its own answer: %+v", state)
		}
		for _, c := range []struct {
			err     error
			grace   time.Duration
			expired bool
		}{{errAway, time.Minute, true}, {errAway, 24 * time.Hour, false}, {nil, time.Minute, false}} {
			other, _ := begin(c.err, c.grace)
			if got := other.State().Expired; got != c.expired {
				t.Errorf("%+v: expired %v", c, got)
			}
			other.Close()
		}
	})
}
