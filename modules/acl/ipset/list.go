package ipset

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Bounds of a list. What comes over the network or out of a file must not be able to use up the memory.
const (
	// MaxBytes is how long a list may be: four million lines or so.
	MaxBytes = 64 << 20
	// maxLine is how long a line may be, its comment included. A longer one is a bad line.
	maxLine = 4 << 10
)

// keptBadLines is how many bad lines are told in detail.
const keptBadLines = 10

// Report is what reading a list has found.
type Report struct {
	Lines int // with an entry, good or bad
	Bad   int
	First []BadLine // the first ten bad ones
}

// BadLine is a line that is not understood.
type BadLine struct {
	Number int // from 1
	Err    error
}

func (b BadLine) Error() string { return fmt.Sprintf("line %d: %v", b.Number, b.Err) }

func (r *Report) bad(number int, err error) {
	r.Bad++
	if len(r.First) < keptBadLines {
		r.First = append(r.First, BadLine{number, err})
	}
}

// ErrTooLong is the error for a list of more than [MaxBytes].
var ErrTooLong = fmt.Errorf("expected a list of at most %d MiB", MaxBytes>>20)

var errLineTooLong = fmt.Errorf("expected at most %d bytes in a line", maxLine)

// Read reads a list: one address, prefix or range a line, after which a comment may follow that begins with # or
// ;. Empty lines, blanks around an entry, CRLF and a byte order mark are fine.
//
// Lines that are not understood are left out and reported. Where more than half are such, this is no list but
// something else, and it is refused with an error; so is a list that is too long.
func Read(r io.Reader) (*Set, Report, error) {
	lines := bufio.NewReaderSize(&bounded{from: r, left: MaxBytes}, maxLine+len("\r\n"))
	var (
		builder Builder
		report  Report
	)
	for number := 1; ; number++ {
		line, err := lines.ReadSlice('\n')
		if number == 1 {
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
		}
		if tooLong := errors.Is(err, bufio.ErrBufferFull); tooLong {
			report.Lines++
			report.bad(number, errLineTooLong)
			err = skipLine(lines)
		} else if entry := entryOf(line); len(entry) > 0 {
			report.Lines++
			r, failed := Parse(string(entry))
			if failed != nil {
				report.bad(number, failed)
			} else {
				builder.Add(r)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return finish(&builder, report)
		case err != nil:
			return nil, report, err
		}
	}
}

// entryOf returns a line without its comment and the blanks around it.
func entryOf(line []byte) []byte {
	if comment := bytes.IndexAny(line, "#;"); comment >= 0 {
		line = line[:comment]
	}
	return bytes.TrimSpace(line)
}

// skipLine reads up to the end of the line.
func skipLine(r *bufio.Reader) error {
	for {
		_, err := r.ReadSlice('\n')
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

func finish(b *Builder, report Report) (*Set, Report, error) {
	if report.Bad*2 > report.Lines {
		return nil, report, fmt.Errorf("%d of %d lines are bad, expected a list of addresses and prefixes: %w",
			report.Bad, report.Lines, report.First[0])
	}
	return b.Set(), report, nil
}

// bounded fails where [io.LimitedReader] would pretend that the end has come.
type bounded struct {
	from io.Reader
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, ErrTooLong
	}
	return n, err
}
