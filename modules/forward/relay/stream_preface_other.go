//go:build !linux

package relay

import "syscall"

func readNow(syscall.RawConn) (buf *[bufferSize]byte, n int) { return nil, 0 }
