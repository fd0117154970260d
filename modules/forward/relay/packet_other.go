//go:build !linux

package relay

// runLoop reports that there are no event loops here.
func (r *PacketRelay) runLoop() bool { return false }
