//go:build !linux

package relay

// runLoop reports false: there are no event loops on this system.
func (r *Relay) runLoop() bool { return false }
