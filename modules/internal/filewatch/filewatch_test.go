package filewatch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o600))
}

// follow reads a file until the test ends. What it has is sent as it comes, and errors as "error: ...".
func follow(t testing.TB, path string, blind bool) <-chan string {
	t.Helper()
	w, err := New(path)
	must(t, err)
	if blind {
		must(t, w.system.Close())
	}
	ctx, cancel := context.WithCancel(t.Context())
	found := make(chan string, 1000)
	r := &Reader{Path: path, Most: 1 << 20}
	var running sync.WaitGroup
	running.Go(func() {
		w.Run(ctx, func() time.Duration {
			data, ok, again, err := r.Look()
			switch {
			case err != nil:
				found <- "error: " + err.Error()
			case ok:
				found <- string(data)
			}
			return again
		}, func(error) {})
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return found
}

func until(t testing.TB, found <-chan string, is func(string) bool) {
	t.Helper()
	timeout := time.After(time.Minute)
	for last := ""; ; {
		select {
		case last = <-found:
			if is(last) {
				return
			}
		case <-timeout:
			t.Fatalf("not found, the last was %q", last)
		}
	}
}

func becomes(t testing.TB, found <-chan string, content string) {
	t.Helper()
	until(t, found, func(s string) bool { return s == content })
}

// Every way to change a file ends in what it has.
func TestChanges(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(t *testing.T, path string){
		"written again": func(t *testing.T, path string) { write(t, path, "2") },
		"renamed over": func(t *testing.T, path string) {
			write(t, path+".new", "2")
			must(t, os.Rename(path+".new", path))
		},
		"removed, then written": func(t *testing.T, path string) {
			must(t, os.Remove(path))
			write(t, path, "2")
		},
		"the folder replaced": func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			must(t, os.Rename(dir, dir+"-old"))
			must(t, os.Mkdir(dir, 0o700))
			write(t, path, "2")
		},
		"became a link": func(t *testing.T, path string) {
			write(t, path+".target", "2")
			must(t, os.Remove(path))
			must(t, os.Symlink(path+".target", path))
		},
	} {
		for _, blind := range []bool{false, true} { // without being told, it is looked at every few seconds
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(t.TempDir(), "dir", "list")
				must(t, os.Mkdir(filepath.Dir(path), 0o700))
				write(t, path, "1")
				found := follow(t, path, blind)
				becomes(t, found, "1")
				change(t, path)
				becomes(t, found, "2")
			})
		}
	}
}

// Kubernetes shows a file through two links, of which it swaps the first.
func TestLinksAreSwapped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, version := range []string{"v1", "v2"} {
		must(t, os.Mkdir(filepath.Join(dir, version), 0o700))
		write(t, filepath.Join(dir, version, "list"), version)
	}
	must(t, os.Symlink("v1", filepath.Join(dir, "..data")))
	path := filepath.Join(dir, "list")
	must(t, os.Symlink("..data/list", path))
	found := follow(t, path, false)
	becomes(t, found, "v1")
	for _, version := range []string{"v2", "v1", "v2"} {
		must(t, os.Symlink(version, filepath.Join(dir, "new")))
		must(t, os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "..data")))
		becomes(t, found, version)
	}
}

// What can't be read is an error each time, until it can.
func TestReaderErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "list")
	r := &Reader{Path: path, Most: 1 << 20}
	if _, ok, _, err := r.Look(); ok || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	must(t, os.Mkdir(path, 0o700))
	if _, ok, _, err := r.Look(); ok || err == nil || !strings.HasSuffix(err.Error(), "expected a regular file") {
		t.Errorf("a folder: %v", err)
	}
	must(t, os.Remove(path))
	found := follow(t, path, false)
	write(t, path, strings.Repeat("x", 1<<20+1))
	becomes(t, found, "error: it has 1048577 bytes, expected at most 1 MiB")
	write(t, path, "1")
	becomes(t, found, "1")
}

func TestDirectories(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700))
	must(t, os.Mkdir(filepath.Join(dir, "c"), 0o700))
	write(t, filepath.Join(dir, "a", "b", "list"), "1")
	must(t, os.Symlink(filepath.Join(dir, "a"), filepath.Join(dir, "c", "absolute")))
	must(t, os.Symlink("../a/b/list", filepath.Join(dir, "c", "relative")))
	must(t, os.Symlink("loop", filepath.Join(dir, "c", "loop")))
	for path, want := range map[string]string{
		"a/b/list":          "a/b",
		"a/b/none":          "a/b",
		"none/x/list":       "none/x",
		"c/relative":        "c a/b",
		"c/absolute/b/list": "c a/b",
	} {
		var got []string
		for _, watched := range Directories(filepath.Join(dir, path)) {
			rel, err := filepath.Rel(dir, watched)
			must(t, err)
			got = append(got, rel)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", path, got, want)
		}
	}
	if n := len(Directories(filepath.Join(dir, "c", "loop"))); n == 0 || n > maxLinks {
		t.Errorf("a link to itself: %d directories", n)
	}
}
