package acl

import (
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// shorten stores all entries when the journal is long, unless another process does. Edits are stored meanwhile, in further
// segments.
func (d *dynamic) shorten() error {
	err := d.shortenIfLong()
	if err != nil {
		collectors.storeErrors.WithLabelValues(d.name).Inc()
		d.long.Begin(d.log(), "the entries of a list can't be stored anew: its edits are stored, and take more and more room", zap.Error(err))
	} else {
		d.long.End(d.log(), "the entries of a list are stored anew")
	}
	return err
}

func (d *dynamic) shortenIfLong() error {
	d.saving.Lock()
	storage := d.storage.Value()
	if !d.isLong(storage) {
		d.saving.Unlock()
		return nil
	}
	unlock, err := lockList(storage, d.journal.name, wholeLock, tryTimeout)
	if err != nil { // another process is at it, or the next edit reports it
		d.saving.Unlock()
		return nil
	}
	through, oldest, entries, err := d.sealed(storage)
	d.saving.Unlock()
	if err == nil && through > 0 {
		_, err = d.journal.storeEntries(storage, through, entries)
	}
	if err == nil && through > 0 {
		oldest = d.journal.clear(storage, oldest, through)
	}
	unlock()
	if isBehind(err) {
		return nil // the next edit finds out
	}
	if err != nil || through == 0 {
		return err
	}
	d.saving.Lock()
	defer d.saving.Unlock()
	if through > d.journal.through {
		d.journal.through, d.journal.oldest = through, oldest
	}
	return nil
}

func (d *dynamic) isLong(storage certmagic.Storage) bool {
	return d.journal.isLong(d.set.Load().Len()) && !d.journal.broken && d.journal.isIn(storage)
}

// sealed ends the last segment, and returns its number and the entries by then, of which edits that are not stored yet are a
// part. The number is 0 if another process has stored them. It is called with saving held.
func (d *dynamic) sealed(storage certmagic.Storage) (through, oldest int64, entries []entry, err error) {
	err = d.locked(storage, tryTimeout, func() error {
		if err := d.catchUp(); err != nil {
			return err
		}
		stored, err := d.journal.storedThrough(storage)
		if err != nil {
			return err
		}
		d.journal.through = max(d.journal.through, stored)
		d.editing.Lock()
		entire := d.entire
		d.editing.Unlock()
		if entire || !d.isLong(storage) {
			return nil
		}
		if err := d.journal.seal(); err != nil {
			return err
		}
		through, oldest, entries = d.journal.number-1, d.journal.oldest, d.snapshot()
		return nil
	})
	return through, oldest, entries, err
}
