package acl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
	"github.com/portgate/caddy-portgate/modules/internal/degraded"
	"github.com/portgate/caddy-portgate/modules/internal/filewatch"
)

const (
	settled     = filewatch.Settled
	settledOpen = filewatch.SettledOpen
	filePoll    = filewatch.Poll
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
	watcher *filewatch.Watcher
	have    os.FileInfo // the file whose content is in use, or was refused
	seen    os.FileInfo // the file as it was last
	since   time.Time   // when it was first seen like that
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
	if f.watcher, err = filewatch.New(path); err != nil {
		f.unwatched.Begin(f.log(), "can't watch, the file is looked at every few seconds instead", zap.Duration("interval", filePoll), zap.Error(err))
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	go func() {
		defer close(f.done)
		f.watcher.Run(ctx, f.look, func(err error) { f.log().Debug("watching a file", zap.Error(err)) })
	}()
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

// look reads the file if it has changed and its writer is done. It returns when to look again.
func (f *file) look() time.Duration {
	opened, info, err := filewatch.Open(f.path)
	if err != nil {
		f.have, f.seen = nil, nil
		f.keep(err)
		return filePoll
	}
	defer opened.Close()
	if filewatch.Same(info, f.have) {
		return filePoll
	}
	if !filewatch.Same(info, f.seen) {
		f.seen, f.since = info, time.Now()
	}
	if wait := filewatch.Patience(opened) - time.Since(f.since); wait > 0 {
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

var errChanging = errors.New("it changes while it is read")

// readAttempts bounds how often a file is looked at that is being written: in all for settledOpen.
const readAttempts = int(settledOpen / settled)

// read reads the file for the first time, while a config that is loaded waits. If somebody writes the file, it waits until
// that is done, and in the end takes the lines that are complete.
func (f *file) read() ([]byte, os.FileInfo, error) {
	var seen os.FileInfo
	for attempt := range readAttempts {
		opened, info, err := filewatch.Open(f.path)
		if err != nil {
			return nil, nil, err
		}
		last, changed := attempt == readAttempts-1, seen != nil && !filewatch.Same(info, seen)
		if seen == nil {
			seen = info
		}
		var data []byte
		open, _ := filewatch.OpenForWriting(opened)
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
	if open, _ := filewatch.OpenForWriting(opened); open && time.Since(f.since) < settledOpen ||
		!filewatch.Same(info, after) || int64(data.Len()) != info.Size() {
		return nil, errChanging
	}
	return data.Bytes(), nil
}
