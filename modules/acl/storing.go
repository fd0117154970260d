package acl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/degraded"
)

// storing is the part of a dynamic list that writes edits to the storage, and reads those of other processes. A caller who edits
// the list waits until that is done; if several callers wait, one writes the edits of all. A goroutine writes what could not be
// written at first, keeps the journal short, and looks for edits of others.
type storing struct {
	storage storages

	saving   sync.Mutex
	journal  journal
	saved    int64     // the edits that the storage has
	others   time.Time // when another process has last added edits
	unstored *degraded.Part
	long     *degraded.Part // the journal

	due  chan struct{} // wakes the goroutine
	ctx  context.Context
	stop context.CancelFunc
	done chan struct{}
}

// unsaved is an edit that the storage has not.
type unsaved struct {
	prefix netip.Prefix
	line   []byte // in JSON
}

// maxUnsaved is how many edits wait for a storage that fails; where there are more, all entries are stored instead.
const maxUnsaved = 4096

// The pause after a failure doubles with each further one.
const (
	firstStoreRetry = 500 * time.Millisecond
	lastStoreRetry  = 4 * time.Second
)

const (
	// lookInterval is how often a list is looked at for edits of other processes with the same storage.
	lookInterval = 10 * time.Second
	// giveWay is how long a process leaves the lock to others before it takes it again, if others are at work.
	giveWay = 2 * time.Millisecond
)

func (d *dynamic) startStoring() {
	d.unstored, d.long = degraded.New("list_store"), degraded.New("list_compaction")
	d.due, d.done = make(chan struct{}, 1), make(chan struct{})
	d.ctx, d.stop = context.WithCancel(context.Background())
	go func() {
		defer close(d.done)
		d.keepStored()
		d.unstored.Close()
		d.long.Close()
		d.damaged.Close()
		d.forget()
	}()
}

// wait returns when a list that nobody uses any more has made a last attempt to store what is not stored. It does not wait
// for good for a storage that does not answer.
func (d *dynamic) wait() {
	if d.ctx.Err() == nil {
		return // somebody uses it
	}
	timeout := time.NewTimer(storageTimeout)
	defer timeout.Stop()
	select {
	case <-d.done:
	case <-timeout.C:
	}
}

func (d *dynamic) keepStored() {
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	defer retry.Stop()
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	for pause := firstStoreRetry; ; {
		select {
		case <-d.ctx.Done():
			_ = d.storeRest() // whoever has edited it knows, and the log
			return
		case <-look.C:
			d.look()
			continue
		case <-d.due:
		case <-retry.C:
		}
		err := d.storeRest()
		if err == nil {
			err = d.shorten()
		}
		if err != nil {
			retry.Reset(pause)
			pause = min(2*pause, lastStoreRetry)
		} else {
			pause = firstStoreRetry
		}
	}
}

// wake has the goroutine look whether there is something to do.
func (d *dynamic) wake() {
	select {
	case d.due <- struct{}{}:
	default: // it will look
	}
}

// note remembers an edit until it is stored, and returns its number. It is called with editing held.
func (d *dynamic) note(prefix netip.Prefix, line []byte) int64 {
	if len(d.unsaved) == maxUnsaved {
		d.entire, d.unsaved = true, nil
	}
	if !d.entire {
		d.unsaved = append(d.unsaved, unsaved{prefix, line})
	}
	d.edits++
	return d.edits
}

// noteAll is note for an edit that has changed everything.
func (d *dynamic) noteAll() int64 {
	d.entire, d.unsaved = true, nil
	d.edits++
	return d.edits
}

// save returns when the storage has the edit of this number.
func (d *dynamic) save(number int64) error {
	d.saving.Lock()
	defer d.saving.Unlock()
	if d.saved >= number {
		return nil
	}
	if err := d.store(); err != nil {
		return fmt.Errorf("it is in force, but could not be stored: %w", err)
	}
	return nil
}

// storeRest stores the edits that could not be stored when they were made.
func (d *dynamic) storeRest() error {
	d.saving.Lock()
	defer d.saving.Unlock()
	d.editing.Lock()
	done := d.saved == d.edits
	d.editing.Unlock()
	if done {
		return nil
	}
	return d.store()
}

// store brings all edits into the storage that there are now. It is called with saving held, as are those below.
func (d *dynamic) store() error {
	storage := d.storage.Value()
	err := d.locked(storage, lockTimeout, func() error {
		if d.journal.broken || !d.journal.isIn(storage) {
			return errBehind
		}
		return d.commit()
	})
	if isBehind(err) {
		err = d.readAnew(storage, true)
	}
	d.noteStored(err)
	if d.journal.isLong(d.set.Load().Len()) && !d.long.Is() {
		d.wake()
	}
	return err
}

func isBehind(err error) bool {
	var found *damage
	return errors.Is(err, errBehind) || errors.As(err, &found)
}

// locked calls f while no other process reads or appends edits. It waits for that so long at most.
func (d *dynamic) locked(storage certmagic.Storage, timeout time.Duration, f func() error) error {
	if time.Since(d.others) < time.Second {
		time.Sleep(giveWay)
	}
	unlock, err := lockList(storage, d.journal.name, editsLock, timeout)
	if err != nil {
		return err
	}
	defer unlock()
	return f()
}

// commit appends the edits that are not stored to those of all processes.
func (d *dynamic) commit() error {
	if err := d.catchUp(); err != nil {
		return err
	}
	d.editing.Lock()
	entire := d.entire
	number, waiting := d.edits, d.unsaved
	d.editing.Unlock()
	if entire {
		return d.storeWhole(d.journal.appendAll)
	}
	if len(waiting) > 0 {
		lines := make([][]byte, len(waiting))
		for i := range waiting {
			lines[i] = waiting[i].line
		}
		if err := d.journal.append(lines); err != nil {
			return err
		}
		d.editing.Lock()
		if !d.entire { // nor is it in unsaved what came before
			d.unsaved = d.unsaved[len(waiting):]
		}
		d.editing.Unlock()
	}
	d.saved = number
	return nil
}

// storeWhole stores all entries, in whatever way.
func (d *dynamic) storeWhole(store func([]entry) error) error {
	d.editing.Lock()
	number, entries := d.edits, d.copyAll()
	d.entire, d.unsaved = false, nil
	d.editing.Unlock()
	if err := store(entries); err != nil {
		d.editing.Lock()
		d.entire, d.unsaved = true, nil
		d.editing.Unlock()
		return err
	}
	d.saved = number
	return nil
}

// catchUp makes the edits of other processes. Those of this process that are not stored come after them.
func (d *dynamic) catchUp() error {
	edits, err := d.journal.catchUp()
	if len(edits) > 0 {
		d.others = time.Now()
		d.merge(edits)
	}
	return err
}

// look makes the edits of other processes if there are some.
func (d *dynamic) look() {
	d.saving.Lock()
	defer d.saving.Unlock()
	storage := d.storage.Value()
	if !d.journal.isIn(storage) {
		return // the next edit moves the list there
	}
	err := d.locked(storage, tryTimeout, func() error { // edits wait meanwhile
		if d.journal.broken {
			return errBehind
		}
		return d.catchUp()
	})
	if isBehind(err) {
		_ = d.readAnew(storage, false) // it is tried again with the next edit, which reports it
	}
}

// readAnew is called when the storage does not go on where the journal is. If others have stored all entries anew, these are read. Else
// they are stored anew from memory, if mayRewrite is set: they are damaged or gone, or the storage is another one.
func (d *dynamic) readAnew(storage certmagic.Storage, mayRewrite bool) error {
	unlock, err := lockList(storage, d.journal.name, wholeLock, lockTimeout)
	if err != nil {
		return err
	}
	defer unlock()
	return d.locked(storage, lockTimeout, func() error {
		if d.journal.isIn(storage) {
			next := journal{name: d.journal.name}
			entries, damages, err := next.read(storage, true)
			if err != nil {
				return err
			}
			if !d.journal.broken {
				d.keepDamaged(storage, damages)
			}
			if len(damages) == 0 && next.through >= d.journal.lastNumber() {
				d.journal = next
				d.others = time.Now()
				d.mergeAll(entries)
				return d.commit()
			}
		}
		if !mayRewrite {
			return nil
		}
		return d.rewrite(storage)
	})
}

// rewrite stores all entries, in whatever storage.
func (d *dynamic) rewrite(storage certmagic.Storage) error {
	if err := d.journal.restart(storage); err != nil {
		return err
	}
	d.journal.broken = true // until it is done
	through := d.journal.number - 1
	var last known
	err := d.storeWhole(func(entries []entry) (err error) {
		last, err = d.journal.storeEntries(storage, through, entries)
		return err
	})
	if err != nil {
		return err
	}
	d.journal.through, d.journal.last, d.journal.broken = through, last, false
	d.journal.oldest = d.journal.clear(storage, d.journal.oldest, through+1)
	return nil
}

// noteStored says once that the list can't be stored, and once that it can again.
func (d *dynamic) noteStored(err error) {
	if err == nil {
		d.unstored.End(d.log(), "list is stored again, with all that has changed meanwhile")
		d.mend()
		return
	}
	collectors.storeErrors.WithLabelValues(d.name).Inc()
	if !d.unstored.Is() {
		d.wake()
	}
	d.unstored.Begin(d.log(), "list can't be stored: it is in force, and is stored as soon as that is possible", zap.Error(err))
}
