package acl

import (
	"encoding/json"
	"strings"
	"testing"
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
		if got := printable(given); got != want {
			t.Errorf("%q: %s, want %s", given, got, want)
		}
		encoded, err := json.Marshal(strings.ToValidUTF8(given, "?"))
		must(t, err)
		shown := printableJSON(string(encoded))
		if strings.ContainsFunc(shown, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q: JSON %q", given, shown)
		}
		var back string
		if err := json.Unmarshal([]byte(shown), &back); err != nil || back != strings.ToValidUTF8(given, "?") {
			t.Errorf("%q: JSON %s becomes %q, %v", given, shown, back, err)
		}
	}
}

// A list that is damaged is shown as such, by all commands that show it.
func TestDamagedListIsShown(t *testing.T) {
	t.Parallel()
	var lists, entries strings.Builder
	must(t, printLists(&lists, []byte(`[{"name":"bans","size":2,"damaged":"x: it ends\u001b too early"},{"name":"other","size":0}]`)))
	must(t, printEntries(&entries, []byte(`{"name":"bans","size":0,"damaged":"x: it ends too early","entries":[]}`)))
	if got, want := lists.String(), `damaged: x: it ends\x1b too early`; strings.Count(got, want) != 1 {
		t.Errorf("%q, want %q in it", got, want)
	}
	if got, want := entries.String(), "damaged: x: it ends too early\n"; !strings.HasSuffix(got, want) {
		t.Errorf("%q, want %q at its end", got, want)
	}
}
