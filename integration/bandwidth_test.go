package integration

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// A bandwidth holds in each direction, for one session and for four that share it, on both of forward's engines: 10 MB at
// 1 MB/s take no less than 9.9 s, and no more than a busy machine makes of it. All of that goes on at the same time, through
// listeners of one process.
func TestBandwidth(t *testing.T) {
	t.Parallel()
	const (
		total = 10_000_000 // with a burst of a tenth of a second
		takes = 9900 * time.Millisecond
	)
	type through struct {
		network, direction string
		sessions           int
		addr               string
		accepted           <-chan *net.TCPConn
	}
	var all []through
	var listeners []gate.Server
	for _, network := range []string{"gate+tcp", "tcp"} {
		for _, direction := range []string{"up", "down"} {
			for _, sessions := range []int{1, 4} {
				upstream, accepted := accepting(t)
				c := through{network, direction, sessions, gate.ReserveAddr(t), accepted}
				all = append(all, c)
				listeners = append(listeners, gate.Listen(network+"/"+c.addr,
					rateLimit(`{"bandwidth": [{"direction": "`+direction+`", "rate": "1MB/s", "per": "ip"}]}`).With("name", c.addr), gate.Forward(upstream)))
			}
		}
	}
	gate.Start(t, gate.Layer4(listeners...))
	var transfers sync.WaitGroup
	for _, c := range all {
		from, to := make([]*net.TCPConn, c.sessions), make([]*net.TCPConn, c.sessions)
		for i := range c.sessions {
			if from[i], to[i] = pair(t, c.addr, c.accepted); c.direction == "down" {
				from[i], to[i] = to[i], from[i]
			}
		}
		transfers.Go(func() {
			took := transfer(t, total/int64(c.sessions), from, to)
			if last := slices.Max(took); last < takes*99/100 || last > 3*takes {
				t.Errorf("%s, %s: 10 MB at 1 MB/s took %v in %d sessions", c.network, c.direction, last, c.sessions)
			}
			if first := slices.Min(took); first < slices.Max(took)*6/10 { // in turns they end together, else one after another
				t.Errorf("%s, %s: shares that are not fair: %v", c.network, c.direction, took)
			}
		})
	}
	transfers.Wait()
}

// transfer sends n bytes from each connection to its other end, and returns how long each took.
func transfer(t *testing.T, n int64, from, to []*net.TCPConn) []time.Duration {
	took := make([]time.Duration, len(from))
	var all sync.WaitGroup
	start := time.Now()
	for i := range from {
		all.Go(func() {
			sent := sending(from[i], n)
			got, err := receive(to[i])
			took[i] = time.Since(start)
			if s := <-sent; s.err != nil || err != nil || got != s.stream {
				t.Errorf("sent %d bytes (%v), received %d (%v)", s.bytes, s.err, got.bytes, err)
			}
		})
	}
	all.Wait()
	return took
}

// 1,000 bytes at 250 B/s take at least 3 seconds; a few bytes are not delayed.
func TestSlowBandwidth(t *testing.T) {
	t.Parallel()
	onEachNetwork(t, func(t *testing.T, network string) {
		upstream, accepted := accepting(t)
		addr := gate.ReserveAddr(t)
		gate.Start(t, gate.Layer4(gate.Listen(network+"/"+addr,
			rateLimit(`{"bandwidth": [{"direction": "up", "rate": "250B/s"}, {"direction": "down", "rate": "250B/s"}]}`), gate.Forward(upstream))))
		client, server := pair(t, addr, accepted)
		gate.Eventually(t, peerTimeout, func() error { // one of several, because the machine may be busy with something else
			<-time.After(50 * time.Millisecond) // which is worth 12 bytes
			start := time.Now()
			mustWrite(t, client, "tiny")
			mustRead(t, server, "tiny")
			if took := time.Since(start); took > 100*time.Millisecond {
				return fmt.Errorf("4 bytes took %v", took)
			}
			return nil
		})
		var both sync.WaitGroup
		for _, ends := range [][2]*net.TCPConn{{client, server}, {server, client}} {
			both.Go(func() {
				start := time.Now()
				text := strings.Repeat("x", 1000)
				_, err := io.WriteString(ends[0], text)
				if _, readErr := io.ReadFull(ends[1], make([]byte, len(text))); err != nil || readErr != nil {
					t.Error(err, readErr)
				}
				if took := time.Since(start); took < 3*time.Second {
					t.Errorf("1,000 bytes took %v", took)
				}
			})
		}
		both.Wait()
	})
}

// A rate of 0 is no limit.
func TestBandwidthOfZero(t *testing.T) {
	t.Parallel()
	onEachNetwork(t, func(t *testing.T, network string) {
		_, addr := startLimited(t, network, `{"bandwidth": [{"direction": "both", "rate": "0"}], "concurrent": [{"max": 5}]}`)
		conn := dial(t, addr)
		sent := sending(conn, 50*mib)
		got, err := receive(conn)
		mustArrive(t, "both", <-sent, result{got, err}, 50*mib)
	})
}

// Datagrams can't be held back, so those of a session's pauses are dropped. The sessions of one client share its bandwidth all the
// same: who sends too much has what others who do so have, and who sends little loses little. How exactly, TestSharesOfDatagrams
// says: here the processors may have other things to do, for the senders as for the gate.
func TestBandwidthOfDatagramsIsShared(t *testing.T) {
	t.Parallel()
	const (
		rate   = 100_000 // bytes/s, with a burst of a tenth of that
		lasts  = 4 * time.Second
		greedy = 400 // bytes at a time, 500 times a second: twice the rate
		modest = 100 // 50 times a second: a twentieth of the rate
	)
	type through struct{ network, direction, addr string }
	var all []through
	var listeners []gate.Server
	streams := newDatagramStreams(t)
	for _, network := range []string{"gate+udp", "udp"} {
		for _, direction := range []string{"up", "down"} {
			c := through{network, direction, gate.ReserveAddr(t)}
			all = append(all, c)
			listeners = append(listeners, gate.Listen(network+"/"+c.addr,
				rateLimit(fmt.Sprintf(`{"bandwidth": [{"direction": %q, "rate": "%dB/s", "per": "ip"}]}`, direction, rate)).With("name", c.addr),
				gate.Forward(streams.upstream.LocalAddr().String())))
		}
	}
	gate.Start(t, gate.Layer4(listeners...))
	var transfers sync.WaitGroup
	for _, c := range all {
		sessions := [3]*datagramStream{}
		for i := range sessions {
			sessions[i] = streams.open(t, c.addr, c.direction == "up")
		}
		transfers.Go(func() {
			var senders sync.WaitGroup
			start := time.Now()
			senders.Go(func() { sessions[0].send(greedy, 2*time.Millisecond, lasts) })
			senders.Go(func() { sessions[1].send(greedy, 2*time.Millisecond, lasts) })
			senders.Go(func() { sessions[2].send(modest, 20*time.Millisecond, lasts) })
			senders.Wait()
			may := rate * (time.Since(start).Seconds() + .1)
			var sum, sent float64
			var share [3]float64 // of what each has sent
			for i, s := range sessions {
				got := float64(s.got.Load())
				sum, sent, share[i] = sum+got, sent+float64(s.sent), got/float64(s.sent)
			}
			t.Logf("%s, %s: %.1f %% of what may, and of what was sent %.2f", c.network, c.direction, 100*sum/may, share)
			if sum < min(may, sent)/2 || sum > may*1.05 {
				t.Errorf("%s, %s: %v of %v bytes arrived, want %v", c.network, c.direction, sum, sent, min(may, sent))
			}
			if a, b := share[0], share[1]; min(a, b) < max(a, b)*6/10 {
				t.Errorf("%s, %s: %.2f and %.2f of what sessions have sent that send the same", c.network, c.direction, a, b)
			}
			if share[2] < min(1.5*max(share[0], share[1]), .9) {
				t.Errorf("%s, %s: %.2f of what was sent by the one that sends little", c.network, c.direction, share[2])
			}
		})
	}
	transfers.Wait()
}

// datagramStreams are sessions of one upstream. The first byte of each datagram says which one it is of.
type datagramStreams struct {
	upstream *net.UDPConn
	all      [64]datagramStream
	opened   int
}

// datagramStream is a session in which one side sends and the other counts.
type datagramStream struct {
	id       byte
	conn     *net.UDPConn                   // the client's
	upstream *net.UDPConn                   // nil where the client sends
	peer     atomic.Pointer[netip.AddrPort] // as the upstream sees it
	sent     int64
	got      atomic.Int64
}

func newDatagramStreams(t testing.TB) *datagramStreams {
	t.Helper()
	s := &datagramStreams{upstream: listenUDP(t, "127.0.0.1:0")}
	answerUDP(t, s.upstream, func(from netip.AddrPort, b []byte) []byte {
		stream := &s.all[b[0]]
		if !stream.peer.CompareAndSwap(nil, &from) && stream.upstream == nil {
			stream.got.Add(int64(len(b)))
		}
		return nil
	})
	return s
}

// open opens a session, and waits until it is there.
func (s *datagramStreams) open(t testing.TB, addr string, up bool) *datagramStream {
	t.Helper()
	stream := &s.all[s.opened]
	stream.id, stream.conn = byte(s.opened), dialUDP(t, addr)
	s.opened++
	if !up {
		stream.upstream = s.upstream
		go stream.count()
	}
	_, err := stream.conn.Write([]byte{stream.id})
	must(t, err)
	gate.Eventually(t, peerTimeout, func() error {
		if stream.peer.Load() == nil {
			return fmt.Errorf("session %d is not there", stream.id)
		}
		return nil
	})
	return stream
}

// count counts what comes to the client until its connection is closed.
func (s *datagramStream) count() {
	b := make([]byte, maxDatagram)
	for {
		n, err := s.conn.Read(b)
		if err != nil {
			return
		}
		s.got.Add(int64(n))
	}
}

// send sends datagrams of that size at that interval.
func (s *datagramStream) send(size int, every, lasts time.Duration) {
	b := make([]byte, size)
	b[0] = s.id
	tick := time.NewTicker(every)
	defer tick.Stop()
	for start := time.Now(); time.Since(start) < lasts; <-tick.C {
		if s.upstream == nil {
			_, _ = s.conn.Write(b)
		} else {
			_, _ = s.upstream.WriteToUDPAddrPort(b, *s.peer.Load())
		}
		s.sent += int64(size)
	}
}
