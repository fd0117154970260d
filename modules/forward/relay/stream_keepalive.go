package relay

import (
	"net"
	"time"
)

// keepAliveProbes is how many unanswered probes end a connection. They are a sixth of KeepAlive apart.
const keepAliveProbes = 3

// keepAlive returns the kernel's settings, which are in seconds.
func (c *Config) keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{
		Enable:   c.KeepAlive > 0,
		Idle:     max(c.KeepAlive, time.Second),
		Interval: max(c.KeepAlive/6, time.Second),
		Count:    keepAliveProbes,
	}
}
