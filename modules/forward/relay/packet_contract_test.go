package relay

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestPacketEngineThatServes(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		s := p.open(t)
		s.relay.mu.Lock()
		got := fmt.Sprintf("%T", s.relay.engine)
		s.relay.mu.Unlock()
		want := "*relay.goroutinePackets"
		if p.loop {
			want = "*relay.loopPackets"
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

// A client waits for an answer from its datagram on until a reply is sent. One that has never got any does not expect one after a while.
func TestUnansweredPackets(t *testing.T) {
	overPackets(t, packetEngines, func(t *testing.T, p packetPair) {
		sock := p.listen(t)
		s := p.start(t, always(sock.LocalAddr()))
		s.upstream = sock
		for range 3 {
			s.up([]byte("question"))
			if !s.relay.Unanswered(time.Hour) || s.relay.Unanswered(time.Nanosecond) {
				t.Error("the client does not wait for an answer, or for ever")
			}
			s.down([]byte("answer"))
			eventually(t, "answered", func() bool { return !s.relay.Unanswered(time.Hour) })
		}
		const within = 500 * time.Millisecond
		report := p.start(t, always(sock.LocalAddr()))
		report.upstream = sock
		report.up([]byte("first"))
		eventually(t, "age", func() bool { return report.relay.age() > within })
		report.up([]byte("second"))
		if report.relay.Unanswered(within) {
			t.Error("a client that only reports is waited for")
		}
	})
}

// numbered is the i-th of many datagrams.
func numbered(i int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(i)) }

// More come at once than are moved in a round.
func TestPacketBurstsStayInOrder(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		const bursts, size = 20, 100
		s := p.open(t)
		for burst := range bursts {
			for i := range size {
				s.sendUp(numbered(burst*size + i))
				s.sendDown(numbered(burst*size + i))
			}
			for i := range size {
				s.wantUp(numbered(burst*size + i))
				s.wantDown(numbered(burst*size + i))
			}
		}
		s.relay.Close(adminClosed)
		r := s.want(adminClosed)
		if want := int64(1 + bursts*size); r.DatagramsUp != want || r.DatagramsDown != want || r.Dropped != 0 {
			t.Errorf("%+v, want %d datagrams each way", r, want)
		}
	})
}

func TestManyPacketSessionsAtOnce(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		var all sync.WaitGroup
		for i := range 30 {
			s := p.open(t)
			all.Go(func() {
				for j := range 50 {
					s.exchange(numbered(i*1000 + j))
				}
			})
		}
		all.Wait()
	})
}

// What matchers have read comes first and once. A network that relays attach to gives it itself.
func TestPrefetchedPacketsComeFirst(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		sock := p.listen(t)
		var first [][]byte
		for i := range 5 {
			first = append(first, numbered(i))
		}
		s := p.prepare(t, always(sock.LocalAddr()), func(c *PacketConfig) {
			if !p.loop {
				c.Prefetched = first
			}
		})
		s.upstream = sock
		if p.loop {
			for _, b := range first {
				s.sendUp(b)
			}
			s.network.await(t, len(first))
		}
		s.run()
		s.sendUp(numbered(5))
		for i := range 6 {
			s.wantUp(numbered(i))
		}
		s.exchange([]byte("end"))
	})
}

func TestPacketStats(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		before := time.Now()
		s := p.open(t)
		s.up(make([]byte, 1000))
		for range 3 {
			s.down(make([]byte, 500))
		}
		eventually(t, "counts", func() bool {
			stats := s.relay.Stats()
			return stats.BytesUp == 1005 && stats.BytesDown == 1505 && stats.DatagramsUp == 2 && stats.DatagramsDown == 4
		})
		first := s.relay.Stats().LastActive
		if first.Before(before) || first.After(time.Now()) {
			t.Errorf("last active at %s, in a test that began at %s", first, before)
		}
		time.Sleep(time.Millisecond) // to be seen on any clock
		s.exchange(nil)
		eventually(t, "activity", func() bool { return s.relay.Stats().LastActive.After(first) })
		s.relay.Close(adminClosed)
		r := s.want(adminClosed)
		if r.Err != nil || r.Connect <= 0 || r.Connect > time.Since(before) {
			t.Errorf("result %+v", r)
		}
		if p.loop && s.network.answers.Load() != 1 {
			t.Errorf("Answered was called %d times", s.network.answers.Load())
		}
	})
}

func TestMaxReplies(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		const most = 50 // more than are moved in a round
		s := p.open(t, func(c *PacketConfig) { c.MaxReplies = most })
		for i := range most + 20 {
			s.sendDown(numbered(i))
		}
		for i := range most - 1 { // one came when it was opened
			s.wantDown(numbered(i))
		}
		if r := s.want(MaxReplies); r.DatagramsDown != most {
			t.Errorf("%d replies, want %d", r.DatagramsDown, most)
		}
		_ = s.client.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if n, err := s.client.Read(make([]byte, 10)); err == nil {
			t.Errorf("a reply of %d bytes too many", n)
		}
	})
}

// Each datagram of the client has its replies: what is under way is not cut off by the answer to another.
func TestMaxRepliesIsForEachDatagram(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		const each, asked = 2, 30
		s := p.open(t, func(c *PacketConfig) { c.MaxReplies = each }) // one of the first two is there
		for i := range asked {
			s.sendUp(numbered(i))
			s.wantUp(numbered(i))
		}
		const replies = each*(asked+1) - 1
		for i := range replies {
			s.sendDown(numbered(i))
		}
		for i := range replies {
			s.wantDown(numbered(i))
		}
		if r := s.want(MaxReplies); r.DatagramsDown != replies+1 {
			t.Errorf("%d replies, want %d", r.DatagramsDown, replies+1)
		}
	})
}

// What a limit has dropped is not answered, so the session does not wait for the answer.
func TestMaxRepliesIsNotForWhatWasDropped(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		var passes atomic.Bool
		passes.Store(true)
		s := p.open(t, func(c *PacketConfig) {
			c.MaxReplies = 2
			c.AllowUp = func(int) bool { return passes.Load() }
		})
		passes.Store(false)
		for i := range 3 {
			s.sendUp(numbered(i))
		}
		eventually(t, "three datagrams are dropped", func() bool { return s.relay.Stats().Dropped == 3 })
		s.sendDown(numbered(0)) // open has had the other
		s.wantDown(numbered(0))
		s.want(MaxReplies)
	})
}

// A client that has sent ten billion datagrams has more replies left than can be counted.
func TestMaxRepliesOfAClientThatAsksForLong(t *testing.T) {
	overPackets(t, packetEngines, func(t *testing.T, p packetPair) {
		s := p.open(t, func(c *PacketConfig) { c.MaxReplies = 1_000_000_000 })
		s.relay.requests.Store(10_000_000_000)
		s.exchange([]byte("hello"))
		s.exchange([]byte("hello"))
	})
}

// Until the client has answered a reply it gets no more than its share, also of many that come at once.
func TestMaxReplyRatio(t *testing.T) {
	overPackets(t, packetPairs, func(t *testing.T, p packetPair) {
		sock := p.listen(t)
		s := p.start(t, always(sock.LocalAddr()), func(c *PacketConfig) { c.MaxReplyRatio = 2.5 })
		s.upstream = sock
		s.up(make([]byte, 100))
		for range 4 {
			s.sendDown(make([]byte, 100))
		}
		s.sendDown(make([]byte, 50))
		s.wantDown(make([]byte, 100))
		s.wantDown(make([]byte, 100))
		s.wantDown(make([]byte, 50))
		eventually(t, "drops", func() bool { return s.dropped(DropReplyRatio) == 2 })
		s.up(make([]byte, 1))
		for range 10 {
			s.down(make([]byte, 10_000))
		}
		s.relay.Close(adminClosed)
		if r := s.want(adminClosed); r.Dropped != 2 {
			t.Errorf("%d dropped, want 2", r.Dropped)
		}
	})
}

// unclosable is a client whose Close never returns, as that of a session of a server that is gone.
type unclosable struct {
	net.Conn
	closing chan struct{}
}

func (d unclosable) Close() error {
	_ = d.Conn.Close()
	<-d.closing
	return nil
}

func TestPacketClientThatIsNeverClosed(t *testing.T) {
	t.Parallel()
	upstream, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = upstream.Close() }()
	ours, theirs := net.Pipe()
	defer func() { _ = theirs.Close() }()
	client := unclosable{ours, make(chan struct{})}
	t.Cleanup(func() { close(client.closing) })
	done := make(chan PacketResult, 1)
	r := NewPacket(PacketConfig{
		Client: client,
		Next:   func(context.Context, error) (net.Addr, error) { return upstream.LocalAddr(), nil },
		Done:   func(result PacketResult) { done <- result },
	})
	go r.Run()
	r.Close("test")
	select {
	case result := <-done:
		if result.Reason != "test" {
			t.Errorf("ended because of %s", result.Reason)
		}
	case <-time.After(patience):
		t.Error("Done was not called")
	}
}
