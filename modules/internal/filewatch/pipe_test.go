//go:build unix

package filewatch

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A path may lead to a pipe when it is opened that led to a file a moment before. Nobody writes into the pipe: a look that waits for that never
// ends, and neither does whoever waits for the look.
func TestPipeInPlaceOfAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, file, pipe := filepath.Join(dir, "list"), filepath.Join(dir, "file"), filepath.Join(dir, "pipe")
	write(t, file, "1")
	must(t, syscall.Mkfifo(pipe, 0o600))
	must(t, os.Symlink(file, path))
	done := make(chan struct{})
	swapped := make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				swapped <- nil
				return
			default:
			}
			next := filepath.Join(dir, "next")
			err := os.Symlink([]string{pipe, file}[n%2], next)
			if err == nil {
				err = os.Rename(next, path)
			}
			if err != nil {
				swapped <- err
				return
			}
		}
	}()
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		for range 20000 {
			if f, info, err := Open(path); err == nil {
				if !info.Mode().IsRegular() {
					t.Errorf("opened %v", info.Mode())
				}
				_ = f.Close()
			}
		}
	}()
	select {
	case <-looked:
	case <-time.After(time.Minute):
		t.Error("a look hangs")
	}
	close(done)
	must(t, <-swapped)
	if f, err := os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil { // lets a look that hangs end
		_ = f.Close()
	}
}
