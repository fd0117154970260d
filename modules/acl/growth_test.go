package acl

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portgate/caddy-portgate/modules/acl/ipset"
	"github.com/portgate/caddy-portgate/modules/internal/filewatch"
)

// written is a file that its writer keeps open, and the list that is read from it.
type written struct {
	*os.File
	list *file
}

// keepOpen calls f with a file that is open for writing. In it the time is that of a bubble: nothing tells of changes, so the
// file is looked at as if each moment something had.
func keepOpen(t *testing.T, content string, f func(t *testing.T, w *written)) {
	t.Helper()
	path := tempFile(t, content)
	synctest.Test(t, func(t *testing.T) {
		writer, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		must(t, err)
		defer writer.Close()
		list, err := loadFile("file "+t.Name(), path, listFormat(ipset.MaskHostBits))
		must(t, err)
		defer list.forget()
		if open, known := filewatch.OpenForWriting(writer); !open || !known {
			t.Fatal("the system does not tell that the file is open for writing")
		}
		f(t, &written{writer, list})
	})
}

func (w *written) write(t *testing.T, text string) {
	t.Helper()
	_, err := w.WriteString(text)
	must(t, err)
}

// pass lets time pass.
func (w *written) pass(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(min(w.list.look(), settled))
	}
}

func (w *written) mustHave(t *testing.T, in, out string) {
	t.Helper()
	for _, a := range strings.Fields(in) {
		if !w.list.contains(addr(a)) {
			t.Errorf("%s is not in the list", a)
		}
	}
	for _, a := range strings.Fields(out) {
		if w.list.contains(addr(a)) {
			t.Errorf("%s is in the list", a)
		}
	}
}

// Whoever is appended to a file is on the list within a second, though the file is never left alone for long.
func TestFileGrows(t *testing.T) {
	t.Parallel()
	keepOpen(t, one+"\n", func(t *testing.T, w *written) {
		for n := range 20 {
			address := fmt.Sprintf("198.51.100.%d", n)
			w.write(t, address+"\n")
			w.pass(time.Second)
			w.mustHave(t, one+" "+address, two)
			w.pass(time.Second)
		}
	})
}

// So it is where lines come all the time, and where each writer closes the file.
func TestFileGrowsAllTheTime(t *testing.T) {
	t.Parallel()
	keepOpen(t, one+"\n", func(t *testing.T, w *written) {
		must(t, w.Close())
		appended := 0
		for range 100 {
			writer, err := os.OpenFile(w.list.path, os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			appended++
			_, err = fmt.Fprintf(writer, "198.51.100.%d\n", appended)
			must(t, err)
			must(t, writer.Close())
			w.pass(settled / 2)
			if late := appended - int(time.Second/settled)*2; late > 0 {
				w.mustHave(t, fmt.Sprintf("198.51.100.%d", late), "")
			}
		}
	})
}

// A line without its end waits for that, or until the file is left alone.
func TestFileGrowsWithinALine(t *testing.T) {
	t.Parallel()
	keepOpen(t, one+"\n", func(t *testing.T, w *written) {
		w.write(t, "198.51.100.7\n198.51.100.3")
		w.pass(2 * time.Second)
		w.mustHave(t, one+" 198.51.100.7", "198.51.100.3 198.51.100.30")
		w.write(t, "0\n198.51.100.4")
		w.pass(2 * time.Second)
		w.mustHave(t, one+" 198.51.100.7 198.51.100.30", "198.51.100.3 198.51.100.4")
		w.pass(settledOpen)
		w.mustHave(t, one+" 198.51.100.7 198.51.100.30 198.51.100.4", "198.51.100.3")
	})
}

// A file that is cut and written anew lets nobody in before it is complete: it may be only a part of what it will be.
func TestFileIsWrittenAnewWhileItIsOpen(t *testing.T) {
	t.Parallel()
	var before strings.Builder
	for n := range 100 {
		fmt.Fprintf(&before, "198.51.100.%d\n", n)
	}
	const all = "198.51.100.0 198.51.100.50 198.51.100.99"
	keepOpen(t, before.String(), func(t *testing.T, w *written) {
		must(t, w.Truncate(0))
		w.pass(time.Second)
		w.mustHave(t, all, "")
		w.write(t, before.String()[:before.Len()/2]) // a part, which begins in the same way
		w.pass(4 * time.Second)
		w.mustHave(t, all, "")
		w.write(t, before.String()[before.Len()/2:]+two+"\n") // all of it, and more
		w.pass(time.Second)
		w.mustHave(t, all+" "+two, "")
	})
	keepOpen(t, before.String(), func(t *testing.T, w *written) {
		must(t, w.Truncate(0))
		w.write(t, two+"\n"+before.String()) // longer, but something else
		w.pass(4 * time.Second)
		w.mustHave(t, all, two)
		w.pass(2 * time.Second)
		w.mustHave(t, all+" "+two, "")
	})
	keepOpen(t, before.String(), func(t *testing.T, w *written) {
		must(t, w.Truncate(10_000)) // room for what is written later
		w.pass(4 * time.Second)
		w.mustHave(t, all, two)
	})
}

// Where a file that continues the list takes its place by a rename, and is still written, its complete lines are taken.
func TestFileIsReplacedByALongerOne(t *testing.T) {
	t.Parallel()
	keepOpen(t, one+"\n", func(t *testing.T, w *written) {
		writer, err := os.Create(w.list.path + ".new")
		must(t, err)
		defer writer.Close()
		must(t, os.Rename(writer.Name(), w.list.path))
		w.pass(time.Second)
		w.mustHave(t, one, two)
		_, err = writer.WriteString(one + "\n" + two + "\n192.0.2.")
		must(t, err)
		w.pass(time.Second)
		w.mustHave(t, one+" "+two, "")
		must(t, os.Remove(w.list.path))
		must(t, os.Symlink(writer.Name()+".other", w.list.path))
		write(t, writer.Name()+".other", "198.51.100.1\n")
		w.pass(time.Second)
		w.mustHave(t, "198.51.100.1", one+" "+two)
	})
}

// What is not made of lines is not taken line by line.
func TestFileOfAnotherKindGrows(t *testing.T) {
	t.Parallel()
	utf16 := func(text string) string { return strings.Join(strings.Split(text, ""), "\x00") + "\x00" }
	keepOpen(t, "\xff\xfe"+utf16(one+"\n"), func(t *testing.T, w *written) {
		w.write(t, utf16(two+"\n"))
		w.pass(4 * time.Second)
		w.mustHave(t, one, two)
		w.pass(2 * time.Second)
		w.mustHave(t, one+" "+two, "")
	})
}

// A file that grows all the time can be loaded for the first time: with the lines that are complete.
func TestFileThatGrowsIsLoaded(t *testing.T) {
	t.Parallel()
	path := tempFile(t, one+"\n")
	synctest.Test(t, func(t *testing.T) {
		writer, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		must(t, err)
		defer writer.Close()
		done, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				case <-time.After(settled / 3):
					_, _ = fmt.Fprintf(writer, "\n198.51.100.%d", n%100+100)
				}
			}
		}()
		list, err := loadFile("file "+t.Name(), path, listFormat(ipset.MaskHostBits))
		must(t, err)
		defer list.forget()
		close(done)
		<-stopped
		if !list.contains(addr(one)) || !list.contains(addr("198.51.100.100")) || list.contains(addr("198.51.100.1")) {
			t.Error("the complete lines are not in the list")
		}
	})
}

// The system tells of what is appended.
func TestFileThatGrowsIsFollowed(t *testing.T) {
	t.Parallel()
	path := tempFile(t, one+"\n")
	f := open(t, path)
	writer, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer writer.Close()
	_, err = writer.WriteString(two + "\n")
	must(t, err)
	eventually(t, "the line that was appended, while others are", func() bool {
		_, err := writer.WriteString("198.51.100.1\n")
		must(t, err)
		return f.contains(addr(two))
	})
}

// Where addresses are appended to a list, the sessions of these clients are judged again, and in case of doubt all are.
func TestPlainPrefixes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ before, appended, want string }{
		{"192.0.2.1\n", "192.0.2.2\n\n# x\n2001:db8::/32 # y\r\n", "[192.0.2.2/32 2001:db8::/32]"},
		{"", "192.0.2.2\n", "[192.0.2.2/32]"},
		{"192.0.2.1", "\n192.0.2.2\n", "[]"},
		{"192.0.2.1\n", "192.0.2.2\n192.0.2.4-192.0.2.9\n", "[]"},
		{"192.0.2.1\n", "192.0.2.9/30\n", "[]"},
		{"192.0.2.1\n", "192.0.2.2,x\n", "[]"},
		{"192.0.2.1\n", "add x 192.0.2.1 nomatch\n", "[]"},
		{"192.0.2.1\n", strings.Repeat("192.0.2.2\n", maxChanges+1), "[]"},
	} {
		got := plainPrefixes([]byte(c.before+c.appended), len(c.before))
		if fmt.Sprint(got) != c.want || c.want == "[]" && got != nil {
			t.Errorf("%q: %v, want %s", c.appended, got, c.want)
		}
	}
}
