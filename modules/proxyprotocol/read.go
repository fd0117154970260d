package proxyprotocol

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// peeker is a connection of gate+tcp, of which one may look at what has arrived without waiting.
type peeker interface {
	// Peek copies what has arrived into b, and leaves it there to be read. It does not wait: it returns 0 where
	// nothing has arrived.
	Peek(b []byte) (n int, err error)
	// Skip drops what Peek has copied into b.
	Skip(b []byte) error
}

// buffers are for headers. One is used only while something of a header has arrived.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// takeBuffer returns a buffer that holds a header, and how to give it back.
func takeBuffer() (b []byte, giveBack func()) {
	p := buffers.Get().(*[]byte)
	if *p == nil {
		*p = make([]byte, maxHeader)
	}
	return *p, func() { buffers.Put(p) }
}

// peek reads the header of a connection if it has arrived as a whole. It reports false where it has not, and has read
// nothing then.
func peek(conn peeker) (h header, ok bool, err error) {
	b, giveBack := takeBuffer()
	defer giveBack()
	n, err := conn.Peek(b)
	if err != nil {
		return header{}, true, err
	}
	size, _, err := frame(b[:n])
	if err != nil {
		return header{}, true, err
	}
	if size == 0 {
		return header{}, false, nil
	}
	if h, err = parse(b[:size]); err != nil {
		return header{}, true, err
	}
	return h, true, conn.Skip(b[:size])
}

// read reads the header of a connection, and no byte behind it. It waits as long as the connection's deadline lets it.
func read(conn net.Conn) (header, error) {
	b := make([]byte, 0, 128) // most headers are shorter
	for {
		size, more, err := frame(b)
		if err != nil {
			return header{}, err
		}
		if size > 0 {
			return parse(b)
		}
		if free := cap(b) - len(b); free < more {
			b = append(make([]byte, 0, len(b)+more), b...)
		}
		n, err := conn.Read(b[len(b) : len(b)+more])
		b = b[:len(b)+n]
		if errors.Is(err, io.EOF) && n > 0 {
			continue // the next read tells again
		}
		if err != nil {
			return header{}, fmt.Errorf("after %d bytes: %w", len(b), err)
		}
	}
}
