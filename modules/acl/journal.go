package acl

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
)

// journal keeps a dynamic list in Caddy's storage: all entries at some time, and segments with the edits since then.
//
//	portgate/lists/bans.json            {"through": 17} and the entries, after the edits of segment 17
//	portgate/lists/bans/00000018.json   {"set": {"prefix": ...}} or {"remove": "192.0.2.7/32"} in each line
//
// Each edit is added to the last segment until that is full. So an edit costs the same in a list of any size. When there
// are many segments, all entries are written anew, and the segments that they contain are deleted.
//
// The storage replaces a value as a whole or not at all, and a segment begins after the one before is stored. In files,
// edits are appended: a crash may leave a part of a line at the end of the last segment, of an edit that was not
// acknowledged. So a crash loses no edit that was. If it comes before segments are deleted, "through" says which ones not
// to read.
//
// Versions without a journal stored the entries alone, without {"through": ...}.
//
// A journal does not lock: see [dynamic].
type journal struct {
	name string // "portgate/lists/bans"

	at       certmagic.Storage // has all that was written
	through  int64             // the entries contain the segments up to this one
	oldest   int64             // lowest number of the segments that are in the storage
	number   int64             // of the segment that the next edit goes to
	open     []byte            // that segment; empty if it has no edit yet
	lastKey  string            // of the segment that was written last
	lastPart []byte            // its content
}

const (
	// segmentLen is how long a segment may become before the next one is begun: about 50 edits.
	segmentLen = 8 << 10
	// fewSegments is how many segments there may be in any case before the entries are written anew.
	fewSegments = 16
	// entriesPerSegment is for long lists: there is a segment for each so many entries before these are written anew, so
	// that an edit pays for about one entry of it.
	entriesPerSegment = 64
)

// snapshotHead stands before the entries.
type snapshotHead struct {
	Through int64 `json:"through"`
}

// edit is a line of a segment.
type edit struct {
	Set    *entry        `json:"set,omitempty"`
	Remove *netip.Prefix `json:"remove,omitempty"`
}

func (j *journal) entriesKey() string { return j.name + ".json" }

func (j *journal) segmentKey(number int64) string { return fmt.Sprintf("%s/%08d.json", j.name, number) }

// load returns the entries that the storage has.
func (j *journal) load(storage certmagic.Storage) (map[netip.Prefix]entry, error) {
	entries := make(map[netip.Prefix]entry)
	value, err := loadKey(storage, j.entriesKey())
	if err == nil {
		j.through, err = decodeEntries(value, entries)
		err = damaged(j.entriesKey(), err)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	numbers, err := j.segments(storage)
	if err != nil {
		return nil, err
	}
	j.at, j.number, j.oldest = storage, j.through+1, j.through+1
	for i, number := range numbers {
		if number < j.through { // a crash came before it was deleted
			_ = deleteKey(storage, j.segmentKey(number))
			continue
		}
		j.oldest = min(j.oldest, number)
		if number > j.through && number != j.number {
			return nil, damaged(j.segmentKey(j.number), errors.New("it is missing"))
		}
		if err := j.replay(storage, number, i == len(numbers)-1, entries); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// replay reads a segment and makes its edits.
func (j *journal) replay(storage certmagic.Storage, number int64, isLast bool, entries map[netip.Prefix]entry) error {
	key := j.segmentKey(number)
	value, err := loadKey(storage, key)
	if err != nil {
		return err
	}
	whole := value[:bytes.LastIndexByte(value, '\n')+1]
	if isLast && len(whole) > 0 && len(whole) < len(value) {
		logqueue.Default("acl").Warn("an edit of a list was under way when the process ended, and is left out", zap.String("key", key))
		if err := storeKey(storage, key, whole); err != nil {
			return err
		}
		value = whole
	}
	if number > j.through {
		if err := damaged(key, decodeEdits(value, entries)); err != nil {
			return err
		}
		j.number = number + 1
	}
	j.lastKey, j.lastPart = key, value
	return nil
}

// segments returns the numbers of the segments in the storage, in order.
func (j *journal) segments(storage certmagic.Storage) ([]int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	keys, err := storage.List(ctx, j.name, false)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var numbers []int64
	for _, key := range keys {
		name, isSegment := strings.CutSuffix(path.Base(key), ".json")
		if number, err := strconv.ParseInt(name, 10, 64); isSegment && err == nil {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// isIn reports whether the storage has the segment that was written last. Each config makes a new instance of its storage,
// which may lead to the same place or to another one.
func (j *journal) isIn(storage certmagic.Storage) bool {
	if reflect.TypeOf(storage) == reflect.TypeOf(j.at) && reflect.TypeOf(storage).Comparable() && storage == j.at {
		return true
	}
	if j.lastKey == "" {
		return false
	}
	value, err := loadKey(storage, j.lastKey)
	if err != nil || !bytes.Equal(value, j.lastPart) {
		return false
	}
	j.at = storage
	return true
}

// append stores edits, each in JSON.
func (j *journal) append(edits [][]byte) error {
	key := j.segmentKey(j.number)
	lines := append(bytes.Join(edits, []byte{'\n'}), '\n')
	value := append(j.open, lines...)
	if len(j.open) == 0 || !appendTo(j.at, key, len(j.open), lines) {
		if err := storeKey(j.at, key, value); err != nil {
			return err
		}
	}
	j.open, j.lastKey, j.lastPart = value, key, value
	if len(value) >= segmentLen {
		j.seal()
	}
	return nil
}

// seal ends the segment that is written, and returns the number of the last one.
func (j *journal) seal() int64 {
	if len(j.open) > 0 {
		j.open = nil
		j.number++
	}
	return j.number - 1
}

// isLong tells whether the entries should be written anew.
func (j *journal) isLong(entries int) bool {
	return j.number-j.through > int64(max(fewSegments, entries/entriesPerSegment))
}

// moveTo makes another storage the one that is written to. If it has segments of this list, they get obsolete when all
// entries are stored there next.
func (j *journal) moveTo(storage certmagic.Storage) error {
	numbers, err := j.segments(storage)
	if err != nil {
		return err
	}
	j.seal()
	j.oldest = j.number
	if len(numbers) > 0 {
		j.oldest = numbers[0]
		j.number = max(j.number, numbers[len(numbers)-1]+1)
	}
	j.at, j.lastKey, j.lastPart = storage, "", nil
	return nil
}

// storeEntries stores all entries, which contain what the segments up to this one have.
func (j *journal) storeEntries(storage certmagic.Storage, through int64, entries []entry) error {
	slices.SortFunc(entries, func(a, b entry) int { return comparePrefixes(a.Prefix, b.Prefix) })
	head, err := json.Marshal(snapshotHead{through})
	if err != nil {
		return err
	}
	body, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	return storeKey(storage, j.entriesKey(), slices.Concat(head, []byte{'\n'}, body))
}

// clear deletes the segments from one number up to another, without this, and returns the first one that is left. The
// last segment stays in any case: by it the storage is known again.
func (j *journal) clear(storage certmagic.Storage, from, to int64) int64 {
	for ; from < to; from++ {
		if err := deleteKey(storage, j.segmentKey(from)); err != nil {
			break // it is tried again when the entries are written next
		}
	}
	return from
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func loadKey(storage certmagic.Storage, key string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	return storage.Load(ctx, key)
}

func storeKey(storage certmagic.Storage, key string, value []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	return storage.Store(ctx, key, value)
}

func deleteKey(storage certmagic.Storage, key string) error {
	ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
	defer cancel()
	return storage.Delete(ctx, key)
}

func damaged(key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s in the storage is damaged: %w", key, err)
}

// decodeEntries reads what storeEntries has written, or the entries alone.
func decodeEntries(value []byte, entries map[netip.Prefix]entry) (through int64, err error) {
	decoder := json.NewDecoder(bytes.NewReader(value))
	if bytes.HasPrefix(value, []byte{'{'}) {
		var head snapshotHead
		if err := decoder.Decode(&head); err != nil {
			return 0, cutShort(err)
		}
		through = head.Through
	}
	return through, decodeEach(decoder, "entry", func(e *entry) error {
		if err := checkStored(e.Prefix); err != nil {
			return err
		}
		entries[e.Prefix] = *e
		return nil
	})
}

// decodeEdits reads a segment and makes its edits.
func decodeEdits(value []byte, entries map[netip.Prefix]entry) error {
	if len(value) == 0 {
		return errTooEarly
	}
	n := 0
	for line := range bytes.Lines(value) {
		n++
		if err := decodeEdit(line, entries); err != nil {
			return fmt.Errorf("edit %d: %w", n, err)
		}
	}
	return nil
}

func decodeEdit(line []byte, entries map[netip.Prefix]entry) error {
	if !bytes.HasSuffix(line, []byte{'\n'}) {
		return errTooEarly
	}
	var e edit
	if err := json.Unmarshal(line, &e); err != nil {
		return err
	}
	switch {
	case e.Set != nil && e.Remove == nil:
		if err := checkStored(e.Set.Prefix); err != nil {
			return err
		}
		entries[e.Set.Prefix] = *e.Set
	case e.Set == nil && e.Remove != nil:
		if err := checkStored(*e.Remove); err != nil {
			return err
		}
		delete(entries, *e.Remove)
	default:
		return errors.New(`expected either "set" or "remove"`)
	}
	return nil
}

// decodeEach reads a JSON array value by value, so that an error says at which one it is.
func decodeEach[T any](decoder *json.Decoder, noun string, each func(*T) error) error {
	if token, err := decoder.Token(); err != nil {
		return cutShort(err)
	} else if token != json.Delim('[') {
		return fmt.Errorf("%q: expected a list", fmt.Sprint(token))
	}
	n := 1
	for ; decoder.More(); n++ {
		var value *T
		err := cutShort(decoder.Decode(&value))
		if err == nil && value == nil {
			err = errors.New(`"null": expected an object`)
		}
		if err == nil {
			err = each(value)
		}
		if err != nil {
			return fmt.Errorf("%s %d: %w", noun, n, err)
		}
	}
	if _, err := decoder.Token(); err != nil {
		return fmt.Errorf("%s %d: %w", noun, n, cutShort(err))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("expected nothing behind the list of %d", n-1)
	}
	return nil
}

var errTooEarly = errors.New("it ends too early")

func cutShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errTooEarly
	}
	return err
}

// checkStored refuses a prefix that no list can have: an edit would not find it again.
func checkStored(prefix netip.Prefix) error {
	if !prefix.IsValid() {
		return errors.New(`prefix: "": expected an address or a prefix`)
	}
	canonical, err := ipset.ParsePrefix(prefix.String())
	if err == nil && canonical != prefix {
		err = fmt.Errorf("%q: expected %s", prefix, canonical)
	}
	if err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	return nil
}
