package relay

import (
	"net"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var loopPacketPairs = []packetPair{
	{name: "loop/v4", accept: acceptAttachable, host: "127.0.0.1", loop: true},
	{name: "loop/v6", accept: acceptAttachable, host: "::1", loop: true},
}

// attachable gives event loops what they need.
type attachable struct{ *queuedClient }

func acceptAttachable(t testing.TB, host string) (net.Conn, *net.UDPConn) {
	t.Helper()
	c, theirs := newQueuedClient(t, host)
	return attachable{c}, theirs
}

func (a attachable) queued() *queuedClient { return a.queuedClient }

func (a attachable) Attach(receive func(b []byte) bool, closed func(reason string)) bool {
	a.taking.Lock()
	defer a.taking.Unlock()
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return false
	}
	a.receive, a.onClose = receive, closed
	queue := a.queue
	a.queue = nil
	a.mu.Unlock()
	for _, b := range queue {
		receive(b)
	}
	return true
}

func (a attachable) ReplyPath() (fd int, name, control []byte) {
	raw, err := a.sock.SyscallConn()
	if err != nil {
		panic(err)
	}
	_ = raw.Control(func(s uintptr) { fd = int(s) })
	var to rawSockaddr
	if err := to.set(net.UDPAddrFromAddrPort(a.remote)); err != nil {
		panic(err)
	}
	name = make([]byte, to.size)
	copy(name, unsafe.Slice((*byte)(unsafe.Pointer(&to.any)), to.size))
	return fd, name, pktinfo(a.LocalAddr().(*net.UDPAddr).IP)
}

// pktinfo is the control message that makes a datagram leave from an address.
func pktinfo(ip net.IP) []byte {
	if ip4 := ip.To4(); ip4 != nil {
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(ip4)})
	}
	return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: [16]byte(ip)})
}

func (a attachable) Answered() { a.answers.Add(1) }

func (attachable) ServedBy(interface {
	Unanswered(within time.Duration) bool
}) {
}
