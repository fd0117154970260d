package relay

import (
	"net"
	"testing"
)

// What has waited once does not count against what waits while the upstream's socket is exchanged for another.
func TestWhatHasWaitedIsForgotten(t *testing.T) {
	t.Parallel()
	upstream := packetEngines[0].listen(t)
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		closeFD(l.wakeup)
		_ = l.file.Close()
	}()
	f := &loopPackets{PacketRelay: NewPacket(PacketConfig{}), loopState: loopState{loop: l}, fd: -1}
	defer f.closeUpstream()
	for range 3 {
		for range waitingMax {
			f.receive(make([]byte, waitingMaxBytes/waitingMax))
		}
		if f.Stats().Dropped > 0 || len(f.waiting.datagrams) != waitingMax {
			t.Fatalf("%d wait, %d were dropped", len(f.waiting.datagrams), f.Stats().Dropped)
		}
		if err := f.open(upstream.LocalAddr().(*net.UDPAddr)); err != nil {
			t.Fatal(err)
		}
		f.closeUpstream()
	}
}
