package ipset

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"
)

var (
	gzipMagic = []byte{0x1f, 0x8b} // RFC 1952, section 2.3.1

	utf8Mark         = []byte{0xef, 0xbb, 0xbf}
	utf16LittleFirst = []byte{0xff, 0xfe}
	utf16BigFirst    = []byte{0xfe, 0xff}
)

// plainText unpacks a list and makes UTF-8 of it. What it is made of is told by its first bytes, because names and headers
// are often wrong, and one that a server has unpacked on the way has the name of the packed one. Both what goes in and
// what comes out are bounded: a few bytes may unpack to anything, and anything to nothing.
func plainText(r io.Reader) (io.Reader, error) {
	text, head, err := peek(r)
	if err != nil {
		return nil, err
	}
	// Twice, because a server may pack what is packed once more.
	for range 2 {
		if !bytes.HasPrefix(head, gzipMagic) {
			break
		}
		unpacked, err := gzip.NewReader(text)
		if err != nil {
			return nil, fmt.Errorf("unpacking: %w", err)
		}
		if text, head, err = peek(unpacked); err != nil {
			return nil, fmt.Errorf("unpacking: %w", err)
		}
	}
	switch {
	case bytes.HasPrefix(head, utf8Mark):
		_, err = text.Discard(len(utf8Mark))
	case bytes.HasPrefix(head, utf16LittleFirst):
		return transform.NewReader(text, unicode.UTF16(unicode.LittleEndian, unicode.ExpectBOM).NewDecoder()), nil
	case bytes.HasPrefix(head, utf16BigFirst):
		return transform.NewReader(text, unicode.UTF16(unicode.BigEndian, unicode.ExpectBOM).NewDecoder()), nil
	}
	return text, err
}

// peek returns a bounded reader with the first bytes that it is going to return.
func peek(r io.Reader) (*bufio.Reader, []byte, error) {
	text := bufio.NewReader(&bounded{from: r, left: MaxBytes})
	head, err := text.Peek(len(utf8Mark))
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return text, head, err
}

// IsLines tells whether a list is text of which each line stands for itself, so that what is appended to it leaves the lines
// before as they are. One that is packed or UTF-16 is not.
func IsLines(head []byte) bool {
	for _, other := range [][]byte{gzipMagic, utf16LittleFirst, utf16BigFirst} {
		if bytes.HasPrefix(head, other) {
			return false
		}
	}
	return true
}
