package relay

import (
	"net"
	"time"
)

// keepAliveProbes go unanswered before a peer counts as gone, a sixth of the silence apart.
const keepAliveProbes = 3

// keepAlive is how the option is set up in the kernel, which counts in seconds.
func (c *Config) keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{
		Enable:   c.KeepAlive > 0,
		Idle:     max(c.KeepAlive, time.Second),
		Interval: max(c.KeepAlive/6, time.Second),
		Count:    keepAliveProbes,
	}
}
