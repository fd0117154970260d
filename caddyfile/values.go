package caddyfile

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
)

const aDuration = "a duration such as 30s"

// ParseDuration parses a duration of 0 or more. The units are those of [time.ParseDuration], and d for days.
func ParseDuration(s string) (caddy.Duration, error) {
	duration, err := caddy.ParseDuration(s)
	if err != nil {
		return 0, errDuration(s)
	}
	if duration < 0 {
		return 0, errNegative(s)
	}
	return caddy.Duration(duration), nil
}

// written matches a duration of any length, including those that overflow.
var written = regexp.MustCompile(`^([0-9]+(\.[0-9]+)?(ns|us|µs|μs|ms|s|m|h|d))+$`)

func errDuration(s string) error {
	if written.MatchString(s) {
		return errExpected(s, "a duration of at most 2562047h, which is never")
	}
	return errExpected(s, aDuration)
}

// ParseCount reads a whole number from lo to hi.
func ParseCount(s string, lo, hi int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < lo || n > hi {
		return 0, errExpected(s, fmt.Sprintf("a whole number from %d to %d", lo, hi))
	}
	return n, nil
}

// OneOf refuses a value that is not among those that are known.
func OneOf(s string, known ...string) error {
	if slices.Contains(known, s) {
		return nil
	}
	if len(known) == 1 {
		return errExpected(s, known[0])
	}
	last := len(known) - 1
	return errExpected(s, strings.Join(known[:last], ", ")+" or "+known[last])
}

// units are what may follow the slash of a rate.
var units = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}

var aRate = fmt.Sprintf("a rate such as 100/s: a whole number from 1 to %d, in s, m, h or d", maxRate)

// ParseRate reads a rate of events, such as 100/s.
func ParseRate(s string) (n int64, per time.Duration, err error) {
	count, unit, _ := strings.Cut(s, "/")
	n, err = strconv.ParseInt(count, 10, 64)
	per, known := units[unit]
	if err != nil || !known || n < 1 || n > maxRate {
		return 0, 0, errExpected(s, aRate)
	}
	return n, per, nil
}

// maxRate is in a second as in a day: what is more is no limit.
const maxRate = 1_000_000_000

// ParseSizeRate reads a rate of bytes, such as 10MB/s. A rate of 0 is no limit.
func ParseSizeRate(s string) (n int64, per time.Duration, err error) {
	if s == "0" {
		return 0, time.Second, nil
	}
	size, unit, _ := strings.Cut(s, "/")
	n, err = ParseSize(size)
	per, known := units[unit]
	if err != nil || !known {
		return 0, 0, errExpected(s, "a rate such as 10MB/s, in s, m, h or d, or 0 for none")
	}
	return n, per, nil
}

// sizes are the units of bytes: those of 1000, and those of 1024.
var sizes = map[string]int64{
	"": 1, "B": 1,
	"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}

// maxSize is the largest size that is not taken for a typing error.
const maxSize = 1000 << 40

// ParseSize reads a number of bytes, such as 64KiB or 1.5MB.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "BKMGTi")
	unit, known := sizes[s[len(digits):]]
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || !known || strings.Trim(digits, "0123456789.") != "" {
		return 0, errExpected(s, "a size such as 64KiB or 1.5MB")
	}
	if n *= float64(unit); n > maxSize {
		return 0, errExpected(s, "a size of at most 1000TiB")
	}
	return int64(n), nil
}

func errNegative(value string) error { return errExpected(value, "a duration of 0 or more") }

func errExpected(value, expected string) error {
	return fmt.Errorf("%q: expected %s", masked(value), expected)
}

// secret matches what may be a password in a URL: all before its last @, and parameters.
var secret = regexp.MustCompile(`(?s)(://).*(@)|(password=)[^&"\s]*`)

// masked returns a value for an error. URLs are given to the wrong option, too, so no option can know that it has no password.
func masked(value string) string { return secret.ReplaceAllString(value, "$1$3***$2") }

// secretInText matches what secret does in a text: a URL ends there with the quotes around it.
var secretInText = regexp.MustCompile(`(?s)(://)(?:[^"\\]|\\.)*(@)|(password=)[^&"\s]*`)

// WithoutPasswords returns an error whose text has no password of a URL, and which is err otherwise. Unmarshal and UnmarshalJSON do it by
// themselves; modules call it for errors of Provision, which quote values of the config, too.
func WithoutPasswords(err error) error {
	if err == nil {
		return nil
	}
	before := err.Error()
	text := secretInText.ReplaceAllStringFunc(before, func(found string) string {
		if found == "://user:password@" { // which is what an error expects
			return found
		}
		return secretInText.ReplaceAllString(found, "$1$3***$2")
	})
	if text == before {
		return err
	}
	return &maskedError{text, err}
}

type maskedError struct {
	text string
	err  error
}

func (e *maskedError) Error() string { return e.text }

func (e *maskedError) Unwrap() error { return e.err }
