package relay

import "syscall"

// controlSource is bindWithoutPort for a [net.Dialer].
func controlSource(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) { bindWithoutPort(int(fd)) })
}
