package acl

import (
	"cmp"
	"container/heap"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// maxEntries is how many entries a dynamic list may have. Beyond it new ones are refused: no entry makes room for
// another, because each was put there by somebody for a reason.
const maxEntries = 100_000

// entry is one line of a dynamic list.
type entry struct {
	Prefix  netip.Prefix `json:"prefix"`
	Added   time.Time    `json:"added"`
	Expires *time.Time   `json:"expires,omitempty"`
	Reason  string       `json:"reason,omitempty"`
	By      string       `json:"by,omitempty"`
}

// dynamic is a list that is edited while it is used.
type dynamic struct {
	list
	storing
	clock clock

	editing sync.Mutex
	entries map[netip.Prefix]*timed
	queue   expiryQueue
	expiry  *time.Timer
	next    time.Duration // when it fires, by clock.passed; 0: it does not
	closed  bool

	missing atomic.Pointer[string] // what is wrong with what was stored; nil: nothing
	damaged *degraded.Part

	edits   int64     // counts the edits
	unsaved []unsaved // the last edits
	entire  bool      // there are edits that are not in unsaved: all entries have to be stored
}

// dynamicLists are all that a running config names.
var dynamicLists = state.NewPool[string, *dynamic]()

var errFull = fmt.Errorf("expected at most %d entries in a list", maxEntries)

// openDynamic brings a list back as it was stored. One that was never stored is empty.
func openDynamic(name string, storage certmagic.Storage) (*dynamic, error) {
	return openAt(systemClock(), name, storage)
}

func openAt(c clock, name string, storage certmagic.Storage) (*dynamic, error) {
	d := &dynamic{clock: c}
	d.init("list " + name)
	d.damaged = degraded.New("list_damaged")
	d.journal.name = listsFolder + "/" + name
	d.storage.Use(storage)
	removeLeftovers(storage, listsFolder, d.journal.name)
	stored, damages, err := d.read(storage)
	if err != nil {
		return nil, err
	}
	d.opened()
	collectors.damaged.WithLabelValues(d.name).Set(0)
	if len(damages) > 0 {
		d.damage(d.keepDamaged(storage, damages))
	}
	d.expiry = time.AfterFunc(time.Hour, d.expire)
	d.editing.Lock()
	d.put(slices.Collect(maps.Values(stored)))
	d.editing.Unlock()
	d.startStoring()
	return d, nil
}

// read reads what is stored. A process that holds the lock for long does not keep this one from its start.
func (d *dynamic) read(storage certmagic.Storage) (map[netip.Prefix]entry, []*damage, error) {
	unlock, err := lockToRead(storage, d.journal.name)
	if err == nil {
		defer unlock()
	}
	return d.journal.read(storage, err == nil)
}

func (d *dynamic) content() *list { return &d.list }

// Destruct ends the waiting for entries to expire, and has what could not be stored until now be stored. It does not wait
// for that: see [storing].wait.
func (d *dynamic) Destruct() error {
	d.editing.Lock()
	d.closed = true
	d.expiry.Stop()
	d.editing.Unlock()
	d.stop()
	return nil
}

// put makes these the entries; of two with the same prefix, the later one. It is called with editing held, as are those below.
func (d *dynamic) put(entries []entry) {
	before := d.entries
	d.entries = make(map[netip.Prefix]*timed, len(entries))
	d.queue = nil
	for _, e := range entries {
		if d.isOver(&e) {
			continue
		}
		if again := d.entries[e.Prefix]; again != nil {
			d.queue.remove(again)
		}
		d.insert(e, before[e.Prefix])
	}
	d.replace(ipset.New(maps.Keys(d.entries)))
	d.schedule()
}

func (d *dynamic) isOver(e *entry) bool { return e.Expires != nil && !d.clock.now().Before(*e.Expires) }

// insert puts an entry in, in place of the one before with the same prefix, if there is one. An entry that is the same goes on.
func (d *dynamic) insert(e entry, before *timed) {
	t := &timed{entry: e, at: notQueued}
	d.entries[e.Prefix] = t
	if e.Expires == nil {
		return
	}
	if before != nil && before.Expires != nil && before.Expires.Equal(*e.Expires) {
		t.ends = before.ends
	} else {
		t.ends = d.clock.end(*e.Expires)
	}
	heap.Push(&d.queue, t)
}

// setEntry puts an entry in, in place of one with the same prefix.
func (d *dynamic) setEntry(e entry) {
	before := d.entries[e.Prefix]
	if before != nil {
		d.queue.remove(before)
	}
	d.insert(e, before)
}

// deleteEntry takes an entry out.
func (d *dynamic) deleteEntry(t *timed) {
	d.queue.remove(t)
	delete(d.entries, t.Prefix)
}

const (
	// expiryPause is the least time between two rounds of taking out what has expired.
	expiryPause = 100 * time.Millisecond
	// expiryRound is how many entries a round takes out before others may edit the list.
	expiryRound = 1000
)

// schedule sees to it that the timer fires when the next entry expires, or before.
func (d *dynamic) schedule() {
	if len(d.queue) == 0 || d.queue[0].ends == d.next {
		return
	}
	d.next = d.queue[0].ends
	d.expiry.Reset(max(d.next-d.clock.passed(), expiryPause))
}

// expire removes the entries whose time has come.
func (d *dynamic) expire() {
	for more := true; more; {
		more = d.expireSome()
	}
}

func (d *dynamic) expireSome() (more bool) {
	d.editing.Lock()
	defer d.editing.Unlock()
	if d.closed {
		return false
	}
	passed, set := d.clock.passed(), d.set.Load()
	var gone []netip.Prefix
	for len(gone) < expiryRound && len(d.queue) > 0 && d.queue[0].ends <= passed {
		t := heap.Pop(&d.queue).(*timed)
		delete(d.entries, t.Prefix)
		set = set.Without(t.Prefix)
		gone = append(gone, t.Prefix)
	}
	if len(gone) > 0 {
		d.change(set, gone)
		d.tellExpired(gone)
	}
	d.next = 0
	d.schedule()
	return len(gone) == expiryRound
}

// add puts an entry in, in place of one with the same prefix, and returns when it is stored.
func (d *dynamic) add(e entry) error {
	line, err := json.Marshal(edit{Set: &e})
	if err != nil {
		return err
	}
	d.editing.Lock()
	if d.entries[e.Prefix] == nil && len(d.entries) >= maxEntries {
		d.editing.Unlock()
		return errFull
	}
	d.setEntry(e)
	d.change(d.set.Load().With(e.Prefix), []netip.Prefix{e.Prefix})
	d.schedule()
	number := d.note(e.Prefix, line)
	d.tellAdded(&e)
	d.editing.Unlock()
	return d.save(number)
}

// remove takes an entry out. It reports false where there is none.
func (d *dynamic) remove(prefix netip.Prefix) (bool, error) {
	line, err := json.Marshal(edit{Remove: &prefix})
	if err != nil {
		return false, err
	}
	d.editing.Lock()
	t := d.entries[prefix]
	if t == nil {
		d.editing.Unlock()
		return false, nil
	}
	d.deleteEntry(t)
	d.change(d.set.Load().Without(prefix), []netip.Prefix{prefix})
	d.schedule()
	number := d.note(prefix, line)
	d.tellRemoved(prefix)
	d.editing.Unlock()
	return true, d.save(number)
}

// replaceAll makes these the entries. It returns how many there were before.
func (d *dynamic) replaceAll(entries []entry) (before int, err error) {
	if len(entries) > maxEntries {
		return 0, errFull
	}
	d.editing.Lock()
	before = len(d.entries)
	d.put(entries)
	number := d.noteAll()
	d.tellReplaced(before, len(d.entries))
	d.editing.Unlock()
	return before, d.save(number)
}

// all returns the entries in order, with what is left of their time.
func (d *dynamic) all() []remaining {
	entries := d.snapshot()
	slices.SortFunc(entries, func(a, b entry) int { return comparePrefixes(a.Prefix, b.Prefix) })
	all := make([]remaining, len(entries))
	for i, e := range entries {
		all[i] = d.shown(e)
	}
	return all
}

// latest returns the entries that were added last, the newest first, and how many there are of all.
func (d *dynamic) latest(limit int) (some []remaining, size int) {
	entries := d.snapshot()
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Or(b.Added.Compare(a.Added), comparePrefixes(a.Prefix, b.Prefix)) })
	some = make([]remaining, min(len(entries), limit))
	for i := range some {
		some[i] = d.shown(entries[i])
	}
	return some, len(entries)
}

// shown adds what is left of an entry's time.
func (d *dynamic) shown(e entry) remaining {
	shown := remaining{entry: e}
	if e.Expires != nil {
		left := max(e.Expires.Sub(d.clock.now()), time.Millisecond)
		shown.TTL = left.Round(time.Millisecond).String()
	}
	return shown
}

func (d *dynamic) snapshot() []entry {
	d.editing.Lock()
	defer d.editing.Unlock()
	return d.copyAll()
}

// copyAll is called with editing held.
func (d *dynamic) copyAll() []entry {
	entries := make([]entry, 0, len(d.entries))
	for _, t := range d.entries {
		entries = append(entries, t.byTheClock(d.clock))
	}
	return entries
}

// get returns the entry of a prefix.
func (d *dynamic) get(prefix netip.Prefix) (remaining, bool) {
	d.editing.Lock()
	defer d.editing.Unlock()
	if t := d.entries[prefix]; t != nil {
		return d.shown(t.byTheClock(d.clock)), true
	}
	return remaining{}, false
}
