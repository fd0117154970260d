package adminapi

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode"
)

// What somebody has written as a reason does nothing to the terminal that shows it, and is told apart from what it looks
// like.
func TestPrintable(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"port scan, größer ✓ 日本":  "port scan, größer ✓ 日本",
		"a\x1b[31mred\x1b[0m":     `a\x1b[31mred\x1b[0m`,
		"a\nb\tc\rd\x00\a":        `a\nb\tc\rd\x00\a`,
		"del\x7f":                 `del\x7f`,
		"c1\u009b31m\u0085":       `c1\u009b31m\u0085`,
		"bidi\u202eevil\u2066":    `bidi\u202eevil\u2066`,
		"marks\u200e\u200f\u061c": `marks\u200e\u200f\u061c`,
		"lines\u2028\u2029\ufeff": `lines\u2028\u2029\ufeff`,
		"bad\xff\xc3(":            `bad\xff\xc3(`,
		`back\slash \x1b`:         `back\\slash \\x1b`,
		"tag\U000e0041":           `tag\U000e0041`,
	} {
		if got := Printable(given); got != want {
			t.Errorf("%q: %s, want %s", given, got, want)
		}
		encoded, err := json.Marshal(strings.ToValidUTF8(given, "?"))
		if err != nil {
			t.Fatal(err)
		}
		var copied strings.Builder
		if err := PrintableJSON(&copied, strings.NewReader(string(encoded))); err != nil {
			t.Fatal(err)
		}
		shown := copied.String()
		if strings.ContainsFunc(shown, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q: JSON %q", given, shown)
		}
		var back string
		if err := json.Unmarshal([]byte(shown), &back); err != nil || back != strings.ToValidUTF8(given, "?") {
			t.Errorf("%q: JSON %s becomes %q, %v", given, shown, back, err)
		}
	}
}

// An answer that ends too early is an error, and what had come of it is shown.
func TestPrintableJSONOfABrokenAnswer(t *testing.T) {
	t.Parallel()
	var shown strings.Builder
	broken := io.MultiReader(strings.NewReader("[1,\n"), iotest.ErrReader(io.ErrUnexpectedEOF))
	if err := PrintableJSON(&shown, broken); !errors.Is(err, io.ErrUnexpectedEOF) || shown.String() != "[1,\n" {
		t.Errorf("%q, %v", shown.String(), err)
	}
	if err := PrintableJSON(&failing{left: 1}, strings.NewReader(strings.Repeat("x", 10_000))); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a writer that fails: %v", err)
	}
}
