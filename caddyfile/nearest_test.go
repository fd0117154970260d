package caddyfile

import (
	"slices"
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	t.Parallel()
	known := []string{"10.0.0.1:80", "10.0.0.11:5432", "10.0.0.12:5432", "unix//run/x.sock", strings.Repeat("x", 1000)}
	for given, want := range map[string][]string{
		"10.0.0.11":               {"10.0.0.11:5432", "10.0.0.1:80"}, // that it is a part of comes first
		"10.0.0.13:5432":          {"10.0.0.11:5432", "10.0.0.12:5432"},
		"tcp/10.0.0.12:5432":      {"10.0.0.12:5432", "10.0.0.11:5432"},
		"unix/run/x.sock":         {"unix//run/x.sock", "10.0.0.11:5432"},
		strings.Repeat("y", 1000): nil,
	} {
		got := Nearest(given, known, 2)
		if want == nil && len(got) > 0 || want != nil && (len(got) != 2 || got[0] != want[0] || want[0] != "unix//run/x.sock" && !slices.Equal(got, want)) {
			t.Errorf("%.20s: %q, want %q", given, got, want)
		}
	}
	if got := Nearest("a", nil, 3); len(got) != 0 {
		t.Errorf("got %q of none", got)
	}
}
