//go:build !linux

package acl

import "net"

// vanish has the socket closed without a word to the client. Not on this system.
func vanish(net.Conn) bool { return false }

func canVanish() bool { return false }

// openFileLimit is how many descriptors the process may have, or few where that is not known.
func openFileLimit() int { return 1024 }
