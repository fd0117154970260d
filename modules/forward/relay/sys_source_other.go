//go:build !linux

package relay

import "syscall"

// controlSource does nothing: on this system a source address takes a port for each connection.
func controlSource(_, _ string, _ syscall.RawConn) error { return nil }
