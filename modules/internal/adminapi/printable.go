package adminapi

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Printable escapes what somebody has written as in a string of Go, so that it can neither break out of its column nor
// command the terminal, nor show in another order than it has.
func Printable(s string) string { return escape(strings.ReplaceAll(s, `\`, `\\`)) }

// escape leaves backslashes alone: it is for texts in which somebody else has escaped what was quoted.
func escape(s string) string {
	var shown strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&shown, `\x%02x`, s[0])
		case unicode.IsPrint(r):
			shown.WriteRune(r)
		default:
			shown.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
		s = s[size:]
	}
	return shown.String()
}

// PrintableJSON copies JSON, and escapes in it what a terminal could take for a command. JSON allows that inside strings alone, where
// all such characters are.
func PrintableJSON(to io.Writer, from io.Reader) error {
	in, out := bufio.NewReader(from), bufio.NewWriter(to)
	for {
		r, _, err := in.ReadRune()
		switch {
		case errors.Is(err, io.EOF):
			return out.Flush()
		case err != nil:
			return errors.Join(err, out.Flush())
		case unicode.IsPrint(r) || r == '\n':
			_, err = out.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			_, err = fmt.Fprintf(out, `\u%04x\u%04x`, high, low)
		default:
			_, err = fmt.Fprintf(out, `\u%04x`, r)
		}
		if err != nil {
			return err
		}
	}
}
