package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// A hundred thousand clients that do not exist fill the table of sessions again and again. Those that were there before, and TCP, do
// not notice, and nothing is left of it.
func TestFloodOfForgedAddressesIsContained(t *testing.T) {
	const (
		clients, atOnce            = 100_000, 5000
		established                = 20
		maxSessions, maxEachClient = 500, 50
		slowest                    = 500 * time.Millisecond // for an exchange beside the flood, on a machine that is busy with it
		heapGrowsKiB               = 1024
		residentGrowsKiB           = 16 << 10
	)
	far := newNamespace(t)
	forged := newForger(t, far)
	addr := net.JoinHostPort(far.outside, fmt.Sprint(gate.ReservePort(t)))
	tcp := gate.ReserveAddr(t)
	var seen sources
	var silent atomic.Bool
	upstream := serveUDP(t, func(from netip.AddrPort, b []byte) []byte {
		if len(b) == forgedSize { // half of them get an answer, which nobody has asked for
			if silent.Store(!silent.Load()); silent.Load() {
				return nil
			}
			return b
		}
		return seen.echo(from, b)
	})
	config := gate.Layer4(gate.ListenUDP(addr, gate.Forward(upstream).With("idle_timeout", "2s")), gate.Listen(tcp, gate.Forward(serve(t, echo)))).
		WithApp("portgate", gate.JSON{"udp_max_sessions": maxSessions, "udp_max_sessions_per_client": maxEachClient}).
		// Without the access log, which would be 40 MB.
		With("logging", gate.JSON{"logs": gate.JSON{"default": gate.JSON{"exclude": []string{"layer4.log.access"}}}})
	p := gate.Start(t, config, gate.WithoutRace())
	listener := label("listener", addr)
	total := 0
	received := func() float64 {
		return p.Metrics().Sum("caddy_portgate_datagrams_total", listener, label("direction", "up"))
	}
	send := func(n int) { // and wait until the process has all that the kernel gives it
		t.Helper()
		forged.send(t, addr, total, n)
		total += n
		for last, now := -1.0, received(); now > last && now < float64(total); last, now = now, received() {
			<-time.After(5 * time.Millisecond)
		}
	}
	quiet := func() {
		t.Helper()
		gate.Eventually(t, 10*time.Second, func() error { return equal(p.Metrics(), "caddy_portgate_sessions_active", 0, listener) })
	}
	send(atOnce) // what is made once and kept is made
	must(t, oneRequest(tcp))
	quiet()
	before, heap, resident := p.Baseline(), p.HeapKiB(), p.ResidentKiB()

	var friends []*asker
	for range established {
		conn := dialUDP(t, addr)
		for range 3 { // it has spoken after a reply
			mustExchange(t, conn)
		}
		friends = append(friends, startAsking(conn, 100*time.Millisecond))
	}
	streams := openMany(t, tcp, established)
	var stop atomic.Bool
	chatted := make(chan error, 1)
	var took []time.Duration
	go func() {
		var err error
		for !stop.Load() && err == nil {
			var part []time.Duration
			part, err = chat(streams, 100*time.Millisecond, 100*time.Millisecond)
			took = append(took, part...)
			err = errors.Join(err, oneRequest(tcp))
		}
		chatted <- err
	}()
	start := time.Now()
	most := 0.0
	for total < atOnce+clients {
		send(atOnce)
		most = max(most, p.Metrics().Sum("caddy_portgate_sessions_active", listener))
	}
	elapsed := time.Since(start)
	stop.Store(true)
	must(t, within(t, peerTimeout, "TCP beside the flood", chatted))

	sent, answered, longest := 0, 0, time.Duration(0)
	for _, friend := range friends {
		n, took := friend.finish(t)
		sent, answered = sent+n, answered+len(took)
		longest = max(longest, took[len(took)-1])
	}
	evicted := p.Metrics().Sum("caddy_portgate_udp_sessions_evicted_total", listener)
	worst := slices.Max(took)
	t.Logf("%d datagrams in %v: at most %v sessions, %v evicted; established sessions: %d of %d answered, after %v at most; TCP: after %v at most",
		clients, elapsed.Round(time.Millisecond), most, evicted, answered, sent, longest, worst)
	if most > maxSessions || most < maxSessions/2 {
		t.Errorf("up to %v sessions, want up to %d", most, maxSessions)
	}
	if evicted < clients*9/10 || evicted > clients+atOnce {
		t.Errorf("%v sessions were evicted, want nearly one for each of %d datagrams, of which %v came", evicted, clients, received())
	}
	if n := seen.count(); n != established {
		t.Errorf("%d upstream sockets for %d established sessions", n, established)
	}
	if answered < sent*99/100 {
		t.Errorf("%d of %d datagrams of established sessions were answered", answered, sent)
	}
	if worst > slowest {
		t.Errorf("an exchange over TCP has taken %v, want at most %v", worst, slowest)
	}
	for _, stream := range streams {
		mustExchange(t, stream)
		reset(stream)
	}
	for _, friend := range friends {
		friend.conn.Close()
	}
	quiet()
	before.MustReturn(t, 20*time.Second)
	gate.Eventually(t, 20*time.Second, func() error {
		if h, r := p.HeapKiB(), p.ResidentKiB(); h > heap+heapGrowsKiB || r > resident+residentGrowsKiB {
			return fmt.Errorf("heap %d KiB (was %d), resident %d KiB (was %d)", h, heap, r, resident)
		}
		return nil
	})
	t.Logf("heap %d KiB (was %d), resident %d KiB (was %d)", p.HeapKiB(), heap, p.ResidentKiB(), resident)
}

// forger sends datagrams with addresses that are not its own.
type forger struct {
	fd   int
	from netip.Addr // the first of a thousand and 24
}

const (
	forgedAddrs = 1024
	forgedSize  = 32
)

// newForger makes one in the namespace, to which all of its addresses lead.
func newForger(t testing.TB, n namespace) *forger {
	t.Helper()
	// From the second half of what is for tests of network devices, a part for each of a few tests that run at the same time.
	f := &forger{from: netip.AddrFrom4([4]byte{198, 19, byte(n.id) &^ 3, 0})}
	ip := program(t, "ip")
	run(t, ip, "route", "add", f.from.String()+"/22", "via", n.inside, "dev", n.near)
	n.do(t, func() (err error) {
		f.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	t.Cleanup(func() { unix.Close(f.fd) })
	return f
}

// send sends n datagrams, from another client each. Clients are numbered.
func (f *forger) send(t testing.TB, to string, first, n int) {
	t.Helper()
	const (
		ipHeader, udpHeader = 20, 8
		size                = ipHeader + udpHeader + forgedSize
		lowestPort          = 1024
	)
	dst := netip.MustParseAddrPort(to)
	packet := make([]byte, size)
	packet[0] = 4<<4 | ipHeader/4 // RFC 791, section 3.1; the kernel adds the checksum
	packet[8] = 64
	packet[9] = unix.IPPROTO_UDP
	copy(packet[16:], dst.Addr().AsSlice())
	udp := packet[ipHeader:]
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], udpHeader+forgedSize) // and no checksum, as RFC 768 allows
	addr := &unix.SockaddrInet4{Addr: dst.Addr().As4()}
	from := f.from.As4()
	for i := first; i < first+n; i++ {
		binary.BigEndian.PutUint32(packet[12:], binary.BigEndian.Uint32(from[:])+uint32(i%forgedAddrs))
		binary.BigEndian.PutUint16(udp, uint16(lowestPort+i/forgedAddrs))
		if err := unix.Sendto(f.fd, packet, 0, addr); err != nil {
			t.Fatalf("sending a forged datagram: %v", err)
		}
	}
}
