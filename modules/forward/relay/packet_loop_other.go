//go:build !linux

package relay

// runLoop reports false: there are no event loops on this system.
func (r *PacketRelay) runLoop() bool { return false }
