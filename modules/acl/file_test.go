package acl

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
)

// open loads a file for the rest of the test.
func open(t testing.TB, path string) *file {
	t.Helper()
	f, err := openFile("file "+t.Name(), path, listFormat(ipset.MaskHostBits))
	must(t, err)
	t.Cleanup(func() { must(t, f.Destruct()) })
	return f
}

// mustBecome waits until the list has one of the addresses and not the other.
func mustBecome(t testing.TB, f *file, in, out string) {
	t.Helper()
	eventually(t, in+" in the list, "+out+" not", func() bool { return f.contains(addr(in)) && !f.contains(addr(out)) })
}

const one, two = "192.0.2.1", "192.0.2.2"

func TestFileIsLoaded(t *testing.T) {
	t.Parallel()
	f := open(t, tempFile(t, one))
	if !f.contains(addr(one)) || f.contains(addr(two)) {
		t.Error("the list has not what the file has")
	}
}

// Every way to change a file ends in the right list.
func TestFileChanges(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(t *testing.T, path string){
		"written again": func(t *testing.T, path string) { write(t, path, two) },
		"renamed over": func(t *testing.T, path string) {
			write(t, path+".new", two)
			must(t, os.Rename(path+".new", path))
		},
		"removed, then written": func(t *testing.T, path string) {
			must(t, os.Remove(path))
			write(t, path, two)
		},
		"same length and time": func(t *testing.T, path string) {
			before, err := os.Stat(path)
			must(t, err)
			write(t, path+".new", two)
			must(t, os.Chtimes(path+".new", before.ModTime(), before.ModTime()))
			must(t, os.Rename(path+".new", path))
		},
		"the time set back": func(t *testing.T, path string) { // as by tar, cp -p and rsync
			before, err := os.Stat(path)
			must(t, err)
			write(t, path, two)
			must(t, os.Chtimes(path, before.ModTime(), before.ModTime()))
		},
		"the folder replaced": func(t *testing.T, path string) {
			dir := filepath.Dir(path)
			must(t, os.Rename(dir, dir+"-old"))
			must(t, os.Mkdir(dir, 0o700))
			write(t, path, two)
		},
		"became a link": func(t *testing.T, path string) {
			write(t, path+".target", two)
			must(t, os.Remove(path))
			must(t, os.Symlink(path+".target", path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "dir", "list")
			must(t, os.Mkdir(filepath.Dir(path), 0o700))
			write(t, path, one)
			f := open(t, path)
			change(t, path)
			mustBecome(t, f, two, one)
		})
	}
}

// Kubernetes shows a file through two links, of which it swaps the first.
func TestFileBehindLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for version, content := range map[string]string{"v1": one, "v2": two} {
		must(t, os.Mkdir(filepath.Join(dir, version), 0o700))
		write(t, filepath.Join(dir, version, "list"), content)
	}
	must(t, os.Symlink("v1", filepath.Join(dir, "..data")))
	path := filepath.Join(dir, "list")
	must(t, os.Symlink("..data/list", path))
	f := open(t, path)
	for _, version := range []string{"v2", "v1", "v2"} {
		must(t, os.Symlink(version, filepath.Join(dir, "new")))
		must(t, os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "..data")))
		if version == "v1" {
			mustBecome(t, f, one, two)
		} else {
			mustBecome(t, f, two, one)
		}
	}
	write(t, filepath.Join(dir, "v2", "list"), one) // behind both links
	mustBecome(t, f, one, two)
}

// What can't be a list leaves the last good content in use, however it came there, and the next good one is taken.
func TestFileKeepsItsLastGoodContent(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, path string){
		"removed":      func(t *testing.T, path string) { must(t, os.Remove(path)) },
		"binary":       func(t *testing.T, path string) { write(t, path, strings.Repeat("\x00\xff\n", 1000)) },
		"one bad line": func(t *testing.T, path string) { write(t, path, "192.0.2.0/33\n") },
		"long line":    func(t *testing.T, path string) { write(t, path, strings.Repeat("1", 1<<20)) },
		"a folder": func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, os.Mkdir(path, 0o700))
		},
		"a pipe": func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, syscall.Mkfifo(path, 0o600))
		},
		"too large": func(t *testing.T, path string) { must(t, os.Truncate(path, 100<<20)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := tempFile(t, one)
			f := open(t, path)
			spoil(t, path)
			eventually(t, "the error", func() bool {
				f.mu.Lock()
				defer f.mu.Unlock()
				return f.failed != ""
			})
			if !f.contains(addr(one)) {
				t.Error("the last good content is not in use")
			}
			must(t, os.RemoveAll(path))
			write(t, path, two)
			mustBecome(t, f, two, one)
		})
	}
}

// An empty file is an empty list.
func TestFileBecomesEmpty(t *testing.T) {
	t.Parallel()
	path := tempFile(t, one)
	f := open(t, path)
	write(t, path, "")
	eventually(t, "an empty list", func() bool { return !f.contains(addr(one)) })
}

// At first load every error is fatal, and nothing is left of the attempt.
func TestFileThatCanNotBeLoaded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "bad"), "nonsense")
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "no such file",
		filepath.Join(dir, "bad"):  `1 of 1 lines are bad, expected a list of addresses and prefixes: line 1: "nonsense"`,
		dir:                        "expected a regular file",
		"/dev/zero":                "expected a regular file",
	} {
		if _, err := openFile("file", path, listFormat(ipset.MaskHostBits)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
}

// A file that is written slowly is not taken before its writer is done.
func TestFileWrittenSlowly(t *testing.T) {
	t.Parallel()
	path := tempFile(t, one+"\n"+two)
	f := open(t, path)
	var stop atomic.Bool
	var missed atomic.Int64
	var reader sync.WaitGroup
	reader.Go(func() {
		for !stop.Load() {
			if !f.contains(addr(one)) {
				missed.Add(1)
			}
		}
	})
	writer, err := os.Create(path)
	must(t, err)
	loads := f.looks(t, 8) // the empty file is looked at
	for _, part := range []string{"192.0.2.9\n192.0", ".2.8\n192.0.2.", "1\n"} {
		_, err = writer.WriteString(part)
		must(t, err)
		loads()
	}
	must(t, writer.Close())
	eventually(t, "the new content", func() bool { return f.contains(addr("192.0.2.9")) && !f.contains(addr(two)) })
	stop.Store(true)
	reader.Wait()
	if n := missed.Load(); n > 0 {
		t.Errorf("an address that is in every version was missing in %d lookups", n)
	}
}

// looks returns a function that waits until other files of the folder have come and gone n times, each of which has the
// list's file looked at.
func (f *file) looks(t *testing.T, n int) func() {
	t.Helper()
	beside := f.path + ".beside"
	other := open(t, tempFile(t, one))
	round := 0
	wait := func() {
		for range n {
			round++
			write(t, beside, "x")
			must(t, os.Remove(beside))
			address := fmt.Sprintf("198.51.100.%d", round)
			write(t, other.path, address)
			eventually(t, "another list", func() bool { return other.contains(addr(address)) })
		}
	}
	wait()
	return wait
}

// A thousand versions of a list, written in every way: an address that is in all of them is never missing, and one that
// is in none is never there.
func TestFileRewrittenUnderLoad(t *testing.T) {
	t.Parallel()
	path := tempFile(t, one)
	f := open(t, path)
	var stop atomic.Bool
	var wrong atomic.Int64
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for !stop.Load() {
				if !f.contains(addr(one)) || f.contains(addr(two)) {
					wrong.Add(1)
				}
			}
		})
	}
	filler := strings.Repeat("198.51.100.0/24 # filler\n", 200)
	for n := range 1000 {
		content := fmt.Sprintf("%s203.0.113.%d\n%s%s\n", filler, n%256, filler[:25*(n%100)], one)
		switch n % 3 {
		case 0:
			write(t, path, content)
		case 1:
			write(t, path+".new", content)
			must(t, os.Rename(path+".new", path))
		default: // in small pieces, half of which end within a line
			writer, err := os.Create(path)
			must(t, err)
			for rest := content; rest != ""; {
				size := min(len(rest), 1000)
				_, err := writer.WriteString(rest[:size])
				must(t, err)
				rest = rest[size:]
			}
			must(t, writer.Close())
		}
	}
	eventually(t, "the last version", func() bool { return f.contains(addr("203.0.113.231")) }) // 999 % 256
	stop.Store(true)
	readers.Wait()
	if n := wrong.Load(); n > 0 {
		t.Errorf("%d wrong answers", n)
	}
}
