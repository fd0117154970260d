package caddyfile_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	caddycaddyfile "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/portgate/caddy-portgate/caddyfile"
)

// sample has one option of each kind.
type sample struct {
	To          []string
	IdleTimeout caddy.Duration
	Retries     int
	Strict      bool
	Pairs       [][]string
}

func (s *sample) unmarshal(d *caddycaddyfile.Dispenser) error {
	to := func(args []string) error {
		s.To = append(s.To, args...)
		return nil
	}
	return caddyfile.Unmarshal(d, to,
		caddyfile.Option{Name: "to", Min: 1, Max: -1, Repeat: true, Set: to},
		caddyfile.Option{Name: "idle_timeout", Min: 1, Max: 1, Set: func(args []string) (err error) {
			s.IdleTimeout, err = caddyfile.ParseDuration(args[0])
			return err
		}},
		caddyfile.Option{Name: "retries", Min: 1, Max: 1, Set: func(args []string) (err error) {
			s.Retries, err = caddyfile.ParseCount(args[0], 0, 100)
			return err
		}},
		caddyfile.Option{Name: "strict", Set: func([]string) error {
			s.Strict = true
			return nil
		}},
		caddyfile.Option{Name: "pair", Min: 2, Max: 3, Repeat: true, Set: func(args []string) error {
			s.Pairs = append(s.Pairs, args)
			return nil
		}},
	)
}

func TestUnmarshal(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]sample{
		"forward":        {},
		"forward {\n}":   {},
		"forward a b":    {To: []string{"a", "b"}},
		`forward "{" a`:  {To: []string{"{", "a"}},
		"forward a {\n}": {To: []string{"a"}},
		"forward a {\n to b c\n idle_timeout 1d\n to d\n}": {
			To: []string{"a", "b", "c", "d"}, IdleTimeout: caddy.Duration(24 * 60 * 60 * 1e9),
		},
		"forward {\n retries 3\n strict\n pair 1 2\n pair 1 2 3\n}": {
			Retries: 3, Strict: true, Pairs: [][]string{{"1", "2"}, {"1", "2", "3"}},
		},
		"forward {\n to \"{\"\n strict\n}": {To: []string{"{"}, Strict: true},
	} {
		t.Run(input, func(t *testing.T) {
			t.Parallel()
			var got sample
			if err := got.unmarshal(caddycaddyfile.NewTestDispenser(input)); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestUnmarshalErrors(t *testing.T) {
	t.Parallel()
	const known = "to, idle_timeout, retries, strict, pair"
	for input, want := range map[string]string{
		"forward {\n timeout 5s\n}":                       `unknown option "timeout": expected one of ` + known + `, at Testfile:2`,
		"forward {\n {\n strict\n }\n}":                   `unknown option "{": expected one of ` + known + `, at Testfile:2`,
		"forward {\n retries 1\n strict\n retries 2\n}":   `retries: given twice, at Testfile:4`,
		"forward {\n to\n}":                               `to: expected at least 1 value, at Testfile:2`,
		"forward {\n idle_timeout\n}":                     `idle_timeout: expected 1 value, at Testfile:2`,
		"forward {\n idle_timeout a b\n}":                 `idle_timeout: "a b": expected 1 value, at Testfile:2`,
		"forward {\n strict yes\n}":                       `strict: "yes": expected no value, at Testfile:2`,
		"forward {\n pair 1\n}":                           `pair: "1": expected 2 to 3 values, at Testfile:2`,
		"forward {\n\n idle_timeout 5x\n}":                `idle_timeout: "5x": expected a duration such as 30s, at Testfile:3`,
		"forward {\n idle_timeout -1s\n}":                 `idle_timeout: "-1s": expected a duration of 0 or more, at Testfile:2`,
		"forward {\n retries 101\n}":                      `retries: "101": expected a whole number from 0 to 100, at Testfile:2`,
		"forward {\n strict {\n retries 1\n }\n}":         `strict: expected no block, at Testfile:2`,
		"forward {\n idle_timeout 5s {\n }\n}":            `idle_timeout: expected no block, at Testfile:2`,
		"forward a {\n to b {\n }\n to c\n retries 1\n }": `to: expected no block, at Testfile:2`,
	} {
		t.Run(input, func(t *testing.T) {
			t.Parallel()
			var s sample
			err := s.unmarshal(caddycaddyfile.NewTestDispenser(input))
			if err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

func TestUnmarshalInline(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	fails := func([]string) error { return broken }

	err := caddyfile.Unmarshal(caddycaddyfile.NewTestDispenser("acl a b"), nil)
	if want := `acl: "a b": expected no value, at Testfile:1`; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	err = caddyfile.Unmarshal(caddycaddyfile.NewTestDispenser("acl a"), fails)
	if want := `acl: broken, at Testfile:1`; err == nil || err.Error() != want || !errors.Is(err, broken) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if err := caddyfile.Unmarshal(caddycaddyfile.NewTestDispenser("acl"), fails); err != nil {
		t.Errorf("without values beside the name: %v", err)
	}
	err = caddyfile.Unmarshal(caddycaddyfile.NewTestDispenser("acl {\n a\n}"), nil)
	if want := `unknown option "a": expected none, at Testfile:2`; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// An option may have a block of its own, after its values.
func TestUnmarshalBlock(t *testing.T) {
	t.Parallel()
	unmarshal := func(input string) (got string, err error) {
		note := func(args []string) error {
			got += strings.Join(args, " ") + ";"
			return nil
		}
		err = caddyfile.Unmarshal(caddycaddyfile.NewTestDispenser(input), nil,
			caddyfile.Option{Name: "store", Min: 1, Max: 2, Set: note, Block: []caddyfile.Option{
				{Name: "timeout", Min: 1, Max: 1, Set: note}, {Name: "prefix", Min: 1, Max: 1, Set: note},
			}},
			caddyfile.Option{Name: "after", Set: note},
		)
		return got, err
	}
	for input, want := range map[string]string{
		"a {\n store x\n after\n}":                                "x;;",
		"a {\n store x y {\n timeout 1\n prefix 2\n }\n after\n}": "x y;1;2;;",
		"a {\n store x {\n }\n}":                                  "x;",
	} {
		if got, err := unmarshal(input); err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", input, got, err, want)
		}
	}
	for input, want := range map[string]string{
		"a {\n prefix p\n}":                                  `unknown option "prefix": expected it in the block of store, at Testfile:2`,
		"a {\n store x {\n after\n }\n}":                     `unknown option "after": expected one of timeout, prefix, at Testfile:3`,
		"a {\n store x {\n timeout 1\n timeout 2\n }\n}":     `timeout: given twice, at Testfile:4`,
		"a {\n store x {\n timeout 1 {\n }\n }\n}":           `timeout: expected no block, at Testfile:3`,
		"a {\n store x {\n timeout\n }\n}":                   `timeout: expected 1 value, at Testfile:3`,
		"a {\n store x {\n }\n store y {\n timeout\n }\n\n}": `store: given twice, at Testfile:4`,
	} {
		if _, err := unmarshal(input); err == nil || err.Error() != want {
			t.Errorf("%q: got  %v\nwant %s", input, err, want)
		}
	}
}

// FuzzUnmarshal feeds any text that Caddy's lexer takes. It must not panic, and every error has its place.
func FuzzUnmarshal(f *testing.F) {
	f.Add("forward a {\n to b\n idle_timeout 5s\n}")
	f.Fuzz(func(t *testing.T, input string) {
		tokens, err := caddycaddyfile.Tokenize([]byte(input), "Testfile")
		if err != nil {
			t.Skip()
		}
		var s sample
		err = s.unmarshal(caddycaddyfile.NewDispenser(tokens))
		if err != nil && !strings.Contains(err.Error(), ", at Testfile:") {
			t.Errorf("no file and line: %v", err)
		}
	})
}

func TestChoose(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		values string
		known  bool
		set    string
		err    string
	}{
		{"file /etc/list", true, "/etc/list", ""},
		{"file", true, "", "file: expected 1 value"},
		{"file a b", true, "", `file: "a b": expected 1 value`},
		{"many a b", true, "a b", ""},
		{"many wrong", true, "wrong", "many: is wrong"},
		{"10.0.0.0/8 file", false, "", ""},
	} {
		set := ""
		note := func(args []string) error {
			set = strings.Join(args, " ")
			if set == "wrong" {
				return errors.New("is wrong")
			}
			return nil
		}
		known, err := caddyfile.Choose(strings.Fields(c.values),
			caddyfile.Option{Name: "file", Min: 1, Max: 1, Set: note},
			caddyfile.Option{Name: "many", Min: 1, Max: -1, Set: note},
		)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if known != c.known || set != c.set || text != c.err {
			t.Errorf("%s: %t %q %q, want %t %q %q", c.values, known, set, text, c.known, c.set, c.err)
		}
	}
}

// An error about options that do not fit together names the line of the one that it is about.
func TestWrapErr(t *testing.T) {
	t.Parallel()
	const input = "forward {\n retries 1\n to a\n to b\n pair 1 to\n check x {\n  timeout 2s\n }\n to c\n}"
	for text, line := range map[string]int{
		`retries: "1": expected more`:                         2,
		`to: "a": expected b`:                                 3,
		`to: "b": tls: expected none`:                         4,
		`to: "x": expected b`:                                 9,
		`check: timeout: "2s": expected at most the interval`: 7,
		`check: fails: "0": expected more`:                    6,
		`expected an upstream`:                                10,
		`weight: all are 0`:                                   10,
	} {
		d := caddycaddyfile.NewTestDispenser(input)
		for d.Next() { // to the end, where Unmarshal leaves it
		}
		err := caddyfile.WrapErr(d, errors.New(text))
		if want := fmt.Sprintf("%s, at Testfile:%d", text, line); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if d.Next() || d.Val() != "}" {
			t.Errorf("%s: the dispenser is at %q now", text, d.Val())
		}
	}
}

// An option that says what its values are has that in the error about their number.
func TestValues(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]string{
		"a {\n queue\n}":    `queue: expected a count and a duration, at Testfile:2`,
		"a {\n queue 10\n}": `queue: "10": expected a count and a duration, at Testfile:2`,
	} {
		err := caddyfile.Unmarshal(caddycaddyfile.NewTestDispenser(input), nil, caddyfile.Option{Name: "queue", Min: 2, Max: 2, Values: "a count and a duration"})
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}
