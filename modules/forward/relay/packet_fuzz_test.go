package relay

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

// room is how much of what sockets hold at once a script may use, each datagram with what the kernel adds. What
// is beyond may be lost, and not by the relay.
const room = 100 << 10

// crossing is one direction: what was sent and has not arrived yet.
type crossing struct {
	sent, arrived int
	expected      [][]byte
	used          int
}

// script is played on a relay, and keeps the books of what has to arrive.
type script struct {
	*packetSession
	up, down crossing
	port     port
	nexts    nexts
	bytes    [2]int64 // that have arrived, up and down
}

// playPackets plays on a relay. A byte is a datagram of one side, or something that happens to it.
func playPackets(t *testing.T, p packetPair, codes []byte) {
	sc := &script{port: p.newPort(t)}
	sc.nexts.addr = sc.port.addr
	sc.packetSession = p.prepare(t, sc.nexts.next)
	sc.upstream = sc.port.open(t)
	if codes[0]&1 == 0 {
		sc.run()
		sc.post(0)
	} else { // it is the first datagrams that the relay finds waiting
		for i := range int(codes[0] >> 4) {
			sc.post(i)
		}
		sc.post(1)
		sc.run()
	}
	sc.receive(&sc.up)
	for _, code := range codes[1:] {
		sc.play(code)
	}
	sc.receive(&sc.up)
	sc.receive(&sc.down)
	sc.nothingMore()
	sc.relay.Close(adminClosed)
	r := sc.want(adminClosed)
	if r.BytesUp < sc.bytes[0] || r.BytesDown != sc.bytes[1] || r.DatagramsUp < int64(sc.up.arrived) || r.DatagramsDown != int64(sc.down.arrived) {
		t.Errorf("%s: %+v, but %d datagrams arrived up and %d down", p.name, r, sc.up.arrived, sc.down.arrived)
	}
	if r.Dropped != int64(sc.dropped(DropUpstreamRefused)) {
		t.Errorf("%s: dropped %v", p.name, sc.drops)
	}
}

func (sc *script) play(code byte) {
	size := []int{0, 1, 4, 100, 1000, 1472, 1473, 5000, 9001, 20_000, 32_769, 65_507}[int(code>>4)%12]
	switch code % 8 {
	case 0, 1:
		sc.post(size)
	case 2, 3:
		sc.answer(size)
	case 4:
		sc.receive(&sc.up)
	case 5:
		sc.receive(&sc.down)
	case 6:
		time.Sleep(time.Duration(code>>4) * 50 * time.Microsecond)
	case 7:
		sc.leave(int(code >> 4))
	}
}

// next makes the next datagram of a direction.
func (sc *script) next(c *crossing, size int) []byte {
	b := bytesOf(byte(c.sent), size)
	if len(b) >= 4 {
		copy(b, numbered(c.sent))
	}
	if c.used += size + 2048; c.used > room {
		sc.receive(c)
		c.used = size + 2048
	}
	c.sent++
	c.expected = append(c.expected, b)
	return b
}

func (sc *script) post(size int)   { sc.sendUp(sc.next(&sc.up, size)) }
func (sc *script) answer(size int) { sc.sendDown(sc.next(&sc.down, size)) }

// receive checks that everything has arrived, in order.
func (sc *script) receive(c *crossing) {
	sc.Helper()
	for _, b := range c.expected {
		if c == &sc.up {
			sc.wantUp(b)
			sc.bytes[0] += int64(len(b))
		} else {
			sc.wantDown(b)
			sc.bytes[1] += int64(len(b))
		}
		c.arrived++
	}
	c.expected, c.used = nil, 0
}

// leave has the server go while some more datagrams come, and return.
func (sc *script) leave(n int) {
	sc.receive(&sc.up)
	sc.receive(&sc.down)
	sc.upstream.Close()
	before := sc.network.arrived.Load()
	for range n {
		sc.sendUp(knocking)
	}
	sc.network.await(sc, int(before)+n)
	sc.upstream = sc.port.open(sc)
}

// nothingMore checks that nothing comes twice.
func (sc *script) nothingMore() {
	sc.Helper()
	for where, sock := range map[string]*net.UDPConn{"client": sc.client, "upstream": sc.upstream} {
		_ = sock.SetReadDeadline(time.Now().Add(time.Millisecond))
		buf := make([]byte, packetSize)
		n, _, err := sock.ReadFromUDPAddrPort(buf)
		for err == nil && string(buf[:n]) == string(knocking) {
			n, _, err = sock.ReadFromUDPAddrPort(buf)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			sc.Errorf("%s: %d bytes too many, %v", where, n, err)
		}
	}
}

// All datagrams arrive, whole, once and in order, however they are mixed, and whenever the server comes back.
func FuzzPackets(f *testing.F) {
	for seed := range byte(24) {
		f.Add(bytesOf(seed, 4+int(seed)))
	}
	f.Fuzz(func(t *testing.T, codes []byte) {
		if len(codes) == 0 || len(codes) > 100 {
			t.Skip("empty or too long")
		}
		for _, p := range packetEngines {
			playPackets(t, p, codes)
		}
	})
}
