package acl

import (
	"context"
	"fmt"
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
// the disk for each edit, are looked at once a second by whoever waits, and stay for 10 seconds after a process was killed.
func lockList(storage certmagic.Storage, name, what string, timeout time.Duration) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	files, ok := storage.(*certmagic.FileStorage)
	if ok && canLockFiles {
		unlock, err = lockFile(ctx, files.Filename(name+"."+what))
	} else {
		key := "portgate_list_" + path.Base(name) + "_" + strings.ReplaceAll(what, ".", "_")
		err = storage.Lock(ctx, key)
		unlock = func() {
			ctx, cancel := context.WithTimeout(context.Background(), storageTimeout)
			defer cancel()
			_ = storage.Unlock(ctx, key) // the lock gets stale then
		}
	}
	if err != nil {
		return nil, fmt.Errorf("another process may be writing it: %w", err)
	}
	return unlock, nil
}
