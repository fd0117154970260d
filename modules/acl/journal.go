package acl

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
)

// journal keeps a dynamic list in Caddy's storage: all entries at some time, and segments with the edits since then.
//
//	portgate/lists/bans.json            {"through": 17} and the entries, after the edits of segment 17
//	portgate/lists/bans/00000018.json   an edit in each line:
//	                                    {"set": {"prefix": ...}}, {"remove": "192.0.2.7/32"} or {"all": [{"prefix": ...}]}
//
// Each edit is added to the last segment until that is full, or ends with {"end": true}. So an edit costs the same in a list
// of any size. When there are many segments, all entries are written anew, and the segments that they contain are deleted.
//
// Several processes may have one storage. All add to the same segments, in turn, and read first what the others have added: so all
// have the same edits in the same order. A journal does not lock, see [dynamic].
//
// The storage replaces a value as a whole or not at all, and a segment begins after the one before is stored. In files,
// edits are appended: a crash may leave a part of a line at the end of the last segment, of an edit that was not
// acknowledged. So a crash loses no edit that was. If it comes before segments are deleted, "through" says which ones not
// to read.
//
// Versions without a journal stored the entries alone, without {"through": ...}.
type journal struct {
	name string // "portgate/lists/bans"

	at      certmagic.Storage
	through int64  // the entries contain the segments up to this one
	oldest  int64  // lowest number of the segments that are in the storage
	number  int64  // of the segment that the next edit goes to
	open    []byte // what is known of that segment; empty if it has no edit yet
	lines   int    // in open
	last    known  // what the storage is known again by
	broken  bool   // what is stored is damaged: all entries have to be stored anew
}

// known is a value that the storage has. It is not changed any more, but for edits that follow.
type known struct {
	key  string
	part []byte            // how it begins
	sum  [sha256.Size]byte // of the entries, which are too long to be kept
}

func knownSegment(key string, value []byte) known {
	if len(value) > 2*segmentLen {
		value = slices.Clone(value[:segmentLen])
	}
	return known{key: key, part: value}
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
	All    *[]entry      `json:"all,omitempty"` // replaces everything before
	End    bool          `json:"end,omitempty"` // the next edit is in the next segment
}

var endLine = []byte(`{"end":true}` + "\n")

func (j *journal) entriesKey() string { return j.name + ".json" }

func (j *journal) segmentKey(number int64) string { return fmt.Sprintf("%s/%08d.json", j.name, number) }

// segments returns the numbers of the segments in the storage, in order.
func (j *journal) segments(storage certmagic.Storage) ([]int64, error) {
	keys, err := listKeys(storage, j.name)
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

// isIn reports whether this storage is the one that the journal is in. Each config makes a new instance of its storage, which
// may lead to the same place or to another one.
func (j *journal) isIn(storage certmagic.Storage) bool {
	if reflect.TypeOf(storage) == reflect.TypeOf(j.at) && reflect.TypeOf(storage).Comparable() && storage == j.at {
		return true
	}
	files, ok := storage.(*certmagic.FileStorage)
	if before, isFiles := j.at.(*certmagic.FileStorage); ok && isFiles {
		return files.Path == before.Path
	}
	if !j.hasLast(storage) {
		return false
	}
	j.at = storage
	return true
}

func (j *journal) hasLast(storage certmagic.Storage) bool {
	if j.last.key == "" { // nothing is stored there
		numbers, err := j.segments(storage)
		if err != nil || len(numbers) > 0 {
			return false
		}
		_, err = loadKey(storage, j.entriesKey())
		return errors.Is(err, fs.ErrNotExist)
	}
	value, err := loadKey(storage, j.last.key)
	if err != nil {
		return false
	}
	if j.last.part == nil {
		return sha256.Sum256(value) == j.last.sum
	}
	return bytes.HasPrefix(value, j.last.part)
}

// errBehind is the error of a journal whose segment the storage has not, or has with other edits: other processes have gone on and
// stored all entries anew, or what was stored is gone.
var errBehind = errors.New("the storage has another list")

// catchUp returns the edits that others have added. With errBehind all has to be read anew. The edits have to be locked.
func (j *journal) catchUp() (edits []edit, err error) {
	for {
		number, key := j.number, j.segmentKey(j.number)
		if len(j.open) > 0 && fileSize(j.at, key) == int64(len(j.open)) {
			return edits, nil
		}
		value, err := loadKey(j.at, key)
		switch {
		case errors.Is(err, fs.ErrNotExist) && len(j.open) == 0 && j.hasLast(j.at):
			return edits, nil // segments are deleted in order, so that it was not there
		case errors.Is(err, fs.ErrNotExist):
			return edits, errBehind
		case err != nil:
			return edits, err
		}
		complete, err := j.complete(key, value)
		if err != nil {
			return edits, err
		}
		if !bytes.HasPrefix(complete, j.open) {
			return edits, errBehind
		}
		added, err := decodeEdits(complete[len(j.open):], j.lines)
		edits = append(edits, added...)
		if err != nil {
			return edits, &damage{key, value, err}
		}
		if len(added) > 0 {
			j.advance(key, complete, len(added))
		}
		if j.number == number {
			return edits, nil
		}
	}
}

// complete returns the last segment without a part of a line at its end, which a process has left that was killed. It takes it from the
// storage, too.
func (j *journal) complete(key string, value []byte) ([]byte, error) {
	complete := value[:bytes.LastIndexByte(value, '\n')+1]
	if len(complete) == 0 || len(complete) == len(value) {
		return complete, nil
	}
	logqueue.Default("acl").Warn("an edit of a list was under way when the process ended, and is left out", zap.String("key", key))
	return complete, storeKey(j.at, key, complete)
}

// lastNumber returns the number of the last segment that has an edit.
func (j *journal) lastNumber() int64 {
	if len(j.open) == 0 {
		return j.number - 1
	}
	return j.number
}

// advance makes this the content of the segment, which others have added lines to, or this process.
func (j *journal) advance(key string, value []byte, lines int) {
	j.open, j.lines, j.last = value, j.lines+lines, knownSegment(key, value)
	if len(value) >= segmentLen || bytes.HasSuffix(value, endLine) {
		j.open, j.lines = nil, 0
		j.number++
	}
}

// append stores edits, each in JSON. catchUp has to come first.
func (j *journal) append(edits [][]byte) error {
	key := j.segmentKey(j.number)
	lines := append(bytes.Join(edits, []byte{'\n'}), '\n')
	value := slices.Concat(j.open, lines)
	if len(j.open) == 0 || !appendTo(j.at, key, len(j.open), lines) {
		if err := storeKey(j.at, key, value); err != nil {
			return err
		}
	}
	j.advance(key, value, len(edits))
	return nil
}

// appendAll stores an edit that replaces all entries, in a segment of its own.
func (j *journal) appendAll(entries []entry) error {
	if err := j.seal(); err != nil {
		return err
	}
	line, err := json.Marshal(edit{All: &entries})
	if err != nil {
		return err
	}
	return j.append([][]byte{line, bytes.TrimSuffix(endLine, []byte{'\n'})})
}

// seal ends the segment that is written. catchUp has to come first.
func (j *journal) seal() error {
	if len(j.open) == 0 {
		return nil
	}
	return j.append([][]byte{bytes.TrimSuffix(endLine, []byte{'\n'})})
}

// isLong tells whether the entries should be written anew.
func (j *journal) isLong(entries int) bool {
	return j.number-j.through > int64(max(fewSegments, entries/entriesPerSegment))
}

// restart makes the journal go on in this storage behind whatever it has, which storeEntries makes obsolete.
func (j *journal) restart(storage certmagic.Storage) error {
	numbers, err := j.segments(storage)
	if err != nil {
		return err
	}
	j.number = j.lastNumber() + 1
	j.at, j.open, j.lines, j.oldest = storage, nil, 0, j.number
	if len(numbers) > 0 {
		j.oldest = min(numbers[0], j.number)
		j.number = max(j.number, numbers[len(numbers)-1]+1)
	}
	return nil
}

// storeEntries stores all entries, which contain what the segments up to this one have.
func (j *journal) storeEntries(storage certmagic.Storage, through int64, entries []entry) (known, error) {
	slices.SortFunc(entries, func(a, b entry) int { return comparePrefixes(a.Prefix, b.Prefix) })
	head, err := json.Marshal(snapshotHead{through})
	if err != nil {
		return known{}, err
	}
	body, err := json.Marshal(entries)
	if err != nil {
		return known{}, err
	}
	value := slices.Concat(head, []byte{'\n'}, body)
	return known{key: j.entriesKey(), sum: sha256.Sum256(value)}, storeKey(storage, j.entriesKey(), value)
}

// storedThrough returns which segments the entries in the storage contain.
func (j *journal) storedThrough(storage certmagic.Storage) (int64, error) {
	value, err := loadKey(storage, j.entriesKey())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	var head snapshotHead
	if err == nil && bytes.HasPrefix(value, []byte{'{'}) {
		err = json.NewDecoder(bytes.NewReader(value)).Decode(&head)
	}
	return head.Through, err
}

// clear deletes the segments from one number up to another, without this, and returns the first one that is left. The
// last segment stays in any case: by it other processes find out where to go on.
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
