package acl

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
)

func openList(t testing.TB, storage certmagic.Storage) *dynamic {
	t.Helper()
	d, err := openDynamic("test", storage)
	must(t, err)
	t.Cleanup(func() {
		must(t, d.Destruct())
		d.wait()
	})
	return d
}

func newTestEntry(prefix string, ttl time.Duration) entry {
	e := entry{Prefix: netip.MustParsePrefix(prefix), Added: time.Now(), Reason: "test", By: "tester"}
	if ttl > 0 {
		expires := e.Added.Add(ttl)
		e.Expires = &expires
	}
	return e
}

// What was added is in force, and is still there when the list is opened again, with all that is known of it.
func TestDynamicListIsKept(t *testing.T) {
	t.Parallel()
	storage := store(t)
	d := openList(t, storage)
	must(t, d.add(newTestEntry("192.0.2.0/24", 0)))
	must(t, d.add(newTestEntry("2001:db8::/32", time.Hour)))
	must(t, d.add(newTestEntry("198.51.100.7/32", time.Hour)))
	if ok, err := d.remove(netip.MustParsePrefix("198.51.100.7/32")); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, err := d.remove(netip.MustParsePrefix("198.51.100.7/32")); ok || err != nil {
		t.Fatal("removed twice", err)
	}
	again := openList(t, storage)
	for _, list := range []*dynamic{d, again} {
		if !list.contains(addr(one)) || !list.contains(addr("2001:db8::9")) || list.contains(addr("198.51.100.7")) {
			t.Error("the list has not what it should have")
		}
	}
	before, after := d.all(), again.all()
	if len(after) != 2 || fmt.Sprint(after[0].Prefix, after[1].Prefix) != "192.0.2.0/24 2001:db8::/32" {
		t.Fatalf("%v", after)
	}
	for i := range after {
		a, b := before[i], after[i]
		if !a.Added.Equal(b.Added) || a.Reason != b.Reason || a.By != b.By || (a.Expires == nil) != (b.Expires == nil) ||
			a.Expires != nil && !a.Expires.Equal(*b.Expires) {
			t.Errorf("%+v became %+v", a, b)
		}
	}
}

// Entries go by themselves when their time has come: each of them, also when the list was opened again meanwhile, and no
// other.
func TestDynamicEntriesExpire(t *testing.T) {
	t.Parallel()
	storage := store(t)
	d := openList(t, storage)
	must(t, d.add(newTestEntry("192.0.2.9/32", 0)))
	must(t, d.add(newTestEntry("192.0.2.3/32", time.Hour)))
	must(t, d.add(newTestEntry("192.0.2.2/32", 400*time.Millisecond)))
	must(t, d.add(newTestEntry("192.0.2.1/32", 200*time.Millisecond)))
	again := openList(t, storage)
	for _, list := range []*dynamic{d, again} {
		for _, expiring := range []string{one, two} {
			eventually(t, expiring+" expires", func() bool { return !list.contains(addr(expiring)) })
		}
		if !list.contains(addr("192.0.2.3")) || !list.contains(addr("192.0.2.9")) || len(list.all()) != 2 {
			t.Errorf("left: %v", list.all())
		}
	}
	if last := openList(t, storage); len(last.all()) != 2 {
		t.Errorf("stored: %v", last.all())
	}
}

// An entry that is added again has the new time, be it later, earlier or never.
func TestDynamicEntryIsReplaced(t *testing.T) {
	t.Parallel()
	d := openList(t, store(t))
	must(t, d.add(newTestEntry("192.0.2.1/32", 150*time.Millisecond)))
	must(t, d.add(newTestEntry("192.0.2.1/32", 0)))
	must(t, d.add(newTestEntry("192.0.2.2/32", time.Hour)))
	must(t, d.add(newTestEntry("192.0.2.2/32", 150*time.Millisecond)))
	eventually(t, "the second expires", func() bool { return !d.contains(addr(two)) })
	if !d.contains(addr(one)) || d.set.Load().Len() != 1 {
		t.Errorf("left: %v", d.all())
	}
}

// Of entries that are given twice at once the last one counts: when the time of the first one is over, it stays.
func TestDynamicEntryIsGivenTwice(t *testing.T) {
	t.Parallel()
	d := openList(t, store(t))
	_, err := d.replaceAll([]entry{
		newTestEntry("192.0.2.1/32", 150*time.Millisecond), newTestEntry("192.0.2.1/32", 0),
		newTestEntry("192.0.2.2/32", 150*time.Millisecond),
	})
	must(t, err)
	eventually(t, "the second expires", func() bool { return !d.contains(addr(two)) })
	if !d.contains(addr(one)) || d.set.Load().Len() != 1 || len(d.queue) != 0 {
		t.Errorf("left: %v", d.all())
	}
}

// A list that is full takes no new entry, and loses none.
func TestDynamicListIsBounded(t *testing.T) {
	t.Parallel()
	d := openList(t, brokenStorage{})
	entries := make([]entry, maxEntries+1)
	for i := range entries {
		entries[i] = entry{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)}
	}
	if _, err := d.replaceAll(entries); !errors.Is(err, errFull) || d.set.Load().Len() != 0 {
		t.Fatalf("%v, %d entries", err, d.set.Load().Len())
	}
	d.editing.Lock()
	for _, e := range entries[:maxEntries] { // as replaceAll does, without the time that it takes
		d.setEntry(e)
	}
	d.editing.Unlock()
	if err := d.add(entries[maxEntries]); !errors.Is(err, errFull) {
		t.Errorf("%v, want %v", err, errFull)
	}
	if err := d.add(entries[0]); errors.Is(err, errFull) {
		t.Error("an entry that is there already can't be added again")
	}
	if len(d.all()) != maxEntries || d.contains(entries[maxEntries].Prefix.Addr()) {
		t.Error("the list has changed")
	}
}

// A change that can't be stored is in force, and the error says so.
func TestDynamicListThatCanNotBeStored(t *testing.T) {
	t.Parallel()
	d := openList(t, brokenStorage{})
	err := d.add(newTestEntry("192.0.2.1/32", 0))
	if want := "it is in force, but could not be stored: disk full"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if !d.contains(addr(one)) {
		t.Error("the entry is not in force")
	}
}

// Edits from all sides: the list, what is stored and what is looked up agree in the end.
func TestDynamicListEditedConcurrently(t *testing.T) {
	t.Parallel()
	storage := store(t)
	d := openList(t, storage)
	var editors sync.WaitGroup
	for editor := range 4 {
		editors.Go(func() {
			for n := range 30 {
				prefix := fmt.Sprintf("10.0.%d.%d/32", editor, n)
				if err := d.add(newTestEntry(prefix, time.Duration(n%2)*time.Hour)); err != nil {
					t.Error(err)
				}
				if n%3 == 0 {
					if _, err := d.remove(netip.MustParsePrefix(prefix)); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	editors.Wait()
	again := openList(t, storage)
	for editor := range 4 {
		for n := range 30 {
			a := addr(fmt.Sprintf("10.0.%d.%d", editor, n))
			if want := n%3 != 0; d.contains(a) != want || again.contains(a) != want {
				t.Errorf("%v: %t, and stored %t, want %t", a, d.contains(a), again.contains(a), want)
			}
		}
	}
	if len(d.all()) != 80 || d.set.Load().Len() != 80 {
		t.Errorf("%d entries, %d in the set, want 80", len(d.all()), d.set.Load().Len())
	}
}

// settable is a clock of the system that somebody sets.
type settable struct{ by atomic.Int64 }

func (s *settable) set(by time.Duration) { s.by.Add(int64(by)) }

func (s *settable) clock() clock {
	c := systemClock()
	c.now = func() time.Time { return time.Now().Add(time.Duration(s.by.Load())).Round(0) }
	return c
}

// Whoever sets the clock of the system, forward or back, neither frees those who are banned nor keeps them longer. What is shown and stored
// then is by the new time, so that a restart keeps them for as long as they have left.
func TestClockThatIsSet(t *testing.T) {
	t.Parallel()
	for _, by := range []time.Duration{2 * time.Hour, -2 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			m, system := newMemory(), new(settable)
			open := func() *dynamic {
				d, err := openAt(system.clock(), "test", m)
				must(t, err)
				return d
			}
			d := open()
			defer func() {
				must(t, d.Destruct())
				d.wait()
			}()
			e, err := (&given{Prefix: one, TTL: "1m"}).entry(d.clock.now(), httptest.NewRequest(http.MethodPut, "/", nil))
			must(t, err)
			must(t, d.add(e))
			system.set(by)
			time.Sleep(30 * time.Second)
			if all := d.all(); len(all) != 1 || all[0].TTL != "30s" || !d.contains(addr(one)) {
				t.Errorf("%v: after half of the time: %v", by, all)
			}
			if shown, left := d.all()[0], 30*time.Second; shown.Expires.Sub(d.clock.now()) != left {
				t.Errorf("%v: shown to expire at %v, now %v", by, shown.Expires, d.clock.now())
			}
			_, err = d.replaceAll(d.snapshot()) // all is stored anew
			must(t, err)
			must(t, d.Destruct())
			d.wait()
			d = open()
			if all := d.all(); len(all) != 1 || all[0].TTL != "30s" {
				t.Errorf("%v: after a restart: %v", by, all)
			}
			system.set(by)
			time.Sleep(30*time.Second - expiryPause)
			if !d.contains(addr(one)) {
				t.Errorf("%v: is let in too early", by)
			}
			time.Sleep(2 * expiryPause)
			if d.contains(addr(one)) || len(d.all()) != 0 {
				t.Errorf("%v: is kept too long", by)
			}
		})
	}
}
