package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// A hundred thousand clients that do not exist fill the table of sessions again and again. Those that were there before, and TCP, do
// not notice, and nothing is left of it.
func TestFloodOfForgedAddressesIsContained(t *testing.T) {
	const (
		clients, atOnce  = 100_000, 5000
		established      = 20
		slowest          = 250 * time.Millisecond // for nine of ten exchanges beside the flood, and what they take without a gateway
		otherDescriptors = 20                     // of the TCP sessions that are opened one after the other, and of what asks
		heapGrowsKiB     = 1024
		residentGrowsKiB = 16 << 10
	)
	f := startForgedFlood(t)
	f.send(t, atOnce) // what is made once and kept is made
	must(t, oneRequest(f.tcp))
	f.waitForTheEnd(t)
	before, heap, resident := f.p.Baseline(), f.p.HeapKiB(), f.p.ResidentKiB()

	friends := make([]*asker, established)
	for i := range friends {
		conn := dialUDP(t, f.addr)
		for range 3 { // it has spoken after a reply
			mustExchange(t, conn)
		}
		friends[i] = startAsking(conn, 100*time.Millisecond)
	}
	streams, direct := openMany(t, f.tcp, established), openMany(t, f.echo, established)
	stop, chatted := make(chan struct{}), make(chan result, 2)
	var took, tookDirect []time.Duration
	go func() {
		var err error
		took, err = chatUntil(stop, f.tcp, streams)
		chatted <- result{err: err}
	}()
	go func() {
		var err error
		tookDirect, err = chatUntil(stop, f.echo, direct)
		chatted <- result{err: err}
	}()
	descriptors := f.p.Descriptors()
	f.most, f.mostDescriptors = 0, 0
	start := time.Now()
	for f.sent < atOnce+clients {
		f.send(t, atOnce)
	}
	most, mostDescriptors := f.most, f.mostDescriptors-descriptors
	elapsed := time.Since(start)
	close(stop)
	for range 2 {
		must(t, within(t, peerTimeout, "TCP beside the flood", chatted).err)
	}
	slices.Sort(took)
	slices.Sort(tookDirect)
	evicted, p90, p90Direct := f.p.Metrics().Sum("caddy_portgate_udp_sessions_evicted_total", f.listener), percentile(took, 90), percentile(tookDirect, 90)
	t.Logf("%d datagrams in %v: at most %v sessions and %d descriptors, %v evicted; TCP: p90 of an exchange is %v, the longest %v, without the gateway %v",
		clients, elapsed.Round(time.Millisecond), most, mostDescriptors, evicted, p90, took[len(took)-1], p90Direct)
	if most > f.maxSessions || most < f.maxSessions/2 { // those that end are among them
		t.Errorf("up to %v sessions, want up to %v", most, f.maxSessions)
	}
	if limit := int(f.maxSessions) + otherDescriptors; mostDescriptors > limit {
		t.Errorf("up to %d descriptors more than before, want up to %d", mostDescriptors, limit)
	}
	if evicted < clients*8/10 || evicted > clients+atOnce {
		t.Errorf("%v sessions were evicted, want nearly one for each of %d datagrams, of which %v came", evicted, clients, f.received())
	}
	if p90 > slowest+p90Direct {
		t.Errorf("p90 of an exchange over TCP is %v, want at most %v more than the %v without the gateway", p90, slowest, p90Direct)
	}
	f.mustHaveSurvived(t, friends)
	for _, stream := range streams {
		mustExchange(t, stream)
		reset(stream)
	}
	f.waitForTheEnd(t)
	before.MustReturn(t, peerTimeout)
	gate.Eventually(t, peerTimeout, func() error {
		if h, r := f.p.HeapKiB(), f.p.ResidentKiB(); h > heap+heapGrowsKiB || r > resident+residentGrowsKiB {
			return fmt.Errorf("heap %d KiB (was %d), resident %d KiB (was %d)", h, heap, r, resident)
		}
		return nil
	})
}

// chatUntil exchanges messages on the streams, and opens new ones, and returns how long the exchanges took.
func chatUntil(stop <-chan struct{}, addr string, streams []*net.TCPConn) (took []time.Duration, err error) {
	const every = 100 * time.Millisecond
	for err == nil {
		var part []time.Duration
		part, err = chat(streams, every, every)
		took = append(took, part...)
		err = errors.Join(err, oneRequest(addr))
		select {
		case <-stop:
			return took, err
		default:
		}
	}
	return took, err
}

// forgedFlood is a process with a small table of sessions, and somebody who fills it.
type forgedFlood struct {
	p                   *gate.Process
	addr, listener, tcp string
	echo                string // the upstream of tcp
	maxSessions         float64
	forger              *forger
	sent                int
	seen                sources // of all that is not forged
	most                float64 // sessions, whenever we looked
	mostDescriptors     int
}

func startForgedFlood(t testing.TB) *forgedFlood {
	t.Helper()
	const maxSessions, maxEachClient = 500, 50
	far := newNamespace(t)
	addr := net.JoinHostPort(far.outside, fmt.Sprint(gate.ReservePort(t)))
	f := &forgedFlood{addr: addr, listener: label("listener", addr), tcp: gate.ReserveAddr(t), echo: serve(t, echo), maxSessions: maxSessions, forger: newForger(t, far)}
	answer := false
	upstream := serveUDP(t, func(from netip.AddrPort, b []byte) []byte {
		if len(b) != forgedSize {
			return f.seen.echo(from, b)
		}
		if answer = !answer; answer { // nobody has asked for it
			return b
		}
		return nil
	})
	f.p = gate.Start(t, gate.Layer4(
		gate.ListenUDP(addr, gate.Forward(upstream).With("idle_timeout", "2s")), gate.Listen(f.tcp, gate.Forward(f.echo)),
	).WithApp("portgate", gate.JSON{"udp_max_sessions": maxSessions, "udp_max_sessions_per_client": maxEachClient}).
		// Without the access log, which would be 40 MB.
		With("logging", gate.JSON{"logs": gate.JSON{"default": gate.JSON{"exclude": []string{"layer4.log.access"}}}}), gate.WithoutRace())
	return f
}

// received is how many datagrams the process has got. It also notes how much the process has open.
func (f *forgedFlood) received() float64 {
	m := f.p.Metrics()
	f.most = max(f.most, m.Sum("caddy_portgate_sessions_active", f.listener))
	f.mostDescriptors = max(f.mostDescriptors, f.p.Descriptors())
	return m.Sum("caddy_portgate_datagrams_total", f.listener, label("direction", "up"))
}

// send sends n datagrams, and waits until the process has all that the kernel gives it.
func (f *forgedFlood) send(t testing.TB, n int) {
	t.Helper()
	f.forger.send(t, f.addr, f.sent, n)
	f.sent += n
	for last, now := -1.0, f.received(); now > last && now < float64(f.sent); last, now = now, f.received() {
		<-time.After(5 * time.Millisecond)
	}
}

// waitForTheEnd of all sessions.
func (f *forgedFlood) waitForTheEnd(t testing.TB) {
	t.Helper()
	gate.Eventually(t, peerTimeout, func() error { return equal(f.p.Metrics(), "caddy_portgate_sessions_active", 0, f.listener) })
}

func (f *forgedFlood) mustHaveSurvived(t testing.TB, friends []*asker) {
	t.Helper()
	sent, answered, longest := 0, 0, time.Duration(0)
	for _, friend := range friends {
		n, took := friend.finish(t)
		sent, answered = sent+n, answered+len(took)
		longest = max(longest, slices.Max(took))
		friend.conn.Close()
	}
	t.Logf("established sessions: %d of %d messages answered, after %v at most", answered, sent, longest)
	if answered < sent*99/100 {
		t.Errorf("%d of %d datagrams of established sessions were answered", answered, sent)
	}
	if n := f.seen.count(); n != len(friends) {
		t.Errorf("%d upstream sockets for %d established sessions", n, len(friends))
	}
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
	if err := f.trySend(to, first, n); err != nil {
		t.Fatalf("sending a forged datagram: %v", err)
	}
}

func (f *forger) trySend(to string, first, n int) error {
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
			return err
		}
	}
	return nil
}
