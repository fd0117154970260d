package acl

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
	"github.com/portgate/caddy-portgate/modules/internal/state"
)

// maxEntries is how many entries a dynamic list may have. Beyond it new ones are refused: no entry makes room for
// another, because each was put there by somebody for a reason.
const maxEntries = 100_000

// storageTimeout bounds one access to the storage.
const storageTimeout = 10 * time.Second

// entry is one line of a dynamic list.
type entry struct {
	Prefix  netip.Prefix `json:"prefix"`
	Added   time.Time    `json:"added"`
	Expires *time.Time   `json:"expires,omitempty"`
	Reason  string       `json:"reason,omitempty"`
	By      string       `json:"by,omitempty"`
}

func (e *entry) expired(now time.Time) bool { return e.Expires != nil && !now.Before(*e.Expires) }

// dynamic is a list that is edited while it is used.
type dynamic struct {
	list
	key     string // where the storage has it
	storage storages

	editing sync.Mutex
	entries map[netip.Prefix]entry
	edits   int64 // counts the changes
	expiry  *time.Timer
	next    time.Time // when it fires; zero: never
	closed  bool

	saving sync.Mutex
	saved  int64 // the edits that the storage has
}

// dynamicLists are all that a running config names.
var dynamicLists = state.NewPool[string, *dynamic]()

var errFull = fmt.Errorf("expected at most %d entries in a list", maxEntries)

// openDynamic brings a list back as it was stored. One that was never stored is empty.
func openDynamic(name string, storage certmagic.Storage) (*dynamic, error) {
	d := &dynamic{key: "portgate/lists/" + name + ".json", entries: make(map[netip.Prefix]entry)}
	d.name = "list " + name
	d.storage.use(storage)
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	value, err := storage.Load(ctx, d.key)
	var stored []entry
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(value, &stored); err != nil {
			return nil, fmt.Errorf("%s in the storage is damaged: %w", d.key, err)
		}
	}
	d.opened()
	d.expiry = time.AfterFunc(time.Hour, d.expire)
	d.editing.Lock()
	defer d.editing.Unlock()
	d.put(stored)
	return d, nil
}

func (d *dynamic) content() *list { return &d.list }

// Destruct ends the waiting for entries to expire. What was edited is in the storage already.
func (d *dynamic) Destruct() error {
	d.editing.Lock()
	d.closed = true
	d.expiry.Stop()
	d.editing.Unlock()
	d.forget()
	return nil
}

// put makes these the entries. It is called with editing held, as are those below.
func (d *dynamic) put(entries []entry) {
	now := time.Now()
	clear(d.entries)
	for _, e := range entries {
		if !e.expired(now) {
			d.entries[e.Prefix] = e
		}
	}
	d.rebuild()
}

// rebuild is for when many entries have changed.
func (d *dynamic) rebuild() {
	d.changed(ipset.New(maps.Keys(d.entries)))
	d.next = time.Time{}
	for _, e := range d.entries {
		d.schedule(e)
	}
}

// changed takes over what an edit has made.
func (d *dynamic) changed(set *ipset.Set) {
	d.edits++
	d.replace(set)
}

// expiryPause is the least time between two rounds of taking out what has expired, each of which looks at all entries.
const expiryPause = 100 * time.Millisecond

// schedule sees to it that the timer fires when the entry expires, or before.
func (d *dynamic) schedule(e entry) {
	if e.Expires != nil && (d.next.IsZero() || e.Expires.Before(d.next)) {
		d.next = *e.Expires
		d.expiry.Reset(max(time.Until(d.next), expiryPause))
	}
}

// expire removes the entries whose time has come.
func (d *dynamic) expire() {
	d.editing.Lock()
	defer d.editing.Unlock()
	if d.closed {
		return
	}
	now := time.Now()
	maps.DeleteFunc(d.entries, func(_ netip.Prefix, e entry) bool { return e.expired(now) })
	d.rebuild()
}

// add puts an entry in, in place of one with the same prefix, and returns when it is stored.
func (d *dynamic) add(e entry) error {
	d.editing.Lock()
	if _, replaced := d.entries[e.Prefix]; !replaced && len(d.entries) >= maxEntries {
		d.editing.Unlock()
		return errFull
	}
	d.entries[e.Prefix] = e
	d.changed(d.set.Load().With(e.Prefix))
	d.schedule(e)
	edit := d.edits
	d.editing.Unlock()
	return d.save(edit)
}

// remove takes an entry out. It reports false where there is none.
func (d *dynamic) remove(prefix netip.Prefix) (bool, error) {
	d.editing.Lock()
	if _, ok := d.entries[prefix]; !ok {
		d.editing.Unlock()
		return false, nil
	}
	delete(d.entries, prefix)
	d.changed(d.set.Load().Without(prefix))
	edit := d.edits
	d.editing.Unlock()
	return true, d.save(edit)
}

// replaceAll makes these the entries.
func (d *dynamic) replaceAll(entries []entry) error {
	if len(entries) > maxEntries {
		return errFull
	}
	d.editing.Lock()
	d.put(entries)
	edit := d.edits
	d.editing.Unlock()
	return d.save(edit)
}

// all returns the entries in order.
func (d *dynamic) all() []entry {
	d.editing.Lock()
	defer d.editing.Unlock()
	return slices.SortedFunc(maps.Values(d.entries), func(a, b entry) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
}

// get returns the entry of a prefix.
func (d *dynamic) get(prefix netip.Prefix) (entry, bool) {
	d.editing.Lock()
	defer d.editing.Unlock()
	e, ok := d.entries[prefix]
	return e, ok
}

// save returns when the storage has this edit. Of those that come while it writes, one writes for all.
func (d *dynamic) save(edit int64) error {
	d.saving.Lock()
	defer d.saving.Unlock()
	if d.saved >= edit {
		return nil
	}
	d.editing.Lock()
	edit = d.edits
	d.editing.Unlock()
	value, err := json.Marshal(d.all()) // of this edit or of later ones
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	if err := d.storage.youngest().Store(ctx, d.key, value); err != nil {
		caddy.Log().Named("acl").Error("list can't be stored", zap.String("list", d.name), zap.Error(err))
		return fmt.Errorf("it is in force, but could not be stored: %w", err)
	}
	d.saved = edit
	return nil
}
