package acl

import (
	"strings"
	"testing"
)

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
