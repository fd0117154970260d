package filewatch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

const (
	// Settled is how long a file must have stayed the same before it is read. It is longer than the steps in which file
	// systems count time, so that a change while it is read shows.
	Settled = 50 * time.Millisecond
	// settledUnknown replaces it where the system does not tell whether somebody is writing the file.
	settledUnknown = 250 * time.Millisecond
	// SettledOpen is for a file that somebody has open for writing, and leaves alone for so long.
	SettledOpen = 5 * time.Second
)

// Reader reads a file as a whole, whenever it has changed and its writer is done.
type Reader struct {
	// Path leads to it.
	Path string
	// Most is how many bytes it may have.
	Most int64

	have  os.FileInfo // the file that was read
	seen  os.FileInfo // the file as it was last
	since time.Time   // when it was first seen like that
}

// Look returns the content if the file has changed since it was read last, and when to look again: soon, if somebody is writing it. ok is false
// where there is nothing new.
func (r *Reader) Look() (data []byte, ok bool, again time.Duration, err error) {
	opened, info, err := Open(r.Path)
	if err != nil {
		r.have, r.seen = nil, nil
		return nil, false, Poll, err
	}
	defer opened.Close()
	if Same(info, r.have) {
		return nil, false, Poll, nil
	}
	if !Same(info, r.seen) {
		r.seen, r.since = info, time.Now()
	}
	if wait := Patience(opened) - time.Since(r.since); wait > 0 {
		return nil, false, min(wait, Settled), nil
	}
	if info.Size() > r.Most {
		r.have = info
		return nil, false, Poll, fmt.Errorf("it has %d bytes, expected at most %d MiB", info.Size(), r.Most>>20)
	}
	data, err = io.ReadAll(io.LimitReader(opened, info.Size()+1))
	if err != nil {
		return nil, false, Poll, err
	}
	if after, err := opened.Stat(); err != nil || !Same(info, after) || int64(len(data)) != info.Size() {
		return nil, false, Settled, nil // it changes while it is read
	}
	r.have = info
	return data, true, Poll, nil
}

// Patience is how long the file must stay the same before it is taken for complete.
func Patience(opened *os.File) time.Duration {
	switch open, known := OpenForWriting(opened); {
	case !known:
		return settledUnknown
	case open:
		return SettledOpen
	default:
		return Settled
	}
}

// Open opens a file that has an end. It does not wait: the path may lead to a pipe by the time at which it is opened, and nobody may ever write
// into that.
func Open(path string) (*os.File, os.FileInfo, error) {
	info, err := os.Stat(path) // opening a device may do something
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errNotRegular(path)
	}
	opened, err := os.OpenFile(path, os.O_RDONLY|withoutWaiting, 0)
	if err != nil {
		return nil, nil, err
	}
	if info, err = opened.Stat(); err == nil && !info.Mode().IsRegular() {
		err = errNotRegular(path)
	}
	if err != nil {
		_ = opened.Close()
		return nil, nil, err
	}
	return opened, info, nil
}

func errNotRegular(path string) error {
	return &os.PathError{Op: "open", Path: path, Err: errors.New("expected a regular file")}
}

// Same tells whether two looks at a path have found the same file with the same content, as far as the system tells. Who
// writes a file may set its time back, as programs that copy and unpack do, but not the time at which that was done.
func Same(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) &&
		changeTime(a) == changeTime(b)
}
