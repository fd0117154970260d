//go:build !linux

package relay

import "time"

// HasLoops tells whether there are event loops on this system.
const HasLoops = false

// Lag is that of no event loop.
func Lag() time.Duration { return 0 }
