// Package filewatch follows a file that others change: written again, renamed over, or behind symbolic links of which one is swapped.
package filewatch

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// Poll is how often a file is looked at without being told to: file systems on a network tell nothing of what
	// others do, and a directory that is replaced as a whole is no longer the one that is watched.
	Poll = 2 * time.Second
	// eventPause is the time from an event to a look at the file.
	eventPause = 10 * time.Millisecond
)

// Watcher has a file looked at when it may have changed.
type Watcher struct {
	path    string
	system  *fsnotify.Watcher // nil where the system has no more of them
	watched []string          // directories
}

// New returns a watcher of a file. With an error, the system can't tell of changes: the watcher then has the file looked at every few seconds.
func New(path string) (*Watcher, error) {
	system, err := fsnotify.NewWatcher()
	if err != nil {
		return &Watcher{path: path}, err
	}
	return &Watcher{path: path, system: system}, nil
}

// Run calls look soon, and then whenever the file may have changed, until ctx ends. look returns when it is to be called again at the latest:
// [Poll], or earlier. missed is called where the system could not tell of everything, which look finds out.
func (w *Watcher) Run(ctx context.Context, look func() time.Duration, missed func(error)) {
	var events <-chan fsnotify.Event
	var failures <-chan error
	if w.system != nil {
		defer w.system.Close()
		events, failures = w.system.Events, w.system.Errors
	}
	w.watch()
	soon := true
	timer := time.NewTimer(Settled) // it may have changed since it was read first
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			w.watch()
			wait := look()
			soon = wait <= Settled
			timer.Reset(wait)
			continue
		case _, ok := <-events:
			if !ok {
				events, failures = nil, nil // from now on only the poll is left
			}
		case err := <-failures: // too many events at once: some are lost, and this stands for them
			missed(err)
		}
		// Other files of the directory may change all the time: the look that is due soon is for all events until then.
		if !soon {
			soon = true
			timer.Reset(eventPause)
		}
	}
}

// watch sees to it that all directories are watched through which the path leads.
func (w *Watcher) watch() {
	if w.system == nil {
		return
	}
	now := Directories(w.path)
	for _, dir := range w.watched {
		if !slices.Contains(now, dir) {
			_ = w.system.Remove(dir) // it may have gone
		}
	}
	for _, dir := range now {
		_ = w.system.Add(dir) // again, because it may be another one of that name; it is also looked at every few seconds
	}
	w.watched = now
}

// maxLinks is how many symbolic links a path may have, as in Linux.
const maxLinks = 40

// Directories returns those in which a change of an entry can change what the path leads to: that of the file, and
// those of the symbolic links on the way.
func Directories(path string) []string {
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
