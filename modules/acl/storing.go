package acl

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/degraded"
)

// storing is the part of a dynamic list that writes edits to the storage. A caller who edits the list waits until that is
// done; if several callers wait, one writes the edits of all. A goroutine writes what could not be written at first, and
// keeps the journal short.
type storing struct {
	storage storages

	saving    sync.Mutex
	journal   journal
	saved     int64      // the edits that the storage has
	rewriting bool       // the goroutine stores all entries, without holding saving
	rewritten *sync.Cond // no longer
	unstored  *degraded.Part
	long      *degraded.Part // the journal

	due  chan struct{} // wakes the goroutine
	stop context.CancelFunc
	done chan struct{}
}

// maxUnsaved is how many edits wait for a storage that fails; where there are more, all entries are stored instead.
const maxUnsaved = 4096

// The pause after a failure doubles with each further one.
const (
	firstStoreRetry = 500 * time.Millisecond
	lastStoreRetry  = 4 * time.Second
)

func (d *dynamic) startStoring() {
	d.unstored, d.long = degraded.New("list_store"), degraded.New("list_compaction")
	d.rewritten = sync.NewCond(&d.saving)
	d.due, d.done = make(chan struct{}, 1), make(chan struct{})
	var ctx context.Context
	ctx, d.stop = context.WithCancel(context.Background())
	go func() {
		defer close(d.done)
		d.keepStored(ctx)
	}()
}

// stopStoring makes a last attempt. It does not wait for good for a storage that does not answer.
func (d *dynamic) stopStoring() {
	d.stop()
	timeout := time.NewTimer(storageTimeout)
	defer timeout.Stop()
	select {
	case <-d.done:
	case <-timeout.C:
	}
	d.unstored.Close()
	d.long.Close()
}

func (d *dynamic) keepStored(ctx context.Context) {
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	defer retry.Stop()
	for pause := firstStoreRetry; ; {
		select {
		case <-ctx.Done():
			_ = d.storeRest() // whoever has edited it knows, and the log
			return
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
func (d *dynamic) note(line []byte) int64 {
	if len(d.unsaved) == maxUnsaved {
		d.entire, d.unsaved = true, nil
	}
	if !d.entire {
		d.unsaved = append(d.unsaved, line)
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
	d.editing.Lock()
	number, lines, entire := d.edits, d.unsaved, d.entire
	d.editing.Unlock()
	storage := d.storage.youngest()
	var err error
	if entire || !d.journal.isIn(storage) {
		number, err = d.storeEntries(storage)
	} else if err = d.journal.append(lines); err == nil {
		d.editing.Lock()
		if !d.entire { // nor is it in unsaved what came before
			d.unsaved = d.unsaved[len(lines):]
		}
		d.editing.Unlock()
	}
	if err == nil {
		d.saved = number
	}
	d.noteStored(err)
	if d.journal.isLong(d.set.Load().Len()) && !d.rewriting && !d.long.Is() {
		d.wake()
	}
	return err
}

// storeEntries stores all entries, in whatever storage.
func (d *dynamic) storeEntries(storage certmagic.Storage) (number int64, err error) {
	for d.rewriting { // what it writes is older
		d.rewritten.Wait()
	}
	if !d.journal.isIn(storage) {
		if err := d.journal.moveTo(storage); err != nil {
			return 0, err
		}
	}
	through := d.journal.seal()
	d.editing.Lock()
	number = d.edits
	entries := d.copyAll()
	d.entire, d.unsaved = false, nil
	d.editing.Unlock()
	if err := d.journal.storeEntries(storage, through, entries); err != nil {
		d.editing.Lock()
		d.entire, d.unsaved = true, nil
		d.editing.Unlock()
		return 0, err
	}
	d.journal.through = through
	d.journal.oldest = d.journal.clear(storage, d.journal.oldest, through)
	return number, nil
}

// shorten stores all entries when the journal is long. Edits are stored meanwhile, in further segments.
func (d *dynamic) shorten() error {
	d.saving.Lock()
	defer d.saving.Unlock()
	storage := d.storage.youngest()
	if !d.journal.isLong(d.set.Load().Len()) || !d.journal.isIn(storage) {
		return nil
	}
	d.rewriting = true
	through, oldest := d.journal.seal(), d.journal.oldest
	d.saving.Unlock()
	err := d.journal.storeEntries(storage, through, d.snapshot())
	if err == nil {
		oldest = d.journal.clear(storage, oldest, through)
	}
	d.saving.Lock()
	d.rewriting = false
	d.rewritten.Broadcast()
	if err == nil {
		d.journal.through, d.journal.oldest = through, oldest
	}
	if err != nil {
		collectors.storeErrors.WithLabelValues(d.name).Inc()
		d.long.Begin(d.log(), "the entries of a list can't be stored anew: its edits are stored, and take more and more room", zap.Error(err))
	} else {
		d.long.End(d.log(), "the entries of a list are stored anew")
	}
	return err
}

// noteStored says once that the list can't be stored, and once that it can again.
func (d *dynamic) noteStored(err error) {
	if err == nil {
		d.unstored.End(d.log(), "list is stored again, with all that has changed meanwhile")
		return
	}
	collectors.storeErrors.WithLabelValues(d.name).Inc()
	if !d.unstored.Is() {
		d.wake()
	}
	d.unstored.Begin(d.log(), "list can't be stored: it is in force, and is stored as soon as that is possible", zap.Error(err))
}
