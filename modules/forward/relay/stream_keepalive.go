package relay

import (
	"net"
	"time"
)

// keepAliveProbes is how many unanswered probes end a connection. They are a sixth of KeepAlive apart.
const keepAliveProbes = 3

// keepAliveMax is the longest time that Linux takes (MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL). What is longer becomes that,
// except what is longer than a century: that is never.
const (
	keepAliveMax   = 32767 * time.Second
	keepAliveNever = 100 * 365 * 24 * time.Hour
)

// keepAliveAfter returns the kernel's settings, which are in seconds.
func keepAliveAfter(silence time.Duration) net.KeepAliveConfig {
	return net.KeepAliveConfig{
		Enable:   silence > 0 && silence < keepAliveNever,
		Idle:     min(max(silence, time.Second), keepAliveMax),
		Interval: min(max(silence/6, time.Second), keepAliveMax),
		Count:    keepAliveProbes,
	}
}
