package network

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/portgate/caddy-portgate/modules/internal/listeners"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// attach returns a client and its session, to which somebody is attached who counts.
func attach(t testing.TB, listen string) (l *packetSocket, client *net.UDPConn, c *PacketSession, received *int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	g := listenUDPOn(ctx, t, listen)
	to := g.Addr().(*net.UDPAddr).AddrPort()
	if to.Addr().IsUnspecified() {
		to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), to.Port())
	}
	client = dialUDP(t, net.UDPAddrFromAddrPort(to))
	say(t, client, "hello")
	detached, _ := accept(t, g).Detach()
	t.Cleanup(func() { _ = detached.Close() })
	c, received = detached.(*PacketSession), new(int)
	c.Attach(func([]byte) bool { *received++; return true }, func(string) {})
	return g.socket.(*packetSocket), client, c, received
}

// stopLoop ends the receive loop, so that the test can receive itself.
func (s *packetSocket) stopLoop(t testing.TB) {
	s.listener.interrupt()
	close(s.stop)
	<-s.stopped
	if err := s.listener.conn.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	s.stop = make(chan struct{}) // for Destruct
}

// What a relay does with ReplyPath reaches the client, from the address that it has sent to.
func TestReplyPath(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		_, client, c, _ := attach(t, listen)
		fd, name, control := c.ReplyPath()
		if (len(control) > 0) != (listen == ":0") {
			t.Errorf("%s: a control message of %d bytes", listen, len(control))
		}
		if err := sendTo(fd, name, control, []byte("reply")); err != nil {
			t.Errorf("%s: %v", listen, err)
		}
		c.Answered()
		hear(t, client, "reply")
	}
}

func sendTo(fd int, name, control, b []byte) error {
	vector := unix.Iovec{Base: unsafe.SliceData(b)}
	vector.SetLen(len(b))
	message := unix.Msghdr{Name: unsafe.SliceData(name), Namelen: uint32(len(name)), Iov: &vector, Control: unsafe.SliceData(control)}
	message.SetIovlen(1)
	message.SetControllen(len(control))
	_, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&message)), unix.MSG_DONTWAIT)
	if errno != 0 {
		return errno
	}
	return nil
}

// Once the listener has gone, nothing leaves on the descriptor, which stays the session's until it is closed.
func TestReplyPathAfterTheListener(t *testing.T) {
	t.Parallel()
	g := listenUDPOn(config(t), t, freeUDPAddress(t))
	client := dialUDP(t, g.Addr())
	say(t, client, "hello")
	detached, _ := accept(t, g).Detach()
	c := detached.(*PacketSession)
	fd, name, control := c.ReplyPath()
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sendTo(fd, name, control, []byte("reply")); err != unix.ENOTSOCK {
		t.Errorf("got %v, want %v", err, unix.ENOTSOCK)
	}
	if _, err := c.Write([]byte("reply")); err == nil {
		t.Error("a write after the end")
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		t.Errorf("the descriptor: %v", err)
	}
	_ = c.Close()
}

// The kernel may give less than what is asked for, but not less than to everybody.
func TestSocketBuffers(t *testing.T) {
	t.Parallel()
	s, _, _, _ := attach(t, "127.0.0.1:0")
	other := dialUDP(t, s.Addr())
	raw, err := other.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
		var usual int
		_ = raw.Control(func(fd uintptr) { usual, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, option) })
		if size, err := unix.GetsockoptInt(s.listener.fd, unix.SOL_SOCKET, option); err != nil || size <= usual {
			t.Errorf("option %d: %d, %v, where others have %d", option, size, err, usual)
		}
	}
}

// What recvmmsg could not fit is not passed on as if it were whole.
func TestTruncatedIsDropped(t *testing.T) {
	t.Parallel()
	s, client, _, received := attach(t, freeUDPAddress(t))
	s.stopLoop(t)
	b := batches.New().(*batch)
	for i := range b.vectors {
		b.vectors[i].SetLen(3)
	}
	s.listener.batch = b
	say(t, client, "four")
	say(t, client, "abc")
	*received = 0
	s.listener.deliver = s.deliver
	for *received == 0 {
		if s.listener.batch == nil {
			s.listener.batch = b
		}
		if s.listener.tryReceive(uintptr(s.listener.fd)); s.listener.err != nil {
			t.Fatal(s.listener.err)
		}
	}
	for i := range b.vectors { // it may be in the pool
		b.vectors[i].SetLen(maxDatagram)
	}
	if dropped := s.settings.Load().counts.Dropped[listeners.DropTruncated].Load(); *received != 1 || dropped != 1 {
		t.Errorf("%d were received, %d dropped", *received, dropped)
	}
}

// The way of a datagram allocates nothing once the session is there.
func TestReceivingAllocatesNothing(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		s, client, c, received := attach(t, listen)
		s.stopLoop(t)
		s.listener.deliver = s.deliver
		*received = 0
		b := []byte("sixty-four bytes")
		fd := 0
		raw, err := client.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(f uintptr) { fd = int(f) })
		allocs := testing.AllocsPerRun(500, func() {
			_, _ = unix.Write(fd, b)
			s.listener.tryReceive(uintptr(s.listener.fd))
			c.Answered()
		})
		if allocs != 0 && !raceDetector { // with which a pool drops some of what it is given
			t.Errorf("%s: %v allocations", listen, allocs)
		}
		if *received != 501 {
			t.Errorf("%s: %d were received", listen, *received)
		}
	}
}

// TestUDPNothingIsLeft is not parallel, so that no other test opens descriptors meanwhile.
func TestUDPNothingIsLeft(t *testing.T) {
	warm := listenUDPOn(config(t), t, "127.0.0.1:0") // opens what the runtime keeps
	_ = warm.Close()
	before := openDescriptors(t)
	address := freeUDPAddress(t)
	for range 50 {
		g := listenUDPOn(config(t), t, address)
		client := dialUDP(t, g.Addr())
		say(t, client, "accepted")
		conn := accept(t, g)
		ended := make(chan string, 1)
		detached, _ := conn.Detach()
		detached.(*PacketSession).Attach(receiveNothing, func(reason string) { ended <- reason })

		reader := dialUDP(t, g.Addr())
		say(t, reader, "read")
		read := accept(t, g)
		hear(t, read, "read")
		eof := make(chan error, 1)
		go func() {
			_, err := read.Read(make([]byte, 1))
			eof <- err
		}()

		pending := dialUDP(t, g.Addr())
		say(t, pending, "pending")
		for len(g.socket.(*packetSocket).accepted) == 0 {
			time.Sleep(time.Millisecond)
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		if reason, want := <-ended, session.ReasonOfConfigsEnd(); reason != want {
			t.Errorf("ended by %q, want %q", reason, want)
		}
		if err := <-eof; err == nil {
			t.Error("a read gave something after the end")
		}
		// The address is free, though the handlers have not closed their sessions yet.
		again := listenUDPOn(config(t), t, address)
		_ = again.Close()
		for _, c := range []net.Conn{detached, read, client, reader, pending} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// FuzzLocalAddress reads any bytes as the control messages of a datagram.
func FuzzLocalAddress(f *testing.F) {
	var c controlMessage
	c.setLocalAddress(unix.AF_INET, &fiveTuple{local: mappedTo(7)})
	f.Add(unsafe.Slice((*byte)(unsafe.Pointer(&c)), unix.CmsgSpace(unix.SizeofInet4Pktinfo)))
	c = controlMessage{}
	c.setLocalAddress(unix.AF_INET6, &fiveTuple{local: [16]byte{0: 0x20, 15: 1}})
	f.Add(unsafe.Slice((*byte)(unsafe.Pointer(&c)), unix.CmsgSpace(unix.SizeofInet6Pktinfo)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c controlBuffer
		for i := range b {
			if i < 8*len(c) {
				*(*byte)(unsafe.Add(unsafe.Pointer(&c), i)) = b[i]
			}
		}
		size := min(len(b), 8*len(c))
		got := c.localAddress(size)
		if want := slowLocalAddress(unsafe.Slice((*byte)(unsafe.Pointer(&c)), size)); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// slowLocalAddress is the oracle: it counts bytes, as the header is on 64-bit systems.
func slowLocalAddress(b []byte) (local [16]byte) {
	for len(b) >= unix.SizeofCmsghdr {
		size := binary.NativeEndian.Uint64(b)
		level, kind := binary.NativeEndian.Uint32(b[8:]), binary.NativeEndian.Uint32(b[12:])
		if size < 16 || size > uint64(len(b)) {
			break
		}
		data := b[16:size]
		if level == unix.IPPROTO_IP && kind == unix.IP_PKTINFO && len(data) >= 12 {
			return netip.AddrFrom4([4]byte(data[4:8])).As16()
		}
		if level == unix.IPPROTO_IPV6 && kind == unix.IPV6_PKTINFO && len(data) >= 20 {
			local = [16]byte(data)
		}
		b = b[min((size+7)/8*8, uint64(len(b))):]
	}
	if netip.AddrFrom16(local).IsMulticast() {
		return [16]byte{}
	}
	return local
}

func BenchmarkReceive(b *testing.B) {
	s, client, _, received := attach(b, "127.0.0.1:0")
	s.stopLoop(b)
	s.listener.deliver = s.deliver
	payload := make([]byte, 64)
	raw, err := client.SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	fd := 0
	_ = raw.Control(func(f uintptr) { fd = int(f) })
	b.ReportAllocs()
	*received = 0
	for *received < b.N {
		b.StopTimer()
		for range batchSize {
			_, _ = unix.Write(fd, payload)
		}
		b.StartTimer()
		for s.listener.tryReceive(uintptr(s.listener.fd)) {
		}
	}
}

func BenchmarkDeliver(b *testing.B) {
	s := newTestSocket(defaultLimits)
	for n := range 1000 {
		s.arrive(n, nil).Attach(receiveNothing, func(string) {})
	}
	payload := make([]byte, 64)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		f := from(n % 1000)
		s.deliver(f, payload, false)
	}
}
