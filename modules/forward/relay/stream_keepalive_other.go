//go:build !linux

package relay

import (
	"net"
	"syscall"
)

// keepAliveRaw is not needed: here all sockets are those of the net package.
func keepAliveRaw(syscall.RawConn, net.KeepAliveConfig) {}
