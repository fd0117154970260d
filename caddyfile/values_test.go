package caddyfile_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/portgate/caddy-portgate/caddyfile"
)

func TestParseDuration(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "-0": 0, "30s": 30 * time.Second, "1.5h": 90 * time.Minute, "2d12h": 60 * time.Hour, "5ms": 5 * time.Millisecond,
		"2562047h47m16.854775807s": math.MaxInt64, "106751d": 106751 * 24 * time.Hour,
	} {
		if got, err := caddyfile.ParseDuration(input); err != nil || got != caddy.Duration(want) {
			t.Errorf("%q: got %v, %v, want %v", input, time.Duration(got), err, want)
		}
	}
	for input, want := range map[string]string{
		"":                        `"": expected a duration such as 30s`,
		"5":                       `"5": expected a duration such as 30s`,
		"5x":                      `"5x": expected a duration such as 30s`,
		"d":                       `"d": expected a duration such as 30s`,
		"-1s":                     `"-1s": expected a duration of 0 or more`,
		"200000d":                 `"200000d": expected a duration of at most 2562047h, which is never`,
		"2562048h":                `"2562048h": expected a duration of at most 2562047h, which is never`,
		"1h99999999999999999999h": `"1h99999999999999999999h": expected a duration of at most 2562047h, which is never`,
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

func TestParseRate(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]struct {
		n   int64
		per time.Duration
	}{
		"100/s": {100, time.Second}, "1/m": {1, time.Minute}, "7/h": {7, time.Hour}, "1000000000/d": {1e9, 24 * time.Hour},
	} {
		if n, per, err := caddyfile.ParseRate(input); err != nil || n != want.n || per != want.per {
			t.Errorf("%q: got %d in %v, %v, want %+v", input, n, per, err, want)
		}
	}
	for _, input := range []string{"", "/", "/s", "1", "1/", "0/s", "-1/s", "1.5/s", "1/w", "1000000001/s", "1/s/s", "99999999999999999999/s"} {
		want := strconv.Quote(input) + `: expected a rate such as 100/s: a whole number from 1 to 1000000000, in s, m, h or d`
		if _, _, err := caddyfile.ParseRate(input); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", input, err, want)
		}
	}
}

func TestParseSizeRate(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]struct {
		n   int64
		per time.Duration
	}{
		"10MB/s": {10e6, time.Second}, "1.5KiB/m": {1536, time.Minute}, "250B/s": {250, time.Second}, "5/h": {5, time.Hour},
		"0": {0, time.Second}, "0/s": {0, time.Second}, "0MB/d": {0, 24 * time.Hour},
	} {
		if n, per, err := caddyfile.ParseSizeRate(input); err != nil || n != want.n || per != want.per {
			t.Errorf("%q: got %d in %v, %v, want %+v", input, n, per, err, want)
		}
	}
	for _, input := range []string{"", "MB/s", "1MB", "1MB/w", "1PB/s", "-1MB/s", "00"} {
		want := strconv.Quote(input) + `: expected a rate such as 10MB/s, in s, m, h or d, or 0 for none`
		if _, _, err := caddyfile.ParseSizeRate(input); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", input, err, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]int64{
		"0": 0, "7": 7, "7B": 7, "1KB": 1000, "64KiB": 65536, "1.5MB": 1_500_000, "2GiB": 2 << 30, "3TB": 3e12, "0.5KiB": 512,
		"1000TiB": 1000 << 40,
	} {
		if got, err := caddyfile.ParseSize(input); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", input, got, err, want)
		}
	}
	for input, want := range map[string]string{
		"": "a size such as 64KiB or 1.5MB", "B": "a size such as 64KiB or 1.5MB", "1kb": "a size such as 64KiB or 1.5MB",
		"-1B": "a size such as 64KiB or 1.5MB", "1e3B": "a size such as 64KiB or 1.5MB", "1BB": "a size such as 64KiB or 1.5MB",
		"NaN": "a size such as 64KiB or 1.5MB", "1.2.3B": "a size such as 64KiB or 1.5MB",
		"1001TiB": "a size of at most 1000TiB", "99999999999999999999999": "a size of at most 1000TiB",
	} {
		want = strconv.Quote(input) + `: expected ` + want
		if _, err := caddyfile.ParseSize(input); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", input, err, want)
		}
	}
}

// FuzzParse holds that what was accepted is in range, and is read the same when it is written out again.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"30s", "1d", "-1s", "5x", "100", "10MB/s", "1.5KiB", "7/d"} {
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
		if n, err := caddyfile.ParseSize(input); err == nil {
			again, err := caddyfile.ParseSize(strconv.FormatInt(n, 10))
			if n < 0 || err != nil || again != n {
				t.Errorf("size %d, then %d, %v", n, again, err)
			}
		}
		if n, per, err := caddyfile.ParseRate(input); err == nil && (n < 1 || per < time.Second) {
			t.Errorf("rate of %d in %v", n, per)
		}
		if n, per, err := caddyfile.ParseSizeRate(input); err == nil && (n < 0 || per < time.Second) {
			t.Errorf("rate of %d bytes in %v", n, per)
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

// No error repeats the password of a URL, to whatever option it was given.
func TestErrorsHaveNoPassword(t *testing.T) {
	t.Parallel()
	unmarshal := func(input string) error { return new(sample).unmarshal(caddycaddyfile.NewTestDispenser(input)) }
	var o object
	for _, err := range []error{
		unmarshal("forward {\n redis://user:hidden@host\n}"),
		unmarshal("forward {\n pair redis://user:hid@hidden@host?a=b b c d\n}"),
		unmarshal("forward {\n idle_timeout redis://user:hidden@host\n}"),
		unmarshal("forward {\n retries redis://host?sentinel_password=hidden&x=y\n}"),
		caddyfile.OneOf("redis://user:hidden@host", "memory", "redis"),
		caddyfile.UnmarshalJSON([]byte(`"redis://user:hidden@host"`), &o),
		caddyfile.UnmarshalJSON([]byte(`{"to": "redis://user:hidden@host"}`), &o),
		caddyfile.UnmarshalJSON([]byte(`{"name": {"url": "redis://user:hid den hidden@host"}}`), &o),
		caddyfile.WithoutPasswords(fmt.Errorf("file: %w", &fs.PathError{Op: "open", Path: "redis://user:hidden@host", Err: fs.ErrNotExist})),
		caddyfile.WithoutPasswords(fmt.Errorf("to: %q: expected no %q", `redis://user:hid"hidden@host`, "unix/@")),
	} {
		if err == nil || strings.Contains(err.Error(), "hidden") || !strings.Contains(err.Error(), "***") {
			t.Errorf("got %v", err)
		}
	}
}

// Texts without a password stay as they are, and what an error is remains known.
func TestWithoutPasswords(t *testing.T) {
	t.Parallel()
	if err := caddyfile.WithoutPasswords(nil); err != nil {
		t.Errorf("got %v, want nil", err)
	}
	plain := errors.New(`to: "http://a/b": expected host:port, or "unix/@name"`)
	if err := caddyfile.WithoutPasswords(plain); err != plain {
		t.Errorf("got %v, want the same error", err)
	}
	wrapped := caddyfile.WithoutPasswords(fmt.Errorf("%q: %w, not %q", "redis://u:hidden@host", fs.ErrNotExist, "unix/@name"))
	if want := `"redis://***@host": file does not exist, not "unix/@name"`; wrapped.Error() != want || !errors.Is(wrapped, fs.ErrNotExist) {
		t.Errorf("got %v, want %s", wrapped, want)
	}
}
