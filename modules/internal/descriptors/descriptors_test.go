package descriptors

import (
	"os"
	"sync"
	"testing"
)

func TestDefaults(t *testing.T) {
	if got := DefaultReserve(); got < leastReserve || got > max(Limit()/20, leastReserve) {
		t.Errorf("of %d descriptors %d are reserved", Limit(), got)
	}
	reserve := DefaultReserve()
	if got := DefaultShare(reserve); got >= Limit()-reserve || got < (Limit()-reserve)/2 {
		t.Errorf("of %d descriptors, %d of them reserved, a listener may have %d", Limit(), reserve, got)
	}
}

// What is taken and what is open otherwise never get into the reserve, and what is given back can be taken again.
func TestReserveIsKept(t *testing.T) {
	Observe()
	reserve := Limit() - int(others.Load()) - 7
	for range 7 {
		if !Take(1, reserve) {
			t.Fatal("not taken")
		}
	}
	if Take(1, reserve) || Taken() != 7 {
		t.Errorf("taken out of the reserve: %d", Taken())
	}
	Opened(-2)
	if !Take(PerStream, reserve) || Take(PerStream, reserve) {
		t.Error("what was closed can't be taken, or can be twice")
	}
	Opened(2)
	Release(9)
	if !Take(7, reserve) || Take(1, 0) != true {
		t.Error("what was given back can't be taken; or there is a reserve of 0")
	}
	Release(8)
	if Taken() != 0 {
		t.Errorf("%d are taken", Taken())
	}
}

// open opens descriptors until the test ends.
func open(t *testing.T, n int) {
	t.Helper()
	for range n {
		file, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = file.Close() })
	}
}

func TestObserveSeesWhatIsOpen(t *testing.T) {
	if _, ok := count(); !ok {
		t.Skip("this system doesn't tell")
	}
	Observe()
	before := others.Load()
	open(t, 2)
	Observe()
	if got := others.Load(); got != before+2 {
		t.Errorf("%d are open, want %d", got, before+2)
	}
	MustTake(1) // a session's, which is not open for anything else
	defer Release(1)
	open(t, 1)
	Observe()
	if got := others.Load(); got != before+2 {
		t.Errorf("%d are open otherwise, want %d", got, before+2)
	}
}

// A reload takes nothing of the reserve away, whether sessions have their upstream sockets at that moment or not.
func TestObserveWhileSessionsWait(t *testing.T) {
	if _, ok := count(); !ok {
		t.Skip("this system doesn't tell")
	}
	Observe()
	before := others.Load()
	mustBe := func(want int64, when string) {
		t.Helper()
		Observe()
		if got := others.Load(); got != want {
			t.Errorf("%s: %d are open otherwise, want %d", when, got, want)
		}
	}
	var l Listener
	t.Run("sessions", func(t *testing.T) {
		for range 8 {
			open(t, 1) // the client's
			if !l.Take(8, 0) {
				t.Fatal("not taken")
			}
			t.Cleanup(l.Release)
		}
		mustBe(before, "while all wait")
		open(t, 5)
		mustBe(before, "while some are connected")
		open(t, 3)
		mustBe(before, "while all are connected")
		Opened(2)
		open(t, 2)
		mustBe(before+2, "and two listeners have been opened")
	})
	mustBe(before, "when all have ended")
}

func TestListenerIsBounded(t *testing.T) {
	Observe()
	var l Listener
	var taken sync.WaitGroup
	var mu sync.Mutex
	n := 0
	for range 50 {
		taken.Go(func() {
			if l.Take(10, 0) {
				mu.Lock()
				n++
				mu.Unlock()
			}
		})
	}
	taken.Wait()
	if n < 1 || n > 10 || l.Sessions() != int64(n) || Taken() != int64(n)*PerStream {
		t.Errorf("%d sessions were taken, %d counted, %d descriptors", n, l.Sessions(), Taken())
	}
	for range n {
		l.Release()
	}
	(*Listener)(nil).Release()
	if l.Sessions() != 0 || Taken() != 0 {
		t.Errorf("%d sessions and %d descriptors are left", l.Sessions(), Taken())
	}
}
