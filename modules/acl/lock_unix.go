//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package acl

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockPause is the time between two attempts to get the lock of a file.
const lockPause = time.Millisecond

// lockFile waits until no other process has locked the file, and locks it. The system unlocks the files of a process that is killed. The error
// is [errors.ErrUnsupported] where the file system has no locks.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	fd, err := openLock(path)
	if errors.Is(err, unix.ENOENT) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, err
		}
		fd, err = openLock(path)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { unix.Close(fd) }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			unix.Close(fd)
			if errors.Is(err, unix.ENOLCK) { // of a network file system
				err = errors.ErrUnsupported
			}
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		}
		select {
		case <-ctx.Done():
			unix.Close(fd)
			return nil, ctx.Err()
		case <-time.After(lockPause):
		}
	}
}

func openLock(path string) (fd int, err error) {
	for {
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// syncFolder has the system write the names in a folder to the disk. Some file systems do that by themselves, and refuse.
func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}
