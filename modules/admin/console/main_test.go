package console

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	time.Local = time.UTC // golden files have times as the operator's clock shows them
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// golden compares text with a file.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		must(t, os.WriteFile(path, []byte(text), 0o644))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if string(want) != text {
		t.Errorf("%s has become:\n%s\nwant:\n%s", path, text, want)
	}
}

// visible shows lines with a mark at the end of each, so that their width is seen.
func visible(lines []line) string {
	var text strings.Builder
	for _, l := range lines {
		for _, p := range l {
			text.WriteString(p.text)
		}
		text.WriteString("|\n")
	}
	return text.String()
}
