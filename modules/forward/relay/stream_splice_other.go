//go:build !linux

package relay

import (
	"errors"
	"syscall"
)

// readsRaw reports whether reader and splice work on this system.
const readsRaw = false

type reader struct{}

func (*reader) init() {}

func (*reader) read(syscall.RawConn) (*[bufferSize]byte, int, error) {
	return nil, 0, errors.ErrUnsupported
}

func (*pump) splice() error { return errors.ErrUnsupported }
