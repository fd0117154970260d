package relay

import (
	"fmt"
	"testing"
)

func TestPacketEngineThatServes(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		s := p.open(t)
		s.relay.mu.Lock()
		got := fmt.Sprintf("%T", s.relay.engine)
		s.relay.mu.Unlock()
		want := "*relay.packetGoroutines"
		if p.loop {
			want = "*relay.packetFlow"
		}
		if got != want {
			t.Errorf("engine: got %s, want %s", got, want)
		}
	})
}

func TestPacketsOfAllSizes(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		s := p.open(t)
		for _, size := range []int{0, 1, 1472, 1473, 8999, 9001, 32769, 65507, 0, 1} {
			s.up(bytesOf(1, size))
			s.down(bytesOf(2, size))
		}
	})
}
