//go:build !linux

package relay

import "syscall"

// queued can't be found out on this system: a reset discards what was not sent yet.
func queued(syscall.RawConn) (bytes int) { return 0 }
