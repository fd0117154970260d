package acl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
)

const (
	// settled is how long a file must have stayed the same before it is read. It is longer than the steps in which file
	// systems count time, so that a change while it is read shows.
	settled = 50 * time.Millisecond
	// settledUnknown replaces it where the system does not tell whether somebody is writing the file.
	settledUnknown = 250 * time.Millisecond
	// settledOpen is for a file that somebody has open for writing, and leaves alone for so long.
	settledOpen = 5 * time.Second
	// filePoll is how often a file is looked at without being told to: file systems on a network tell nothing of what
	// others do, and a directory that is replaced as a whole is no longer the one that is watched.
	filePoll = 2 * time.Second
	// eventPause is the time from an event to a look at the file.
	eventPause = 10 * time.Millisecond
)

// file is a source that is read from a file again whenever that changes.
type file struct {
	list
	path string
	format

	stop context.CancelFunc
	done chan struct{}

	unwatched *degraded.Part

	// These belong to the goroutine.
	watcher *fsnotify.Watcher // nil where the system has no more of them
	watched []string          // directories
	have    os.FileInfo       // the file whose content is in use, or was refused
	seen    os.FileInfo       // the file as it was last
	since   time.Time         // when it was first seen like that
	growth  growth
}

// format is what a file has in it.
type format struct {
	most  int64 // the size that it may have
	parse parseFunc
	grows bool // what is appended leaves what is before as it is
}

// listFormat is that of a list.
func listFormat(hostBits ipset.HostBits) format {
	parse := func(data []byte) (*ipset.Set, ipset.Report, error) {
		return ipset.Read(bytes.NewReader(data), hostBits)
	}
	return format{most: ipset.MaxBytes, parse: parse, grows: true}
}

// databaseFormat is that of a database of which parse takes a part.
func databaseFormat(parse parseFunc) format { return format{most: maxDatabase, parse: parse} }

// openFile reads a list for the first time, where every error is fatal, and then follows its changes.
func openFile(name, path string, as format) (*file, error) {
	f, err := loadFile(name, path, as)
	if err != nil {
		return nil, err
	}
	if f.watcher, err = fsnotify.NewWatcher(); err != nil {
		f.unwatched.Begin(f.log(), "can't watch, the file is looked at every few seconds instead", zap.Duration("interval", filePoll), zap.Error(err))
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	go f.follow(ctx)
	return f, nil
}

// loadFile is openFile without following.
func loadFile(name, path string, as format) (*file, error) {
	f := &file{path: path, format: as, done: make(chan struct{}), unwatched: degraded.New("list_watch")}
	f.init(name)
	data, info, err := f.read()
	if err != nil {
		return nil, err
	}
	set, report, err := f.parse(data)
	if err != nil {
		return nil, err
	}
	f.seen, f.since = info, time.Now()
	if int64(len(data)) == info.Size() {
		f.have = info
	}
	f.growth.begin(data)
	f.loaded(set, report)
	f.opened()
	return f, nil
}

func (f *file) content() *list { return &f.list }

// Destruct ends the watching.
func (f *file) Destruct() error {
	f.stop()
	<-f.done
	f.unwatched.Close()
	f.forget()
	return nil
}

func (f *file) follow(ctx context.Context) {
	defer close(f.done)
	var events <-chan fsnotify.Event
	var failures <-chan error
	if f.watcher != nil {
		defer f.watcher.Close()
		events, failures = f.watcher.Events, f.watcher.Errors
	}
	f.watch()
	soon := true
	look := time.NewTimer(settled) // it may have changed since it was read first
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			wait := f.look()
			soon = wait <= settled
			look.Reset(wait)
			continue
		case _, ok := <-events:
			if !ok {
				events, failures = nil, nil // from now on only the poll is left
			}
		case err := <-failures: // too many events at once: some are lost, and this stands for them
			f.log().Debug("watching a file", zap.Error(err))
		}
		// Other files of the directory may change all the time: the look that is due soon is for all events until then.
		if !soon {
			soon = true
			look.Reset(eventPause)
		}
	}
}

// watch sees to it that all directories are watched through which the path leads.
func (f *file) watch() {
	if f.watcher == nil {
		return
	}
	now := directories(f.path)
	for _, dir := range f.watched {
		if !slices.Contains(now, dir) {
			_ = f.watcher.Remove(dir) // it may have gone
		}
	}
	for _, dir := range now {
		_ = f.watcher.Add(dir) // again, because it may be another one of that name; it is also looked at every few seconds
	}
	f.watched = now
}

// maxLinks is how many symbolic links a path may have, as in Linux.
const maxLinks = 40

// directories returns those in which a change of an entry can change what the path leads to: that of the file, and
// those of the symbolic links on the way.
func directories(path string) []string {
	var dirs []string
	path, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	at, rest := string(filepath.Separator), path[len(filepath.VolumeName(path)):]
	for links := 0; links < maxLinks; {
		rest = strings.TrimLeft(rest, string(filepath.Separator))
		name, further, more := strings.Cut(rest, string(filepath.Separator))
		target, err := os.Readlink(filepath.Join(at, name))
		switch {
		case err == nil:
			links++
			dirs = append(dirs, at)
			rest = filepath.Join(target, further)
			if filepath.IsAbs(target) {
				at = string(filepath.Separator)
			} else {
				rest = filepath.Join(at, rest)
				at = string(filepath.Separator)
			}
		case !more || further == "":
			return slices.Compact(append(dirs, at))
		default:
			at, rest = filepath.Join(at, name), further
		}
	}
	return dirs
}

// look reads the file if it has changed and its writer is done. It returns when to look again.
func (f *file) look() time.Duration {
	f.watch()
	opened, info, err := openRegular(f.path)
	if err != nil {
		f.have, f.seen = nil, nil
		f.keep(err)
		return filePoll
	}
	defer opened.Close()
	if same(info, f.have) {
		return filePoll
	}
	if !same(info, f.seen) {
		f.seen, f.since = info, time.Now()
	}
	if wait := patience(opened) - time.Since(f.since); wait > 0 {
		f.grow(opened, info)
		return min(wait, settled)
	}
	return f.reload(opened, info)
}

// reload takes over what the file has now.
func (f *file) reload(opened *os.File, info os.FileInfo) time.Duration {
	data, err := f.readAll(opened, info)
	if errors.Is(err, errChanging) {
		return settled
	}
	if err != nil {
		f.keep(err)
		return filePoll
	}
	f.have = info // refused or not, it is not read again until it changes
	if f.growth.is(data) {
		f.settle()
		return filePoll
	}
	set, report, err := f.parse(data)
	if err != nil {
		f.keep(err)
		return filePoll
	}
	f.growth.begin(data)
	f.loaded(set, report)
	return filePoll
}

// patience is how long the file must stay the same before it is taken for complete.
func patience(opened *os.File) time.Duration {
	switch open, known := openForWriting(opened); {
	case !known:
		return settledUnknown
	case open:
		return settledOpen
	default:
		return settled
	}
}

var errChanging = errors.New("it changes while it is read")

// readAttempts bounds how often a file is looked at that is being written: in all for settledOpen.
const readAttempts = int(settledOpen / settled)

// read reads the file for the first time, while a config that is loaded waits. If somebody writes the file, it waits until
// that is done, and in the end takes the lines that are complete.
func (f *file) read() ([]byte, os.FileInfo, error) {
	var seen os.FileInfo
	for attempt := range readAttempts {
		opened, info, err := openRegular(f.path)
		if err != nil {
			return nil, nil, err
		}
		last, changed := attempt == readAttempts-1, seen != nil && !same(info, seen)
		if seen == nil {
			seen = info
		}
		var data []byte
		open, _ := openForWriting(opened)
		switch {
		case open && !last:
			err = errChanging
		case last && changed && f.grows && info.Size() <= f.most:
			data, err = readLines(opened, info.Size())
		default:
			data, err = f.readAll(opened, info)
		}
		_ = opened.Close()
		if !errors.Is(err, errChanging) {
			return data, info, err
		}
		time.Sleep(settled)
	}
	return nil, nil, errChanging
}

// readAll reads a file whole, or not at all.
func (f *file) readAll(opened *os.File, info os.FileInfo) ([]byte, error) {
	if info.Size() > f.most {
		return nil, fmt.Errorf("it has %d bytes, expected at most %d MiB", info.Size(), f.most>>20)
	}
	data := bytes.NewBuffer(make([]byte, 0, info.Size()+bytes.MinRead))
	if _, err := data.ReadFrom(io.LimitReader(opened, info.Size()+1)); err != nil {
		return nil, err
	}
	after, err := opened.Stat()
	if err != nil {
		return nil, err
	}
	if open, _ := openForWriting(opened); open && time.Since(f.since) < settledOpen ||
		!same(info, after) || int64(data.Len()) != info.Size() {
		return nil, errChanging
	}
	return data.Bytes(), nil
}

// openRegular opens a file that has an end.
func openRegular(path string) (*os.File, os.FileInfo, error) {
	info, err := os.Stat(path) // before it is opened: opening a pipe waits for somebody to write
	if err == nil && !info.Mode().IsRegular() {
		err = &os.PathError{Op: "open", Path: path, Err: errors.New("expected a regular file")}
	}
	if err != nil {
		return nil, nil, err
	}
	opened, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	if info, err = opened.Stat(); err != nil {
		_ = opened.Close()
		return nil, nil, err
	}
	return opened, info, nil
}

// same tells whether two looks at a path have found the same file with the same content, as far as the system tells. Who
// writes a file may set its time back, as programs that copy and unpack do, but not the time at which that was done.
func same(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) &&
		changeTime(a) == changeTime(b)
}
