package relay

import (
	"net"
	"testing"
)

// Start returns although the upstream does not answer, and Done blocks: a goroutine that accepts connections goes on.
func TestStartDoesNotBlock(t *testing.T) {
	addr, _ := deaf(t)
	over(t, pairs, func(t *testing.T, p pair) {
		release := make(chan struct{})
		s := p.prepare(t, only(addr), func(c *Config) {
			done := c.Done
			c.Done = func(r Result) {
				<-release
				done(r)
			}
		})
		s.relay.Start()
		s.relay.Close(adminClosed)
		close(release)
		s.want(adminClosed)
	})
}

func TestStartOfAStreamThatCanNotBeConnectedDoesNotBlock(t *testing.T) {
	over(t, pairs, func(t *testing.T, p pair) {
		release := make(chan struct{})
		s := p.prepare(t, only(), func(c *Config) {
			done := c.Done
			c.Done = func(r Result) {
				<-release
				done(r)
			}
		})
		s.relay.Start()
		close(release)
		s.want(ConnectFailed)
	})
}

func TestPacketStartDoesNotBlock(t *testing.T) {
	for name, first := range map[string]func(*packetSession){
		"evicted before": func(s *packetSession) { s.network.evict() },
		"closed before":  func(s *packetSession) { s.relay.Close(adminClosed) },
		"no upstream":    func(*packetSession) {},
	} {
		t.Run(name, func(t *testing.T) {
			overPackets(t, packetEngines, func(t *testing.T, p packetPair) {
				release := make(chan struct{})
				s := p.prepare(t, only([]net.Addr{}...), func(c *PacketConfig) {
					done := c.Done
					c.Done = func(r PacketResult) {
						<-release
						done(r)
					}
				})
				first(s)
				s.relay.Start()
				close(release)
				s.result()
			})
		})
	}
}
