//go:build !linux

package relay

// runLoop reports false: there are no event loops on this system.
func (r *Relay) runLoop() bool { return false }

// LoopDescriptors returns how many descriptors the event loops have open: there are none.
func LoopDescriptors() int { return 0 }
