//go:build !linux

package relay

import (
	"errors"
	"syscall"
)

// readsRaw: sources are read as net.Conns here.
const readsRaw = false

type reader struct{}

func (*reader) init() {}

func (*reader) read(syscall.RawConn) (*[bufferSize]byte, int, error) {
	return nil, 0, errors.ErrUnsupported
}

func (*pump) splice() error { return errors.ErrUnsupported }
