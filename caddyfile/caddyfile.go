// Package caddyfile parses the options of a module from a Caddyfile and from JSON. Its errors name the option, quote the
// value, and say what was expected: `idle_timeout: "5x": expected a duration such as 30s`.
package caddyfile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Option describes a line that a block may contain: a name and values.
type Option struct {
	Name string

	// Min and Max bound the number of values. A Max of -1 allows any number.
	Min, Max int

	// Values says what the values are, for the error about their number: `a count and a duration, such as 100 5s`. Empty: the error has only their number.
	Values string

	// Repeat allows the option more than once. Set is then called for each.
	Repeat bool

	// Set takes the values. Its error says only what is wrong with them; Unmarshal adds the name of the option, the file and the
	// line.
	Set func(args []string) error

	// Block lists the options of a block that may follow the values. It is parsed after the call of Set.
	Block []Option

	// Unmarshal parses the option in place of all that, from its name to the end of its block: where a module has a say in its syntax.
	Unmarshal func(d *caddyfile.Dispenser) error
}

// Flag is an option without values, which sets what to points to.
func Flag(name string, to *bool) Option {
	return Option{Name: name, Set: func([]string) error {
		*to = true
		return nil
	}}
}

// Unmarshal parses one directive of d: its name, the values on the same line, which it passes to inline, and a block of options. If
// inline is nil, values on the line are an error.
func Unmarshal(d *caddyfile.Dispenser, inline func(args []string) error, options ...Option) error {
	d.Next()
	directive := Option{Name: d.Val(), Max: -1, Set: inline}
	if inline == nil {
		directive.Max = 0
	}
	if args := d.RemainingArgs(); len(args) > 0 {
		if err := directive.apply(args); err != nil {
			return d.WrapErr(WithoutPasswords(err))
		}
	}

	return readBlock(d, options)
}

// WrapErr adds the file and the line to an error that was found when the block was read, about options that do not fit together. The line is that of the
// last option that the error names, as `lb_try_interval` or as `health_check: timeout`; where it names none of the directive, the line on which the directive ends.
func WrapErr(d *caddyfile.Dispenser, err error) error {
	end := *d
	names, value := named(err.Error())
	*d = lastOf(*d, names, value)
	defer func() { *d = end }()
	return d.WrapErr(WithoutPasswords(err))
}

// named returns the names of options at the beginning of the text of an error, the innermost first, and the value that is quoted behind them, "" where
// there is none.
func named(text string) (names []string, value string) {
	for part := range strings.SplitSeq(text, ": ") {
		if quoted, err := strconv.QuotedPrefix(part); err == nil {
			value, _ = strconv.Unquote(quoted)
			break
		}
		if strings.Contains(part, " ") {
			break
		}
		names = append(names, part)
	}
	slices.Reverse(names)
	return names, value
}

// lastOf returns d at the last line before it that begins with one of the names, the first of them that there is; one that has the value, if any
// has. It returns d itself where there is none.
func lastOf(d caddyfile.Dispenser, names []string, value string) caddyfile.Dispenser {
	for _, name := range names {
		last, found := d, false
		for at := d; at.Prev(); {
			if at.Val() != name || !beginsLine(at) {
				continue
			}
			if line := at; slices.Contains(line.RemainingArgs(), value) {
				return at
			}
			if !found {
				last, found = at, true
			}
		}
		if found {
			return last
		}
	}
	return d
}

// beginsLine reports whether no other token stands before that of d on its line.
func beginsLine(d caddyfile.Dispenser) bool {
	line, file := d.Line(), d.File()
	return !d.Prev() || d.Line() != line || d.File() != file
}

// readBlock parses the block that follows, if there is one.
func readBlock(d *caddyfile.Dispenser, options []Option) error {
	given := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option, err := find(options, d.Val())
		if err != nil {
			return d.WrapErr(err)
		}
		if given[option.Name] && !option.Repeat {
			return d.Errf("%s: given twice", option.Name)
		}
		given[option.Name] = true
		if option.Unmarshal != nil {
			if err := option.Unmarshal(d); err != nil {
				return WithoutPasswords(err)
			}
			continue
		}
		if err := option.apply(d.RemainingArgs()); err != nil {
			return d.WrapErr(WithoutPasswords(err))
		}
		if len(option.Block) > 0 {
			if err := readBlock(d, option.Block); err != nil {
				return err
			}
		} else if opensBlock(d) {
			return d.Errf("%s: expected no block", option.Name)
		}
	}
	return nil
}

// Choose finds the option that the first value names and passes the other values to it, as in `deny file <path>`. It reports
// false if no option has that name.
func Choose(args []string, options ...Option) (bool, error) {
	for _, option := range options {
		if option.Name == args[0] {
			return true, option.apply(args[1:])
		}
	}
	return false, nil
}

func find(options []Option, name string) (Option, error) {
	names := make([]string, len(options))
	for i, option := range options {
		if option.Name == name {
			return option, nil
		}
		names[i] = option.Name
	}
	if within := blocksWith(options, name); len(within) > 0 {
		return Option{}, fmt.Errorf("unknown option %q: expected it in the block of %s", masked(name), strings.Join(within, " or "))
	}
	return Option{}, errUnknown(name, names)
}

// blocksWith returns the options in whose blocks an option of that name may stand.
func blocksWith(options []Option, name string) []string {
	var within []string
	for _, option := range options {
		if slices.ContainsFunc(option.Block, func(inner Option) bool { return inner.Name == name }) {
			within = append(within, option.Name)
		}
	}
	return within
}

func errUnknown(name string, known []string) error {
	name = masked(name)
	if len(known) == 0 {
		return fmt.Errorf("unknown option %q: expected none", name)
	}
	return fmt.Errorf("unknown option %q: expected one of %s", name, strings.Join(known, ", "))
}

func (o Option) apply(args []string) error {
	if len(args) < o.Min || o.Max >= 0 && len(args) > o.Max {
		if len(args) == 0 {
			return fmt.Errorf("%s: expected %s", o.Name, o.arity())
		}
		return fmt.Errorf("%s: %q: expected %s", o.Name, masked(strings.Join(args, " ")), o.arity())
	}
	if err := o.Set(args); err != nil {
		return fmt.Errorf("%s: %w", o.Name, err)
	}
	return nil
}

func (o Option) arity() string {
	switch {
	case o.Values != "":
		return o.Values
	case o.Max == 0:
		return "no value"
	case o.Max < 0:
		return "at least " + values(o.Min)
	case o.Max > o.Min:
		return fmt.Sprintf("%d to %s", o.Min, values(o.Max))
	default:
		return values(o.Min)
	}
}

func values(n int) string {
	if n == 1 {
		return "1 value"
	}
	return fmt.Sprintf("%d values", n)
}

// opensBlock reports whether a brace follows the values that were just read. A quoted brace was read as a value, so a brace that is left
// on the line is not quoted.
func opensBlock(d *caddyfile.Dispenser) bool {
	if d.NextLine() {
		d.Prev()
		return false
	}
	return d.Next()
}
