package ipset

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func read(t *testing.T, list string) (*Set, Report) {
	t.Helper()
	set, report, err := Read(strings.NewReader(list), RefuseHostBits)
	if err != nil {
		t.Fatalf("%q: %v", list, err)
	}
	return set, report
}

// The forms in which lists come.
func TestReadForms(t *testing.T) {
	t.Parallel()
	for name, list := range map[string]string{
		"plain":               "192.0.2.1\n198.51.100.0/24\n2001:db8::/32\n",
		"no newline at end":   "192.0.2.1\n198.51.100.0/24\n2001:db8::/32",
		"CRLF":                "192.0.2.1\r\n198.51.100.0/24\r\n2001:db8::/32\r\n",
		"byte order mark":     "\xef\xbb\xbf192.0.2.1\n198.51.100.0/24\n2001:db8::/32\n",
		"comments":            "# a list\n; of somebody\n192.0.2.1\n#198.51.100.9\n198.51.100.0/24\n2001:db8::/32\n",
		"trailing comments":   "192.0.2.1 # one\n198.51.100.0/24 ; SBL1\n2001:db8::/32;x\n",
		"blanks":              "  192.0.2.1\t\n\n \t \n\t198.51.100.0/24  \n\n2001:db8::/32 \n\n",
		"ranges":              "192.0.2.1-192.0.2.1\n198.51.100.0 - 198.51.100.255\n2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff\n",
		"mapped":              "::ffff:192.0.2.1\n::ffff:198.51.100.0/120\n2001:db8::/32\n",
		"twice and contained": "192.0.2.1\n192.0.2.1\n198.51.100.0/24\n198.51.100.7\n2001:db8::/32\n2001:db8:1::/48\n",
	} {
		set, report := read(t, list)
		if report.Bad != 0 || report.Lines != set.Len() {
			t.Errorf("%s: %+v, %d entries", name, report, set.Len())
		}
		for _, addr := range []string{"192.0.2.1", "198.51.100.0", "198.51.100.255", "2001:db8::", "2001:db8:ffff::9"} {
			if !set.Contains(netip.MustParseAddr(addr)) {
				t.Errorf("%s: %s is missing", name, addr)
			}
		}
		for _, addr := range []string{"192.0.2.0", "192.0.2.2", "198.51.99.255", "198.51.101.0", "2001:db9::", "::1"} {
			if set.Contains(netip.MustParseAddr(addr)) {
				t.Errorf("%s: %s should not be there", name, addr)
			}
		}
	}
}

// Lists without an entry are empty, and no error.
func TestReadEmpty(t *testing.T) {
	t.Parallel()
	for _, list := range []string{"", "\n", "\xef\xbb\xbf", "\r\n\r\n", "# nothing\n", " ; nothing"} {
		if set, report := read(t, list); set.Len() != 0 || report.Lines != 0 {
			t.Errorf("%q: %d entries, %+v", list, set.Len(), report)
		}
	}
}

// Bad lines are counted, the first ten are told with their numbers, and the good ones are used.
func TestReadBadLines(t *testing.T) {
	t.Parallel()
	var list strings.Builder
	for n := range 15 {
		fmt.Fprintf(&list, "192.0.2.%d\nbad %d\n\n", n, n)
	}
	set, report := read(t, list.String())
	if report.Lines != 30 || report.Bad != 15 || set.Len() != 15 || !set.Contains(netip.MustParseAddr("192.0.2.14")) {
		t.Errorf("%+v, %d entries", report, set.Len())
	}
	var numbers []int
	for _, bad := range report.First {
		numbers = append(numbers, bad.Number)
	}
	if want := []int{2, 5, 8, 11, 14, 17, 20, 23, 26, 29}; !slices.Equal(numbers, want) {
		t.Errorf("lines %v, want %v", numbers, want)
	}
	if got, want := report.First[1].Error(), `line 5: "bad 1": `+errForm.Error(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A list in which more than half of the lines are bad is refused.
func TestReadRefused(t *testing.T) {
	t.Parallel()
	binary := make([]byte, 1<<20)
	random := rand.New(rand.NewPCG(1, 1))
	for i := range binary {
		binary[i] = byte(random.Uint32())
	}
	for name, list := range map[string]string{
		"one bad line":         "bad\n",
		"two of three":         "192.0.2.1\nbad\n10.0.0.0/33\n",
		"HTML":                 "<!DOCTYPE html>\n<html><body>\nNot found\n</body></html>\n",
		"binary":               string(binary),
		"zeros":                string(make([]byte, 1<<20)),
		"UTF-16 without mark":  "1\x009\x002\x00.\x000\x00.\x002\x00.\x001\x00\n\x00",
		"one very long line":   strings.Repeat("1", 1<<20),
		"very long, then good": strings.Repeat("x", 1<<20) + "\n" + strings.Repeat("y", 1<<20) + "\n192.0.2.1\n",
	} {
		if _, report, err := Read(strings.NewReader(list), RefuseHostBits); err == nil {
			t.Errorf("%s: no error, %+v", name, report)
		} else if len(err.Error()) > 500 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}
	if _, report := read(t, "192.0.2.1\nbad\n"); report.Bad != 1 {
		t.Errorf("half of the lines bad: %+v", report)
	}
}

// A line that is too long is one bad line, wherever its end falls, and the next one is read from its beginning.
func TestReadLongLines(t *testing.T) {
	t.Parallel()
	for length := maxLine - 3; length < 3*maxLine; length++ {
		if length == maxLine+5 {
			length = 2*maxLine - 5
		}
		if length == 2*maxLine+5 {
			break
		}
		set, report := read(t, "192.0.2.1 #"+strings.Repeat("x", length-11)+"\r\n192.0.2.2\n192.0.2.3\n")
		bad := 0
		if length > maxLine {
			bad = 1
		}
		if report.Lines != 3 || report.Bad != bad || set.Len() != 3-bad || !set.Contains(netip.MustParseAddr("192.0.2.2")) {
			t.Fatalf("length %d: %+v, %d entries", length, report, set.Len())
		}
	}
}

func TestReadTooLong(t *testing.T) {
	t.Parallel()
	line := []byte("192.0.2.1 # " + strings.Repeat("x", 4000) + "\n")
	if _, _, err := Read(bytes.NewReader(bytes.Repeat(line, MaxBytes/len(line)+1)), RefuseHostBits); !errors.Is(err, ErrTooLong) {
		t.Errorf("%v, want %v", err, ErrTooLong)
	}
	comment := []byte("#" + strings.Repeat("x", 4094) + "\n") // 4 KiB
	if _, _, err := Read(bytes.NewReader(bytes.Repeat(comment, MaxBytes>>12)), RefuseHostBits); err != nil {
		t.Errorf("a list of exactly the size that is allowed: %v", err)
	}
}

// A list that ends with an error is no list, however much of it came.
func TestReadError(t *testing.T) {
	t.Parallel()
	for _, broken := range []error{io.ErrUnexpectedEOF, errors.New("reset")} {
		r := io.MultiReader(strings.NewReader("192.0.2.1\n192.0.2."), iotest.ErrReader(broken))
		if set, _, err := Read(r, RefuseHostBits); !errors.Is(err, broken) || set != nil {
			t.Errorf("%v, want %v", err, broken)
		}
	}
}

// Whatever is read, the parts it comes in make no difference, and every line is good or reported. Lines of the simplest form,
// which are read here in another way, are in the set or, with more behind a set's name, kept out by an exception.
func FuzzRead(f *testing.F) {
	files, err := filepath.Glob("testdata/lists/*")
	if err != nil || len(files) == 0 {
		f.Fatal("no lists", err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, seed := range []string{
		"192.0.2.1\n", "\xef\xbb\xbf10.0.0.0/8 # x\r\n::1\r\n", "10.0.0.1-10.0.0.9\nbad\n", "\x00\x01\n;\n", "::-::5\n2001:db8::/32",
		"ip\n::1,\"\n", "add a ::/0\nadd a 8000::/1 nomatch\n", "\x1f\x8b\x08",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, list []byte) {
		for _, hostBits := range []HostBits{RefuseHostBits, MaskHostBits} {
			checkRead(t, list, hostBits)
		}
	})
}

func checkRead(t *testing.T, list []byte, hostBits HostBits) {
	t.Helper()
	set, report, err := Read(bytes.NewReader(list), hostBits)
	again, second, errAgain := Read(iotest.OneByteReader(bytes.NewReader(list)), hostBits)
	if (err == nil) != (errAgain == nil) || report.Lines != second.Lines || report.Bad != second.Bad || set.Len() != again.Len() {
		t.Fatalf("%+v (%v), and a byte at a time %+v (%v)", report, err, second, errAgain)
	}
	if err != nil {
		if set != nil {
			t.Fatalf("a set with the error %v", err)
		}
		return
	}
	exceptions := bytes.Contains(list, []byte("nomatch")) || !IsLines(list)
	if set.Len() != report.Lines-report.Bad && !exceptions || set.Len() > report.Lines-report.Bad || report.Bad*2 > report.Lines ||
		report.Masked > set.Len() && !exceptions || hostBits == RefuseHostBits && report.Masked > 0 || report.Bad > 0 && len(report.First) == 0 {
		t.Fatalf("%d entries of %+v", set.Len(), report)
	}
	if exceptions {
		return
	}
	for line := range bytes.Lines(bytes.TrimPrefix(list, utf8Mark)) {
		text := string(bytes.TrimSpace(line))
		if r, failed := Parse(text); failed == nil && len(line) <= maxLine && !set.Contains(r.First) {
			t.Fatalf("%q is missing", text)
		}
	}
}

// A list of a million lines takes little memory. BenchmarkRead has the figures, and the time.
func TestReadAMillionLines(t *testing.T) {
	for _, family := range []int{4, 6} {
		list := millionLines(family)
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		set, report, err := Read(bytes.NewReader(list), RefuseHostBits)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if err != nil || report.Bad != 0 || set.Len() != 1_000_000 {
			t.Fatalf("%v, %+v", err, report)
		}
		if held := int64(after.HeapAlloc-before.HeapAlloc) >> 20; held > 100 {
			t.Errorf("IPv%d: the set takes %d MiB", family, held)
		}
		runtime.KeepAlive(set)
	}
}
