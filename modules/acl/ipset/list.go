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
	// MaxBytes is how long a list may be, both as it comes and unpacked: four million lines or so.
	MaxBytes = 64 << 20
	// MaxEntries is how many entries it may have. IPv6 takes the most: 32 bytes for each while it is read, 128 MB in all.
	MaxEntries = 4_000_000
	// maxLine is how long a line may be, its comment included. A longer one is a bad line.
	maxLine = 4 << 10
)

// HostBits says what becomes of a line with a prefix that has bits set behind its length, such as 192.0.2.9/30.
type HostBits int

const (
	// RefuseHostBits makes it a bad line. This is for lists of whom to let in.
	RefuseHostBits HostBits = iota
	// MaskHostBits takes it as its network, as nginx, HAProxy and ipset do. This is for lists of whom to keep out.
	MaskHostBits
)

// keptBadLines is how many bad lines are told in detail.
const keptBadLines = 10

// Report is what reading a list has found.
type Report struct {
	Lines  int // with an entry, good or bad
	Bad    int
	First  []BadLine // the first ten bad ones
	Masked int       // good ones with bits set behind the prefix, taken as its network
	Mask   BadLine   // the first of these
}

// BadLine is a line that is not understood, or not as it is written.
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

func (r *Report) masked(number int, err error) {
	if r.Masked++; r.Masked == 1 {
		r.Mask = BadLine{number, err}
	}
}

var (
	// ErrTooLong is the error for a list of more than [MaxBytes].
	ErrTooLong = fmt.Errorf("expected a list of at most %d MiB", MaxBytes>>20)
	// ErrTooMany is the error for a list of more than [MaxEntries].
	ErrTooMany = fmt.Errorf("expected a list of at most %d entries", MaxEntries)

	errLineTooLong = fmt.Errorf("expected at most %d bytes in a line", maxLine)
)

// Read reads a list: one address, prefix or range a line, in any of the forms that lines.go tells of. It may be packed by
// gzip, and its text may be UTF-8 or, with a byte order mark, UTF-16.
//
// Lines that are not understood are left out and reported. A list is refused with an error where more than half of its lines
// are such, or nothing but its heading is understood, because it is something else then; so is one that is too long, has
// too many entries, or is cut short.
func Read(r io.Reader, hostBits HostBits) (*Set, Report, error) {
	p := parser{hostBits: hostBits, most: MaxEntries}
	return p.read(r)
}

func (p *parser) read(r io.Reader) (*Set, Report, error) {
	text, err := plainText(r)
	if err != nil {
		return nil, Report{}, err
	}
	lines := bufio.NewReaderSize(text, maxLine+len("\r\n"))
	for number := 1; ; number++ {
		line, err := lines.ReadSlice('\n')
		if tooLong := errors.Is(err, bufio.ErrBufferFull); tooLong {
			p.report.Lines++
			p.report.bad(number, fmt.Errorf("%s: %w", quote(string(line)), errLineTooLong))
			err = skipLine(lines)
		} else if failed := p.line(number, bytes.TrimSpace(line)); failed != nil {
			return nil, p.report, failed
		}
		switch {
		case errors.Is(err, io.EOF):
			return p.finish()
		case err != nil:
			return nil, p.report, err
		}
	}
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
