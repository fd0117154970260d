package caddyfile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

const aDuration = "a duration such as 30s"

// ParseDuration reads a duration of 0 or more in the units that Caddy knows: those of [time.ParseDuration],
// and d for days.
func ParseDuration(s string) (caddy.Duration, error) {
	duration, err := caddy.ParseDuration(s)
	if err != nil {
		return 0, errExpected(s, aDuration)
	}
	if duration < 0 {
		return 0, errNegative(s)
	}
	return caddy.Duration(duration), nil
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

func errNegative(value string) error { return errExpected(value, "a duration of 0 or more") }

func errExpected(value, expected string) error {
	return fmt.Errorf("%q: expected %s", value, expected)
}
