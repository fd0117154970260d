package state_test

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// socket stands for something of which there can be only one at a time.
type socket struct {
	bound *atomic.Int32
	err   error
}

func (s *socket) Destruct() error {
	s.bound.Add(-1)
	return s.err
}

func open(bound *atomic.Int32, err error) func() (*socket, error) {
	return func() (*socket, error) {
		bound.Add(1)
		return &socket{bound: bound, err: err}, nil
	}
}

func acquire(t *testing.T, pool *state.Pool[string, *socket], key string, construct func() (*socket, error)) *state.Ref[*socket] {
	t.Helper()
	ref, err := pool.Acquire(key, construct)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestLastReleaseDestructs(t *testing.T) {
	t.Parallel()
	pool := state.NewPool[string, *socket]()
	var bound, other atomic.Int32
	broken := errors.New("broken")

	first := acquire(t, pool, "a", open(&bound, broken))
	second := acquire(t, pool, "a", open(&bound, nil))
	third := acquire(t, pool, "b", open(&other, nil))
	if first.Value() != second.Value() || first.Value() == third.Value() {
		t.Error("a value belongs to its key")
	}
	if err := third.Release(); err != nil || other.Load() != 0 {
		t.Errorf("third: %v, %d bound", err, other.Load())
	}

	for range 3 {
		if err := first.Release(); err != nil || bound.Load() != 1 {
			t.Fatalf("first: %v, %d bound", err, bound.Load())
		}
	}
	for range 3 {
		if err := second.Release(); !errors.Is(err, broken) || bound.Load() != 0 {
			t.Fatalf("second: %v, %d bound", err, bound.Load())
		}
	}

	again := acquire(t, pool, "a", open(&bound, nil))
	if err := second.Release(); !errors.Is(err, broken) || bound.Load() != 1 {
		t.Errorf("a reference of a value that is gone released the next one: %v, %d bound", err, bound.Load())
	}
	if err := again.Release(); err != nil || bound.Load() != 0 {
		t.Errorf("again: %v, %d bound", err, bound.Load())
	}
}

func TestFailedConstructLeavesNothing(t *testing.T) {
	t.Parallel()
	pool := state.NewPool[string, *socket]()
	broken := errors.New("broken")

	ref, err := pool.Acquire("a", func() (*socket, error) { return nil, broken })
	if ref != nil || !errors.Is(err, broken) {
		t.Fatalf("got %v, %v", ref, err)
	}
	if err := ref.Release(); err != nil {
		t.Error(err)
	}

	var bound atomic.Int32
	ref = acquire(t, pool, "a", open(&bound, nil))
	if err := ref.Release(); err != nil || bound.Load() != 0 {
		t.Errorf("got %v, %d bound", err, bound.Load())
	}
}

func TestConstructAndDestructNeverOverlap(t *testing.T) {
	t.Parallel()
	pool := state.NewPool[int, *exclusive]()
	var busy sync.Mutex
	var living [2]atomic.Int32

	var workers sync.WaitGroup
	for worker := range 8 {
		workers.Go(func() {
			for round := range 1000 {
				key := (worker + round) % len(living)
				ref, err := pool.Acquire(key, func() (*exclusive, error) {
					return newExclusive(&busy, &living[key])
				})
				if err != nil {
					t.Error(err)
					return
				}
				if n := ref.Value().living.Load(); n != 1 {
					t.Errorf("%d values are alive under one key", n)
				}
				var releases sync.WaitGroup
				for range 2 {
					releases.Go(func() {
						if err := ref.Release(); err != nil {
							t.Error(err)
						}
					})
				}
				releases.Wait()
			}
		})
	}
	workers.Wait()
	for key := range living {
		if n := living[key].Load(); n != 0 {
			t.Errorf("key %d: %d values were left", key, n)
		}
	}
}

// exclusive fails to be made or unmade while another one is.
type exclusive struct {
	busy   *sync.Mutex
	living *atomic.Int32
}

var errOverlap = errors.New("construct and destruct overlap")

func newExclusive(busy *sync.Mutex, living *atomic.Int32) (*exclusive, error) {
	if !busy.TryLock() {
		return nil, errOverlap
	}
	defer busy.Unlock()
	runtime.Gosched() // a chance for one that overlaps
	living.Add(1)
	return &exclusive{busy, living}, nil
}

func (e *exclusive) Destruct() error {
	if !e.busy.TryLock() {
		return errOverlap
	}
	defer e.busy.Unlock()
	runtime.Gosched()
	e.living.Add(-1)
	return nil
}

func TestEach(t *testing.T) {
	t.Parallel()
	pool := state.NewPool[string, *socket]()
	var bound atomic.Int32
	a, b := acquire(t, pool, "a", open(&bound, nil)), acquire(t, pool, "b", open(&bound, nil))
	again := acquire(t, pool, "a", open(&bound, nil))
	seen := make(map[string]*socket)
	pool.Each(func(key string, value *socket) bool {
		seen[key] = value
		return true
	})
	if len(seen) != 2 || seen["a"] != a.Value() || seen["b"] != b.Value() {
		t.Errorf("seen: %v", seen)
	}
	calls := 0
	pool.Each(func(string, *socket) bool {
		calls++
		return false
	})
	if calls != 1 {
		t.Errorf("%d calls after false", calls)
	}
	for _, ref := range []*state.Ref[*socket]{a, b, again} {
		if err := ref.Release(); err != nil {
			t.Error(err)
		}
	}
	pool.Each(func(key string, _ *socket) bool {
		t.Errorf("%s is still there", key)
		return true
	})
}
