//go:build !linux

package relay

// watchAddresses does nothing on this system: sockets whose address is gone are found by what the system says when they send.
func watchAddresses() {}
