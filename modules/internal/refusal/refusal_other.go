//go:build !linux

package refusal

import "net"

// vanish has the socket closed without a word to the client. Not on this system.
func vanish(net.Conn) bool { return false }

// CanDrop tells whether the process may do that.
func CanDrop() bool { return false }
