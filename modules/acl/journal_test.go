package acl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
)

// memory is a storage that counts, and can be made to fail.
type memory struct {
	certmagic.Storage

	mu      sync.Mutex
	values  map[string]string
	written int // bytes
	longest int // of one value
	changes int // accesses that have changed something
	most    int // of them, until nothing changes any more; 0: no limit
	broken  bool
	locks   map[string]bool
}

func newMemory() *memory { return &memory{values: make(map[string]string)} }

var errBroken = errors.New("no room")

// change tells whether something may be changed.
func (m *memory) change() error {
	if m.broken || m.most > 0 && m.changes >= m.most {
		return errBroken
	}
	m.changes++
	return nil
}

func (m *memory) Store(_ context.Context, key string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.change(); err != nil {
		return err
	}
	m.values[key] = string(value)
	m.written += len(value)
	m.longest = max(m.longest, len(value))
	return nil
}

func (m *memory) Load(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	value, ok := m.values[key]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return []byte(value), nil
}

func (m *memory) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.change(); err != nil {
		return err
	}
	delete(m.values, key)
	return nil
}

func (m *memory) List(_ context.Context, prefix string, _ bool) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var keys []string
	for key := range m.values {
		if path.Dir(key) == prefix {
			keys = append(keys, key)
		}
	}
	if keys == nil {
		return nil, fs.ErrNotExist
	}
	return keys, nil
}

func (m *memory) Lock(ctx context.Context, name string) error {
	for {
		m.mu.Lock()
		free := !m.locks[name]
		if free {
			if m.locks == nil {
				m.locks = make(map[string]bool)
			}
			m.locks[name] = true
		}
		m.mu.Unlock()
		if free {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

func (m *memory) Unlock(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.locks, name)
	return nil
}

func (brokenStorage) Lock(context.Context, string) error   { return nil }
func (brokenStorage) Unlock(context.Context, string) error { return nil }

// breakDown makes every change fail from now on, or none any more.
func (m *memory) breakDown(broken bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = broken
}

// reset begins to count anew, and returns what was counted.
func (m *memory) reset() (written, longest int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	written, longest = m.written, m.longest
	m.written, m.longest = 0, 0
	return written, longest
}

// count returns how many segments there are.
func (m *memory) segments() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for key := range m.values {
		if strings.HasPrefix(key, "portgate/lists/test/") {
			n++
		}
	}
	return n
}

// copy returns a storage with the same content, in which nothing fails.
func (m *memory) copy() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memory{values: maps.Clone(m.values)}
}

func numbered(n int) entry {
	return entry{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 32)}
}

func fill(t testing.TB, d *dynamic, size int) {
	t.Helper()
	entries := make([]entry, size)
	for n := range entries {
		entries[n] = numbered(n)
	}
	_, err := d.replaceAll(entries)
	must(t, err)
}

// What an edit writes does not depend on how long the list is.
func TestAnEditCostsTheSameInAListOfAnySize(t *testing.T) {
	t.Parallel()
	var want int
	for _, size := range []int{10, 50_000} {
		m := newMemory()
		d := openList(t, m)
		fill(t, d, size)
		m.reset()
		for n := range 200 {
			must(t, d.add(newTestEntry(fmt.Sprintf("192.0.2.%d/32", n), 0)))
		}
		written, longest := m.reset()
		if longest > 2*segmentLen {
			t.Errorf("%d entries: %d bytes at once, want at most %d", size, longest, 2*segmentLen)
		}
		if want == 0 {
			want = written
		}
		if diff := written - want; diff < -want/100 || diff > want/100 { // times have more digits or fewer
			t.Errorf("%d entries: 200 edits wrote %d bytes, want %d", size, written, want)
		}
	}
}

// A list that grows is written as a whole now and then, but not so often that this is what an edit costs, and the segments
// that are not needed any more go.
func TestAGrowingListIsWrittenAsAWholeSeldom(t *testing.T) {
	t.Parallel()
	m := newMemory()
	d := openList(t, m)
	const size = 10_000
	for n := range size {
		must(t, d.add(numbered(n)))
	}
	written, _ := m.reset()
	if perEdit := written / size; perEdit > segmentLen {
		t.Errorf("an edit wrote %d bytes, want at most %d", perEdit, segmentLen)
	}
	most := 2 * size / entriesPerSegment // the goroutine may be behind
	eventually(t, "the segments are few", func() bool { return m.segments() <= most })
	if again := openList(t, m.copy()); again.set.Load().Len() != size {
		t.Errorf("%d entries are stored, want %d", again.set.Load().Len(), size)
	}
}

// Wherever a process is killed, the list has what was acknowledged afterwards. The one edit that was under way may be there
// or not.
func TestNothingThatWasAcknowledgedIsLost(t *testing.T) {
	t.Parallel()
	for most := 1; ; most += 1 + most/16 { // all of the first, and some of the others
		m := newMemory()
		m.most = most
		acknowledged, underWay := editUntilItFails(openList(t, m))
		got := make(prefixes)
		for _, e := range openList(t, m.copy()).all() {
			got[e.Prefix] = true
		}
		if !maps.Equal(got, acknowledged) && !maps.Equal(got, underWay) {
			t.Fatalf("after %d changes of the storage: %d entries, want %d or %d", most, len(got), len(acknowledged), len(underWay))
		}
		if underWay == nil {
			return // the storage has outlived all edits
		}
	}
}

type prefixes map[netip.Prefix]bool

// editUntilItFails makes many edits, and returns what those come to that were acknowledged, and what there is with the one
// that has failed.
func editUntilItFails(d *dynamic) (acknowledged, underWay prefixes) {
	acknowledged = make(prefixes)
	for n := range 600 {
		e := numbered(n % 400)
		e.Reason, e.By = strings.Repeat("r", maxRemark), strings.Repeat("b", maxRemark) // so that segments are full soon
		underWay = maps.Clone(acknowledged)
		var err error
		switch {
		case n == 300:
			underWay = prefixes{e.Prefix: true}
			_, err = d.replaceAll([]entry{e})
		case n%5 == 4:
			delete(underWay, numbered(n-3).Prefix)
			_, err = d.remove(numbered(n - 3).Prefix)
		default:
			underWay[e.Prefix] = true
			err = d.add(e)
		}
		if err != nil {
			return acknowledged, underWay
		}
		acknowledged = underWay
	}
	return acknowledged, nil
}

// A list that was stored by a version without a journal is read, and goes on with one.
func TestAListOfBeforeIsRead(t *testing.T) {
	t.Parallel()
	m := newMemory()
	m.values["portgate/lists/test.json"] = `[{"prefix":"192.0.2.1/32","added":"2026-01-02T03:04:05.678Z","reason":"scan"},
		{"prefix":"2001:db8::/32","added":"2026-01-02T03:04:05Z","by":"me"},{"prefix":"192.0.2.2/32","added":"2026-01-02T03:04:05Z","expires":"2026-01-03T00:00:00Z"}]`
	d := openList(t, m)
	if all := d.all(); len(all) != 2 || all[0].Reason != "scan" || all[1].By != "me" {
		t.Fatalf("%v", all)
	}
	must(t, d.add(newTestEntry("192.0.2.9/32", 0)))
	if _, err := d.remove(netip.MustParsePrefix("2001:db8::/32")); err != nil {
		t.Fatal(err)
	}
	if all := openList(t, m.copy()).all(); len(all) != 2 || all[0].Prefix.String() != "192.0.2.1/32" || all[1].Prefix.String() != "192.0.2.9/32" {
		t.Errorf("%v", all)
	}
}

// A list that is damaged is not taken for another one, and the error says where the damage is.
func TestADamagedListIsRefused(t *testing.T) {
	t.Parallel()
	const entries, first, second = "portgate/lists/test.json", "portgate/lists/test/00000001.json", "portgate/lists/test/00000002.json"
	const good, set = `{"prefix":"192.0.2.1/32"}`, `{"set":{"prefix":"192.0.2.1/32"}}` + "\n"
	for _, c := range []struct {
		values map[string]string
		want   string
	}{
		{map[string]string{entries: ``}, entries + " in the storage is damaged: it ends too early"},
		{map[string]string{entries: `null`}, `expected a list`},
		{map[string]string{entries: `{}`}, `it ends too early`},
		{map[string]string{entries: `{"through":`}, `it ends too early`},
		{map[string]string{entries: `[`}, `entry 1: it ends too early`},
		{map[string]string{entries: `[null]`}, `entry 1: "null": expected an object`},
		{map[string]string{entries: `[` + good + `,null,` + good + `]`}, `entry 2: "null": expected an object`},
		{map[string]string{entries: `[` + good + `,{}]`}, `entry 2: prefix: "": expected an address or a prefix`},
		{map[string]string{entries: `[` + good + `,{"prefix":""}]`}, `entry 2: prefix: "": expected an address or a prefix`},
		{map[string]string{entries: `[` + good + `,{"prefix":"x"}]`}, `entry 2: `},
		{map[string]string{entries: `[` + good + `,{"prefix":"10.0.0.1/8"}]`}, `entry 2: prefix: "10.0.0.1/8": expected no bits set behind the prefix`},
		{map[string]string{entries: `[` + good + `,{"prefix":"::ffff:10.0.0.0/104"}]`}, `entry 2: `},
		{map[string]string{entries: `[` + good + `,7]`}, `entry 2: `},
		{map[string]string{entries: `[` + good + `,{"prefix":"192.0.2.`}, `entry 2: it ends too early`},
		{map[string]string{entries: `[` + good}, `entry 2: it ends too early`},
		{map[string]string{entries: `[` + good + `]]`}, `expected nothing behind the list of 1`},
		{map[string]string{entries: "{\"through\":2}\n[null]"}, `entry 1: "null": expected an object`},
		{map[string]string{first: "null\n"}, first + ` in the storage is damaged: edit 1: expected one of "set", "remove", "all" and "end"`},
		{map[string]string{first: ""}, `it ends too early`},
		{map[string]string{first: set + "{}\n"}, `edit 2: expected one of "set", "remove", "all" and "end"`},
		{map[string]string{first: set + `{"set":{}}` + "\n"}, `edit 2: prefix: "": expected an address or a prefix`},
		{map[string]string{first: set + `{"remove":""}` + "\n"}, `edit 2: prefix: "": expected an address or a prefix`},
		{map[string]string{first: set + set[:9] + "\n"}, `edit 2: `},
		{map[string]string{first: set[:9]}, `it ends too early`},
		{map[string]string{first: set + set[:9], second: set}, first + ` in the storage is damaged: edit 2: it ends too early`},
		{map[string]string{second: set}, first + ` in the storage is damaged: it is missing`},
	} {
		m := newMemory()
		m.values = c.values
		d := openList(t, m)
		if !strings.Contains(d.damages(), c.want) || !d.damaged.Is() {
			t.Errorf("%v: %s\nwant %s", c.values, d.damages(), c.want)
		}
	}
}

// What could not be stored is stored as soon as there is room again, without another edit, however much it is.
func TestWhatCouldNotBeStoredIsStoredLater(t *testing.T) {
	t.Parallel()
	for _, edits := range []int{1, 20, maxUnsaved + 10} {
		m := newMemory()
		d := openList(t, m)
		must(t, d.add(numbered(0)))
		m.breakDown(true)
		for n := range edits {
			if err := d.add(numbered(n + 1)); err == nil {
				t.Fatal("want an error")
			}
		}
		d.editing.Lock()
		if len(d.unsaved) > maxUnsaved {
			t.Errorf("%d edits wait", len(d.unsaved))
		}
		d.editing.Unlock()
		m.breakDown(false)
		eventually(t, "all is stored", func() bool { return storedLen(t, m) == edits+1 })
		eventually(t, "it is said", func() bool { return !d.unstored.Is() })
	}
}

func storedLen(t testing.TB, m *memory) int {
	t.Helper()
	d, err := openDynamic("another", m.copy().rename("test", "another"))
	must(t, err)
	defer d.wait()
	defer func() { must(t, d.Destruct()) }()
	return d.set.Load().Len()
}

func (m *memory) rename(from, to string) *memory {
	for key, value := range m.values {
		delete(m.values, key)
		m.values[strings.Replace(key, "/"+from, "/"+to, 1)] = value
	}
	return m
}

// A list that is closed while it could not be stored is stored then.
func TestAListThatClosesIsStored(t *testing.T) {
	t.Parallel()
	m := newMemory()
	d, err := openDynamic("test", m)
	must(t, err)
	m.breakDown(true)
	if err := d.add(numbered(1)); err == nil {
		t.Error("want an error")
	}
	m.breakDown(false)
	must(t, d.Destruct())
	d.wait()
	if n := storedLen(t, m); n != 1 {
		t.Errorf("%d entries are stored", n)
	}
}

// sameStorage is another instance of a storage, as each config has its own.
type sameStorage struct{ *memory }

// A reload goes on with the segments where the storage is the one of before, and stores all entries where it is another.
func TestTheStorageOfANewConfig(t *testing.T) {
	t.Parallel()
	m, other := newMemory(), newMemory()
	other.values["portgate/lists/test.json"] = `[{"prefix":"203.0.113.0/24"}]`
	other.values["portgate/lists/test/00000001.json"] = `{"set":{"prefix":"203.0.113.1/32"}}` + "\n"
	other.values["portgate/lists/test/00000002.json"] = `{"set":{"prefix":"203.0.113.2/32"}}` + "\n"
	d := openList(t, m)
	fill(t, d, 1000)
	must(t, d.add(newTestEntry("192.0.2.1/32", 0)))
	m.reset()
	d.storage.Use(&sameStorage{m})
	must(t, d.add(newTestEntry("192.0.2.2/32", 0)))
	if written, _ := m.reset(); written > segmentLen {
		t.Errorf("an edit after a reload wrote %d bytes", written)
	}
	d.storage.Use(other)
	must(t, d.add(newTestEntry("192.0.2.3/32", 0)))
	must(t, d.add(newTestEntry("192.0.2.4/32", 0)))
	if again := openList(t, other.copy()); again.set.Load().Len() != 1004 || again.contains(addr("203.0.113.1")) {
		t.Errorf("%d entries in the other storage, want 1004", again.set.Load().Len())
	}
	d.storage.Use(m)
	must(t, d.add(newTestEntry("192.0.2.5/32", 0)))
	if again := openList(t, m.copy()); again.set.Load().Len() != 1005 {
		t.Errorf("%d entries in the storage of before, want 1005", again.set.Load().Len())
	}
}

// An edit that was being appended when the process was killed is left out, and those before are there, also when the list
// is opened once more after further edits. The same holds where a file is not what was written.
func TestAnEditThatIsCutOff(t *testing.T) {
	t.Parallel()
	storage := &certmagic.FileStorage{Path: t.TempDir()}
	d := openList(t, storage)
	for n := range 3 {
		must(t, d.add(numbered(n)))
	}
	segment := storage.Filename("portgate/lists/test/00000001.json")
	content, err := os.ReadFile(segment)
	must(t, err)
	if lines := strings.Count(string(content), "\n"); lines != 3 {
		t.Fatalf("%d lines in %q", lines, content)
	}
	must(t, os.WriteFile(segment, append(content, content[:20]...), 0o600))
	for n := 3; n < 6; n++ {
		again := openList(t, storage)
		if got := again.set.Load().Len(); got != n {
			t.Fatalf("%d entries, want %d", got, n)
		}
		must(t, again.add(numbered(n)))
	}
	// d goes on with a segment that is another one by now.
	must(t, d.add(numbered(6)))
	if again := openList(t, storage); !again.contains(numbered(6).Prefix.Addr()) || !again.contains(numbered(0).Prefix.Addr()) {
		t.Errorf("%v", again.all())
	}
	must(t, os.Remove(segment))
	must(t, d.add(numbered(7)))
	if again := openList(t, storage); again.set.Load().Len() != 8 {
		t.Errorf("%v", again.all())
	}
}

// Files that a kill has left go when a list is opened, and no others.
func TestLeftoversAreRemoved(t *testing.T) {
	t.Parallel()
	storage := &certmagic.FileStorage{Path: t.TempDir()}
	before := started.Add(-time.Minute)
	for name, old := range map[string]bool{
		"portgate/lists/4294967295": true, "portgate/lists/test/12": true, "portgate/lists/123/00000001.json": true,
		"portgate/lists/123.json": true, "portgate/lists/test/13": false, "portgate/lists/0123456789abcdef": true,
	} {
		must(t, storage.Store(t.Context(), name, []byte("[]")))
		if old {
			must(t, os.Chtimes(storage.Filename(name), before, before))
			must(t, os.Chtimes(path.Dir(storage.Filename(name)), before, before))
		}
	}
	openList(t, storage)
	left, err := storage.List(t.Context(), "portgate/lists", true)
	must(t, err)
	left = slices.DeleteFunc(left, func(key string) bool { info, _ := storage.Stat(t.Context(), key); return !info.IsTerminal })
	left = slices.DeleteFunc(left, func(key string) bool { return key == "portgate/lists/test."+editsLock })
	slices.Sort(left)
	want := []string{"portgate/lists/0123456789abcdef", "portgate/lists/123.json", "portgate/lists/123/00000001.json", "portgate/lists/test/13"}
	if !slices.Equal(left, want) {
		t.Errorf("left: %q\nwant: %q", left, want)
	}
}
