package caddyfile_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/caddyfile"
)

func TestParseDuration(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "-0": 0, "30s": 30 * time.Second, "1.5h": 90 * time.Minute, "2d12h": 60 * time.Hour, "5ms": 5 * time.Millisecond,
	} {
		if got, err := caddyfile.ParseDuration(input); err != nil || got != caddy.Duration(want) {
			t.Errorf("%q: got %v, %v, want %v", input, time.Duration(got), err, want)
		}
	}
	for input, want := range map[string]string{
		"":        `"": expected a duration such as 30s`,
		"5":       `"5": expected a duration such as 30s`,
		"5x":      `"5x": expected a duration such as 30s`,
		"d":       `"d": expected a duration such as 30s`,
		"-1s":     `"-1s": expected a duration of 0 or more`,
		"200000d": `"200000d": expected a duration such as 30s`,
	} {
		if _, err := caddyfile.ParseDuration(input); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", input, err, want)
		}
	}
}

func TestParseCount(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]int{"0": 0, "100": 100, "+7": 7, "007": 7} {
		if got, err := caddyfile.ParseCount(input, 0, 100); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", input, got, err, want)
		}
	}
	for _, input := range []string{"", "x", "-1", "101", "1.5", "99999999999999999999"} {
		want := strconv.Quote(input) + `: expected a whole number from 0 to 100`
		if _, err := caddyfile.ParseCount(input, 0, 100); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", input, err, want)
		}
	}
}

// FuzzParse holds that what was accepted is in range, and is read the same when it is written out again.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"30s", "1d", "-1s", "5x", "100"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, input string) {
		if duration, err := caddyfile.ParseDuration(input); err == nil {
			again, err := caddyfile.ParseDuration(time.Duration(duration).String())
			if duration < 0 || err != nil || again != duration {
				t.Errorf("duration %d, then %d, %v", duration, again, err)
			}
		}
		if n, err := caddyfile.ParseCount(input, 0, 100); err == nil {
			again, err := caddyfile.ParseCount(strconv.Itoa(n), 0, 100)
			if n < 0 || n > 100 || err != nil || again != n {
				t.Errorf("count %d, then %d, %v", n, again, err)
			}
		}
	})
}

func TestOneOf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		value string
		known []string
		want  string
	}{
		{"b", []string{"a", "b", "c"}, ""},
		{"d", []string{"a", "b", "c"}, `"d": expected a, b or c`},
		{"", []string{"a", "b"}, `"": expected a or b`},
		{"d", []string{"a"}, `"d": expected a`},
	} {
		got := ""
		if err := caddyfile.OneOf(c.value, c.known...); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q of %v: %s, want %s", c.value, c.known, got, c.want)
		}
	}
}
