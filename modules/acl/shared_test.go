package acl

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"
)

// storagesOfSeveral are those that several processes may have.
func storagesOfSeveral(t *testing.T, f func(t *testing.T, storage certmagic.Storage)) {
	t.Helper()
	for name, storage := range map[string]certmagic.Storage{"files": &certmagic.FileStorage{Path: t.TempDir()}, "values": newMemory()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, storage)
		})
	}
}

// Lists of one storage in two processes: whatever either does, and also when entries are stored anew, all have the same entries as soon
// as they look, and so has one that is opened then.
func TestProcessesWithOneStorageAgree(t *testing.T) {
	t.Parallel()
	storagesOfSeveral(t, func(t *testing.T, storage certmagic.Storage) {
		random := rand.New(rand.NewPCG(1, 1))
		lists := []*dynamic{openList(t, storage), openList(t, storage), openList(t, storage)}
		want := make(prefixes)
		for step := range 2000 {
			d := lists[random.IntN(len(lists))]
			e := numbered(random.IntN(40))
			e.Reason, e.By = strings.Repeat("r", random.IntN(maxRemark)), strings.Repeat("b", maxRemark) // so that segments are full soon
			switch n := random.IntN(100); {
			case n < 60:
				must(t, stored(d, d.add(e)))
				want[e.Prefix] = true
			case n < 80:
				d.look()
				_, err := d.remove(e.Prefix)
				must(t, stored(d, err))
				delete(want, e.Prefix)
			case n < 83:
				d.look()
				_, err := d.replaceAll([]entry{e, numbered(1)})
				must(t, stored(d, err))
				want = prefixes{e.Prefix: true, numbered(1).Prefix: true}
			case n < 90:
				must(t, d.shorten())
			default:
				for i, d := range append(lists, openList(t, storage)) {
					lookUntil(t, d, want, fmt.Sprintf("step %d: list %d", step, i))
				}
			}
		}
		if stored, err := lists[0].journal.storedThrough(storage); stored == 0 || err != nil {
			t.Errorf("entries were never stored anew (%v)", err)
		}
	})
}

// stored waits for an edit to be stored, and returns its error. The answer may come before, on a machine so busy that another list takes
// longer to store all entries than an edit waits.
func stored(d *dynamic, err error) error {
	for tries := 0; errors.Is(err, context.DeadlineExceeded) && tries < 10; tries++ {
		err = d.storeRest()
	}
	return err
}

// lookUntil has a list look until it has the entries. While another list stores all entries, a look may come too early: the next one finds
// them.
func lookUntil(t *testing.T, d *dynamic, want prefixes, which string) {
	t.Helper()
	for looks := 1; ; looks++ {
		d.look()
		got := prefixesOf(d)
		if d.damages() == "" && maps.Equal(got, want) {
			return
		}
		if looks == 20 {
			t.Fatalf("%s has %d entries after %d looks, want %d", which, len(got), looks, len(want))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func prefixesOf(d *dynamic) prefixes {
	got := make(prefixes)
	for _, e := range d.all() {
		got[e.Prefix] = true
		if !d.contains(e.Prefix.Addr()) {
			panic("an entry is not in force")
		}
	}
	if d.set.Load().Len() != len(got) {
		panic("the set has other entries")
	}
	return got
}

// What one process has acknowledged is not lost by what another one does at the same time.
func TestProcessesWithOneStorageEditAtOnce(t *testing.T) {
	t.Parallel()
	const processes, edits = 3, 150
	storagesOfSeveral(t, func(t *testing.T, storage certmagic.Storage) {
		want := make(prefixes)
		var lists []*dynamic
		for range processes {
			lists = append(lists, openList(t, storage))
		}
		var editors sync.WaitGroup
		for n, d := range lists {
			for i := range edits {
				if e := numbered(n*edits + i); i%3 != 0 {
					want[e.Prefix] = true
				}
			}
			editors.Go(func() {
				for i := range edits {
					e := numbered(n*edits + i)
					e.Reason = strings.Repeat("r", maxRemark)
					if err := stored(d, d.add(e)); err != nil {
						t.Error(err)
					}
					if i%3 == 0 {
						_, err := d.remove(e.Prefix)
						if err := stored(d, err); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		editors.Wait()
		for _, d := range append(lists, openList(t, storage)) {
			d.look()
			if got := prefixesOf(d); !maps.Equal(got, want) {
				t.Errorf("%d entries, want %d", len(got), len(want))
			}
		}
	})
}

// An edit of another process is in force without an edit here, within the time that the documentation says.
func TestEditOfAnotherProcessIsLookedFor(t *testing.T) {
	t.Parallel()
	m := newMemory()
	one, another := openList(t, m), openList(t, m)
	must(t, one.add(numbered(1)))
	if another.set.Load().Len() != 0 {
		t.Fatal("is in force already: the test shows nothing")
	}
	eventually(t, "it is in force", func() bool { return another.contains(numbered(1).Prefix.Addr()) })
	if _, err := one.remove(numbered(1).Prefix); err != nil {
		t.Fatal(err)
	}
	must(t, another.add(numbered(2))) // an edit of its own looks first
	if another.contains(numbered(1).Prefix.Addr()) {
		t.Error("what the other has removed is still in force")
	}
}

// An edit that can't be stored yet comes after those that others make meanwhile.
func TestEditThatWaitsComesLast(t *testing.T) {
	t.Parallel()
	m := newMemory()
	d, other := openList(t, m), openList(t, m)
	must(t, d.add(numbered(1)))
	must(t, other.add(numbered(2)))
	unlock, err := lockList(m, d.journal.name, editsLock, lockTimeout)
	must(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := d.remove(numbered(2).Prefix)
		done <- err
	}()
	go func() {
		e := numbered(1)
		e.Reason = "waits"
		_ = d.add(e)
		_, err := d.remove(numbered(1).Prefix)
		done <- err
	}()
	unlock()
	for range 2 {
		must(t, <-done)
	}
	other.look()
	for what, list := range map[string]*dynamic{"one": d, "other": other, "opened": openList(t, m)} {
		if list.contains(numbered(1).Prefix.Addr()) {
			t.Errorf("%s: %v", what, list.all())
		}
	}
}

// A list whose values are damaged has what can be read of it. What was damaged is kept, and the next edit, or the word of an operator,
// stores all that there is, for other processes too.
func TestDamagedListGoesOn(t *testing.T) {
	t.Parallel()
	const key, cut = "portgate/lists/test.json", `[{"prefix":"192.0.2.1/32"},{"prefix":"192.0.2.`
	for what, mend := range map[string]func(d *dynamic) error{
		"edit":   func(d *dynamic) error { return d.add(newTestEntry("192.0.2.9/32", 0)) },
		"accept": (*dynamic).accept,
		"put":    func(d *dynamic) error { _, err := d.replaceAll([]entry{newTestEntry("192.0.2.1/32", 0)}); return err },
	} {
		m := newMemory()
		m.values[key] = cut
		m.values["portgate/lists/test/00000001.json"] = `{"set":{"prefix":"192.0.2.2/32"}}` + "\n"
		d, other := openList(t, m), openList(t, m)
		for _, list := range []*dynamic{d, other} {
			if !list.contains(addr(one)) || list.damages() == "" || !list.damaged.Is() {
				t.Errorf("%s: %v, damage %q", what, list.all(), list.damages())
			}
		}
		copies := 0
		for key, value := range m.copy().values {
			if strings.HasPrefix(key, damagedFolder+"/test-") && value == cut {
				copies++
			}
		}
		if copies != 1 {
			t.Errorf("%s: %d copies of what is damaged, want 1", what, copies)
		}
		must(t, mend(d))
		other.look()
		must(t, other.add(newTestEntry("192.0.2.7/32", 0)))
		d.look()
		again := openList(t, m)
		for _, list := range []*dynamic{d, other, again} {
			if list.damages() != "" || list.damaged.Is() || !list.contains(addr("192.0.2.7")) || !list.contains(addr(one)) || !maps.Equal(prefixesOf(list), prefixesOf(d)) {
				t.Errorf("%s: %v, damage %q", what, list.all(), list.damages())
			}
		}
	}
}

// With on_damaged refuse the config is refused, and an operator may say otherwise where the list is in use.
func TestDamagedListIsRefusedIfWanted(t *testing.T) {
	t.Parallel()
	active := caddy.ActiveContext()
	must(t, active.Storage().Store(t.Context(), "portgate/lists/refused.json", nil))
	const start, refuse = `{"rules":[{"deny":["list","refused"]}]}`, `{"rules":[{"deny":["list","refused"]}],"on_damaged":"refuse"}`
	const want = "deny list refused: portgate/lists/refused.json in the storage is damaged: it ends too early; a copy is in portgate/damaged/refused-e3b0c44298fc: " +
		"expected a list that can be read, because of on_damaged refuse"
	for _, id := range []string{"layer4.handlers.acl", "layer4.matchers.acl"} {
		if _, _, err := tryProvision[any](t, id, refuse); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v\nwant %s", id, err, want)
		}
	}
	handler(t, start)
	if status, got := call(t, "GET", listsPath+"/refused", ""); status != 200 || !strings.Contains(got, `"damaged":"portgate/lists/refused.json`) {
		t.Error(status, got)
	}
	if _, _, err := tryProvision[any](t, "layer4.handlers.acl", refuse); err == nil {
		t.Error("a damaged list that is in use is not refused")
	}
	if status, got := call(t, "PATCH", listsPath+"/refused", `{"damaged":false}`); status != 200 || got != `{"name":"refused","size":0,"entries":[]}` {
		t.Error(status, got)
	}
	handler(t, refuse)
}

// hanging is a storage that does not answer any more.
type hanging struct {
	*memory
	hangs   atomic.Bool
	release chan struct{}
}

func (h *hanging) Store(ctx context.Context, key string, value []byte) error {
	if h.hangs.Load() {
		<-h.release
	}
	return h.memory.Store(ctx, key, value)
}

// A list that goes while its storage hangs holds up no other list: no time passes until it is given back.
func TestHangingStorageHoldsUpNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &hanging{memory: newMemory(), release: make(chan struct{})}
		hangs, err := dynamicLists.Acquire("hangs", func() (*dynamic, error) { return openDynamic("hangs", h) })
		must(t, err)
		h.breakDown(true)
		if hangs.Value().add(numbered(1)) == nil {
			t.Error("the edit is stored: the test shows nothing")
		}
		h.hangs.Store(true)
		start := time.Now()
		must(t, hangs.Release())
		other, err := dynamicLists.Acquire("other", func() (*dynamic, error) { return openDynamic("other", newMemory()) })
		must(t, err)
		must(t, other.Release())
		other.Value().wait()
		if took := time.Since(start); took > 0 {
			t.Errorf("another list was held up for %v", took)
		}
		hangs.Value().wait()
		if took := time.Since(start); took != storageTimeout {
			t.Errorf("a process that stops waits for %v, want %v", took, storageTimeout)
		}
		close(h.release)
		synctest.Wait()
	})
}

// An edit waits for another process that holds the lock, but not for good, and is stored when it can be.
func TestEditWaitsForTheLock(t *testing.T) {
	t.Parallel()
	m := newMemory()
	d := openList(t, m)
	unlock, err := lockList(m, d.journal.name, editsLock, lockTimeout)
	must(t, err)
	start := time.Now()
	err = d.add(numbered(1))
	if took := time.Since(start); err == nil || took < lockTimeout {
		t.Errorf("%v after %v, want an error after %v", err, took, lockTimeout)
	}
	if !d.contains(numbered(1).Prefix.Addr()) {
		t.Error("the edit is not in force")
	}
	unlock()
	eventually(t, "it is stored", func() bool { return storedLen(t, m) == 1 })
}

// A list that is only opened leaves no files, which may belong to another user than the one who edits it later.
func TestOpeningMakesNoFiles(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	openList(t, &certmagic.FileStorage{Path: root})
	made, err := os.ReadDir(root)
	must(t, err)
	if len(made) > 0 {
		t.Errorf("made: %v", made)
	}
}

// Whatever may be left of the files after a power cut, the list opens, has nothing that was never in it, and takes edits that last.
func TestAnyRestOfTheFilesIsOpened(t *testing.T) {
	t.Parallel()
	storage := &certmagic.FileStorage{Path: t.TempDir()}
	d, err := openDynamic("test", storage)
	must(t, err)
	for n := range 300 {
		e := numbered(n % 100)
		e.Reason, e.By = strings.Repeat("r", maxRemark), strings.Repeat("b", maxRemark)
		must(t, d.add(e))
	}
	eventually(t, "all entries are stored anew", func() bool { return storage.Exists(t.Context(), "portgate/lists/test.json") })
	must(t, d.Destruct())
	d.wait() // so that nothing changes any more
	files := []string{"portgate/lists/test.json"}
	segments, err := storage.List(t.Context(), "portgate/lists/test", false)
	must(t, err)
	files = append(files, segments...)
	for _, file := range files {
		content, err := storage.Load(t.Context(), file)
		must(t, err)
		for _, rest := range [][]byte{nil, content[:len(content)/2], append(make([]byte, len(content)/2), content[len(content)/2:]...), make([]byte, len(content))} {
			other := &certmagic.FileStorage{Path: t.TempDir()}
			must(t, os.CopyFS(other.Path, os.DirFS(storage.Path)))
			must(t, os.WriteFile(other.Filename(file), rest, 0o600))
			opened := openList(t, other)
			for prefix := range prefixesOf(opened) {
				if !d.contains(prefix.Addr()) {
					t.Errorf("%s: %v was never in the list", file, prefix)
				}
			}
			must(t, opened.add(newTestEntry("192.0.2.1/32", 0)))
			before := prefixesOf(opened)
			again := openList(t, other)
			if !maps.Equal(prefixesOf(again), before) || !before[netip.MustParsePrefix("192.0.2.1/32")] || again.damages() != "" {
				t.Errorf("%s, %d bytes: %d entries, then %d, damage %q", file, len(rest), len(before), len(again.all()), again.damages())
			}
		}
	}
}

// FuzzStored opens a list of which anything is stored: what can be read is in force, and is there again after an edit.
func FuzzStored(f *testing.F) {
	f.Add([]byte("{\"through\":1}\n"+`[{"prefix":"192.0.2.1/32","added":"2026-01-02T03:04:05Z"}]`), []byte(`{"set":{"prefix":"192.0.2.2/32"}}`+"\n"))
	f.Add([]byte(`[{"prefix":"192.0.2.1/32"},{"prefix`), []byte(`{"remove":"192.0.2.1/32"}`+"\n"+`{"all":[{"prefix":"::1/128"}]}`+"\n"+`{"end":true}`+"\n"))
	f.Add([]byte{}, []byte("{}\n"))
	f.Fuzz(func(t *testing.T, entries, segment []byte) {
		m := newMemory()
		m.values["portgate/lists/test.json"], m.values["portgate/lists/test/00000002.json"] = string(entries), string(segment)
		d := openList(t, m)
		must(t, d.add(newTestEntry("192.0.2.9/32", 0)))
		again := openList(t, m)
		if want := prefixesOf(d); !maps.Equal(prefixesOf(again), want) || again.damages() != "" {
			t.Errorf("%d entries, then %d, damage %q", len(want), len(again.all()), again.damages())
		}
	})
}

// BenchmarkAdd adds entries to a list in files, one after the other and from several sides at once.
func BenchmarkAdd(b *testing.B) {
	for _, editors := range []int{1, 16} {
		b.Run(fmt.Sprintf("editors=%d", editors), func(b *testing.B) {
			d := openList(b, &certmagic.FileStorage{Path: b.TempDir()})
			var next atomic.Int64
			var wait sync.WaitGroup
			start := time.Now()
			for range editors {
				wait.Go(func() {
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						e := numbered(int(n) % maxEntries)
						e.Added = time.Now()
						if err := d.add(e); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wait.Wait()
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "edits/s")
		})
	}
}

// A full disk does not keep the ports closed: a list with a part of an edit at its end, which can't be taken away, is opened. Its edits are
// stored when there is room.
func TestListOnAFullDiskIsOpened(t *testing.T) {
	t.Parallel()
	m := newMemory()
	first := openList(t, m)
	must(t, first.add(newTestEntry("192.0.2.1/32", 0)))
	m = m.copy()
	m.values[first.journal.segmentKey(1)] += `{"set":{"prefix":"192.0`
	m.broken = true
	d := openList(t, m)
	if got := d.all(); len(got) != 1 || d.damages() != "" {
		t.Errorf("%d entries, damage %q, want 1 and none", len(got), d.damages())
	}
	if err := d.add(newTestEntry("192.0.2.2/32", 0)); !errors.Is(err, errBroken) {
		t.Errorf("an edit on a full disk: got %v, want %v", err, errBroken)
	}
	m.mu.Lock()
	m.broken = false
	m.mu.Unlock()
	must(t, d.add(newTestEntry("192.0.2.3/32", 0)))
	if got := openList(t, m.copy()); len(got.all()) != 3 || got.damages() != "" {
		t.Errorf("stored are %d entries, damage %q, want 3 and none", len(got.all()), got.damages())
	}
}
