package acl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
)

// What is locked of a list in the storage, against other processes with the same storage, and lists of the same name here that close.
const (
	// editsLock is held for the time of one access or a few: while edits are read and appended.
	editsLock = "lock"
	// wholeLock is held while all entries are stored. Whoever takes both takes it first, after the list's mutex saving.
	wholeLock = "whole.lock"
)

const (
	// lockTimeout is the longest that an edit waits for other processes.
	lockTimeout = 10 * time.Second
	// tryTimeout is how long the lock is waited for by those who can do without.
	tryTimeout = time.Second
)

// lockList waits for a lock, and takes it.
//
// In files these are locks of the system. Those of Caddy's file storage are files of their own, which have to be written to
// the disk for each edit, are looked at once a second by whoever waits, and stay for 10 seconds after a process was killed. They are taken where the system or
// the file system has no others.
func lockList(storage certmagic.Storage, name, what string, timeout time.Duration) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if files, ok := storage.(*certmagic.FileStorage); ok {
		unlock, err = lockFile(ctx, files.Filename(name+"."+what))
		if !errors.Is(err, errors.ErrUnsupported) {
			return unlock, notLocked(err)
		}
	}
	key := "portgate_list_" + path.Base(name) + "_" + strings.ReplaceAll(what, ".", "_")
	if err := storage.Lock(ctx, key); err != nil {
		return nil, notLocked(err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
		defer cancel()
		_ = storage.Unlock(ctx, key) // the lock gets stale then
	}, nil
}

// lockToRead is lockList for whoever only reads edits. It makes no files: `caddy validate` may run as another user than those who edit the
// list, who could not open them. Where there is no file to be locked, nobody edits the list.
func lockToRead(storage certmagic.Storage, name string) (unlock func(), err error) {
	if files, ok := storage.(*certmagic.FileStorage); ok {
		if _, err := os.Stat(files.Filename(name + "." + editsLock)); errors.Is(err, fs.ErrNotExist) {
			return func() {}, nil
		}
	}
	return lockList(storage, name, editsLock, lockTimeout)
}

func notLocked(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("it could not be locked against other processes: %w", err)
}
