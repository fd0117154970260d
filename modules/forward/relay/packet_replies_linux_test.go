package relay

import (
	"net"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// still is a loop that does not run: the test calls its rounds.
func still(t testing.TB) *loop {
	t.Helper()
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.alarm.Stop()
		l.file.Close()
		unix.Close(l.wakeup)
	})
	l.replies = newReplies()
	return l
}

// path is a client that is only replied to.
type path struct {
	PacketClient // nil
	fd           int
	name         []byte
	answered     int
}

func (p *path) ReplyPath() (fd int, name, control []byte) { return p.fd, p.name, nil }
func (p *path) Answered()                                 { p.answered++ }

func fdOf(t testing.TB, sock *net.UDPConn) (fd int) {
	t.Helper()
	raw, err := sock.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(s uintptr) { fd = int(s) })
	return fd
}

func nameOf(t testing.TB, sock *net.UDPConn) []byte {
	t.Helper()
	var to rawSockaddr
	if err := to.set(sock.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&to.any)), to.size)
}

// stillSession is a session of a loop that does not run, and the server that it is connected to.
type stillSession struct {
	testing.TB
	*loopPackets
	path   *path
	server *net.UDPConn
	peer   *net.UDPAddr // the session's socket
}

func newStillSession(t testing.TB, l *loop, fd int, name []byte, with ...func(*PacketConfig)) *stillSession {
	t.Helper()
	cfg := PacketConfig{}
	for _, set := range with {
		set(&cfg)
	}
	s := &stillSession{TB: t, path: &path{fd: fd, name: name}, server: packetEngines[0].listen(t)}
	f := &loopPackets{PacketRelay: NewPacket(cfg), loopState: loopState{loop: l, cancel: func() {}}, client: s.path, fd: -1}
	f.timer.of = f
	f.replyFD, f.peer, f.control = s.path.ReplyPath()
	f.connectTo(s.server.LocalAddr())
	if f.phase != phaseOpen {
		t.Fatal("not connected")
	}
	t.Cleanup(f.closeUpstream)
	var local rawSockaddr
	local.get(unix.SYS_GETSOCKNAME, f.fd)
	s.loopPackets, s.peer = f, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: local.port()}
	return s
}

// reply has the server send, and the session read.
func (s *stillSession) reply(datagrams ...string) {
	s.Helper()
	for _, b := range datagrams {
		if _, err := s.server.WriteTo([]byte(b), s.peer); err != nil {
			s.Fatal(err)
		}
	}
	s.readable = true
	s.readReplies()
}

// wantReplies reads what a client has got.
func wantReplies(t testing.TB, client *net.UDPConn, want ...string) {
	t.Helper()
	buf := make([]byte, packetSize)
	for _, b := range want {
		n, err := client.Read(buf)
		if err != nil || string(buf[:n]) != b {
			t.Fatalf("got %q, %v, want %q", buf[:n], err, b)
		}
	}
	_ = client.SetReadDeadline(time.Now().Add(time.Millisecond))
	if n, err := client.Read(buf); err == nil {
		t.Errorf("got %q that was not to come", buf[:n])
	}
	_ = client.SetReadDeadline(time.Now().Add(patience))
}

// Replies of many sessions leave in one call for each listening socket, whatever their order.
func TestRepliesOfManySessionsLeaveTogether(t *testing.T) {
	t.Parallel()
	l, p := still(t), packetEngines[0]
	listeners := []*net.UDPConn{p.listen(t), p.listen(t)}
	var clients []*net.UDPConn
	for i := range 6 {
		clients = append(clients, p.listen(t))
		f := newStillSession(t, l, fdOf(t, listeners[i%2]), nameOf(t, clients[i]))
		f.reply("a", "", "c")
		if f.datagramsDown.Load() != 0 {
			t.Error("a reply was sent before the end of the round")
		}
	}
	for i := range listeners {
		if n := l.replies.gather(fdOf(t, listeners[i]), 0); n != 9 {
			t.Errorf("%d replies leave together, want 9", n)
		}
		l.replies.sendGathered(fdOf(t, listeners[i]), 9)
	}
	for _, client := range clients {
		wantReplies(t, client, "a", "", "c")
	}
	l.sendReplies()
	if l.replies.count != 0 {
		t.Error("replies are left")
	}
}

// A reply that can't be sent is at nobody else's expense.
func TestReplyThatCannotBeSent(t *testing.T) {
	t.Parallel()
	l, p := still(t), packetEngines[0]
	listener := p.listen(t)
	var clients []*net.UDPConn
	var sessions []*stillSession
	for i := range 5 {
		clients = append(clients, p.listen(t))
		name := nameOf(t, clients[i])
		if i%2 == 0 {
			name = []byte{unix.AF_INET, 0} // too short
		}
		sessions = append(sessions, newStillSession(t, l, fdOf(t, listener), name))
	}
	for _, f := range sessions {
		f.reply("first")
	}
	for _, f := range sessions {
		f.reply("second")
	}
	l.sendReplies()
	for i, f := range sessions {
		stats := f.Stats()
		if i%2 == 0 {
			wantReplies(t, clients[i])
			if stats.Dropped != 2 || stats.DatagramsDown != 0 {
				t.Errorf("nothing was sent, but %+v", stats)
			}
			continue
		}
		wantReplies(t, clients[i], "first", "second")
		if stats.Dropped != 0 || stats.DatagramsDown != 2 || f.path.answered != 1 {
			t.Errorf("two were sent, but %+v, answered %d", stats, f.path.answered)
		}
	}
}

// Where a listening socket has no room nothing waits for it, and other sockets' replies leave.
func TestReplyPathThatIsFull(t *testing.T) {
	t.Parallel()
	l, p := still(t), packetEngines[0]
	full, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(full[0])
	defer unix.Close(full[1])
	for err == nil {
		err = unix.Send(full[0], []byte("x"), 0)
	}
	stuck := newStillSession(t, l, full[0], nil)
	client := p.listen(t)
	free := newStillSession(t, l, fdOf(t, p.listen(t)), nameOf(t, client))
	stuck.reply("1", "2")
	free.reply("1", "2")
	stuck.reply("3")
	l.sendReplies()
	wantReplies(t, client, "1", "2")
	if stats := stuck.Stats(); stats.Dropped != 3 || stats.DatagramsDown != 0 || stuck.pending != 0 {
		t.Errorf("nothing was sent, but %+v, %d pending", stats, stuck.pending)
	}
}

// However much one session is sent, it gives way to the others.
func TestPacketSessionGivesWay(t *testing.T) {
	t.Parallel()
	for size, most := range map[int]int{1: quantumReplies, 60_000: quantumReplyBytes / 60_000} {
		l := still(t)
		f := newStillSession(t, l, fdOf(t, packetEngines[0].listen(t)), nameOf(t, packetEngines[0].listen(t)))
		setsockoptInt(f.loopPackets.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		var datagrams []string
		for range most + 50 {
			datagrams = append(datagrams, string(make([]byte, size)))
		}
		f.reply(datagrams...)
		if got := int(f.pending) + int(f.datagramsDown.Load()); got < most || got > most+quantumReplies {
			t.Errorf("%d datagrams of %d bytes in a round, want about %d", got, size, most)
		}
		if len(l.ready) != 1 || !f.queued {
			t.Error("it was not queued for the next round")
		}
	}
}

// A session that has had its last reply has no further one read, also where not all could be sent.
func TestMaxRepliesCountsWhatWasSent(t *testing.T) {
	t.Parallel()
	l, p := still(t), packetEngines[0]
	client := p.listen(t)
	f := newStillSession(t, l, fdOf(t, p.listen(t)), nameOf(t, client), func(c *PacketConfig) { c.MaxReplies = 3 })
	f.loopPackets.peer = []byte{unix.AF_INET, 0}
	f.reply("lost")
	l.sendReplies()
	f.loopPackets.peer = f.path.name
	f.reply("1", "2", "3", "4")
	l.sendReplies()
	wantReplies(t, client, "1", "2", "3")
	if f.phase != phaseOver || f.reason != MaxReplies || f.datagramsDown.Load() != 3 {
		t.Errorf("phase %d, reason %s, %d sent", f.phase, f.reason, f.datagramsDown.Load())
	}
}

// A client that asks again while the last answer leaves gets its answer, from this session or from the next one.
func TestADatagramBeyondTheLastReplyIsForAnotherSession(t *testing.T) {
	t.Parallel()
	l, p := still(t), packetEngines[0]
	client := p.listen(t)
	f := newStillSession(t, l, fdOf(t, p.listen(t)), nameOf(t, client), func(c *PacketConfig) { c.MaxReplies = 1 })
	for _, question := range []string{"1", "2"} {
		if !f.receive([]byte(question)) {
			t.Fatalf("%s was not taken", question)
		}
	}
	f.reply("a")
	l.sendReplies()
	if f.phase != phaseOpen || !f.receive([]byte("3")) {
		t.Fatalf("phase %d after the first of two answers", f.phase)
	}
	f.reply("b", "c")
	l.sendReplies()
	wantReplies(t, client, "a", "b", "c")
	if f.phase != phaseOver || f.reason != MaxReplies {
		t.Errorf("phase %d, reason %q after the last answer", f.phase, f.reason)
	}
	if f.receive([]byte("4")) {
		t.Error("a question was taken that nobody will answer")
	}
}

// The kernel may give a socket the very address that it connects to, where nobody listens there: it would answer
// itself. So many attempts would hardly all miss.
func TestPacketSocketIsNotItsOwnUpstream(t *testing.T) {
	t.Parallel()
	sock := packetEngines[0].listen(t)
	addr := sock.LocalAddr().(*net.UDPAddr)
	sock.Close() // a port that is held by somebody would not be given to the socket
	attempts := 300_000
	if raceDetector {
		attempts = 100_000
	}
	for range attempts {
		fd, err := connectPackets(nil, addr)
		if err != nil {
			t.Fatal(err)
		}
		var local, remote rawSockaddr
		local.get(unix.SYS_GETSOCKNAME, fd)
		remote.get(unix.SYS_GETPEERNAME, fd)
		closeFD(fd)
		if local == remote {
			t.Fatalf("connected to itself at %s", addr)
		}
	}
}
