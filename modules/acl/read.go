package acl

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/caddyserver/certmagic"
)

// damage is a value of the storage that can't be read to its end.
type damage struct {
	key   string
	value []byte // nil: it is missing
	err   error
}

func (d *damage) Error() string { return fmt.Sprintf("%s in the storage is damaged: %v", d.key, d.err) }

// keep stores a copy of the value elsewhere, where nothing deletes it, and returns its key. The same damage has the same copy.
func (d *damage) keep(storage certmagic.Storage, list string) (key string, err error) {
	sum := sha256.Sum256(d.value)
	key = fmt.Sprintf("%s/%s-%x", damagedFolder, list, sum[:6])
	return key, storeKey(storage, key, d.value)
}

var errMissing = errors.New("it is missing")

// readRounds is how often a list is read where segments are missing: another process may have stored all entries meanwhile, and deleted
// them. It can't do so twice while edits are locked.
const readRounds = 3

// read reads all that is stored, and makes that the position of the journal. Of values that are damaged it returns what can be
// read, too. Where edits are locked it takes away what a process has left that was killed.
func (j *journal) read(storage certmagic.Storage, locked bool) (entries map[netip.Prefix]entry, damages []*damage, err error) {
	for range readRounds {
		r := reading{journal: journal{name: j.name, at: storage}, entries: make(map[netip.Prefix]entry), locked: locked}
		if err := r.all(); err != nil {
			return nil, nil, err
		}
		*j, entries, damages = r.journal, r.entries, r.damages
		if !slices.ContainsFunc(damages, func(d *damage) bool { return errors.Is(d.err, errMissing) }) {
			break
		}
	}
	return entries, damages, nil
}

// reading is a journal that is being read.
type reading struct {
	journal
	entries map[netip.Prefix]entry
	damages []*damage
	locked  bool
}

func (r *reading) all() error {
	value, err := loadKey(r.at, r.entriesKey())
	if err == nil {
		r.last = known{key: r.entriesKey(), sum: sha256.Sum256(value)}
		if r.through, err = decodeEntries(value, r.entries); err != nil {
			r.add(r.entriesKey(), value, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	numbers, err := r.segments(r.at)
	if err != nil {
		return err
	}
	r.number, r.oldest = r.through+1, r.through+1
	if r.broken && r.through == 0 && len(numbers) > 0 {
		r.number = numbers[0] // where to begin is not known
	}
	for i, number := range numbers {
		if number < r.through {
			if !r.broken { // a crash came before it was deleted
				_ = deleteKey(r.at, r.segmentKey(number))
			}
			continue
		}
		r.oldest = min(r.oldest, number)
		if err := r.segment(number, i == len(numbers)-1); err != nil {
			return err
		}
	}
	if r.broken { // what can't be read is not gone on with
		r.number, r.open, r.lines = r.lastNumber()+1, nil, 0
	}
	return nil
}

func (r *reading) add(key string, value []byte, err error) {
	r.damages = append(r.damages, &damage{key, value, err})
	r.broken = true
}

// segment reads a segment and makes its edits.
func (r *reading) segment(number int64, isLast bool) error {
	if number > r.number {
		r.add(r.segmentKey(r.number), nil, errMissing)
		r.number = number
	}
	key := r.segmentKey(number)
	value, err := loadKey(r.at, key)
	if errors.Is(err, fs.ErrNotExist) {
		r.add(key, nil, errMissing)
		return nil
	}
	if err != nil {
		return err
	}
	if number == r.through { // is contained, and stays
		r.last = knownSegment(key, value)
		return nil
	}
	complete := value
	if isLast && !r.locked {
		complete = value[:bytes.LastIndexByte(value, '\n')+1] // another process may be writing the rest
	} else if isLast {
		complete, _ = r.complete(key, value) // a full disk does not keep the ports closed: the next edit tries it again
	}
	if len(complete) == 0 {
		r.add(key, value, errTooEarly)
		return nil
	}
	edits, err := decodeEdits(complete, 0)
	for i := range edits {
		edits[i].apply(r.entries)
	}
	if err != nil {
		r.add(key, value, err)
	}
	r.open, r.lines = nil, 0
	r.advance(key, complete, len(edits))
	if !isLast && len(r.open) > 0 { // versions before began another one at each start
		r.number, r.open, r.lines = number+1, nil, 0
	}
	return nil
}
