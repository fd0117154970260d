package network

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// batchSize is how many datagrams one system call receives.
	batchSize = 32

	// maxDatagram is more than UDP has room for, so that no datagram is cut.
	maxDatagram = 1 << 16

	// socketBuffer is what the kernel may hold for a socket in each direction, which all sessions
	// share. The default of 208 KiB is gone in the time slice of another thread.
	socketBuffer = 4 << 20
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	size uint32
}

// batch is what recvmmsg receives into.
type batch struct {
	messages [batchSize]mmsghdr
	names    [batchSize]unix.RawSockaddrInet6
	vectors  [batchSize]unix.Iovec
	controls [batchSize]controlBuffer
	buffers  [batchSize][maxDatagram]byte // of which only what datagrams reach becomes resident
}

// Sockets that have nothing to receive hold no batch.
var batches = sync.Pool{New: func() any {
	b := new(batch)
	for i := range b.messages {
		b.vectors[i].Base = &b.buffers[i][0]
		b.vectors[i].SetLen(maxDatagram)
		m := &b.messages[i]
		m.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		m.Iov = &b.vectors[i]
		m.SetIovlen(1)
		m.Control = (*byte)(unsafe.Pointer(&b.controls[i]))
		b.reset(i)
	}
	return b
}}

// reset undoes what the kernel has written into a message.
func (b *batch) reset(i int) {
	m := &b.messages[i]
	m.Namelen = unix.SizeofSockaddrInet6
	m.SetControllen(int(unsafe.Sizeof(b.controls[i])))
	m.Flags = 0
}

// packetListener is a UDP socket in Go's poller.
type packetListener struct {
	conn      *net.UDPConn
	raw       syscall.RawConn
	fd        int
	addr      *net.UDPAddr
	family    int
	wildcard  bool // the local addresses of datagrams are told
	inherited bool // the address is never free, and another descriptor has the socket, too

	receiving sync.Mutex // held while datagrams are received and delivered

	waited  bool      // the poller has been asked to wait
	batch   *batch    // nil while there is nothing to receive
	tuple   fiveTuple // of the datagram that is being delivered
	deliver func(f *fiveTuple, b []byte, truncated bool)
	try     func(fd uintptr) bool
	err     error
}

func listenPackets(ctx context.Context, cfg net.ListenConfig, ep endpoint) (*packetListener, error) {
	conn, err := ep.listenPacket(ctx, cfg)
	if err != nil {
		return nil, err
	}
	l := &packetListener{conn: conn, addr: conn.LocalAddr().(*net.UDPAddr), inherited: ep.Inherited}
	l.wildcard = l.addr.IP.IsUnspecified()
	l.try = l.tryReceive
	if err := l.setUp(); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return l, nil
}

func (l *packetListener) setUp() (err error) {
	if l.raw, err = l.conn.SyscallConn(); err != nil {
		return err
	}
	failed := l.raw.Control(func(fd uintptr) {
		l.fd = int(fd)
		if l.family, err = unix.GetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && l.wildcard {
			err = askForLocalAddress(l.fd, l.family)
		}
		err = os.NewSyscallError("setsockopt", err)
		grow(l.fd, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE)
		grow(l.fd, unix.SO_SNDBUF, unix.SO_SNDBUFFORCE)
	})
	return errors.Join(failed, err)
}

// grow makes a buffer of the socket as large as it should be, or at least as the system lets everyone.
func grow(fd, option, force int) {
	// The kernel tells twice of what was asked for (socket(7)).
	if size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option); err == nil && size >= 2*socketBuffer {
		return
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, socketBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, socketBuffer)
	}
}

func (l *packetListener) Addr() net.Addr { return l.addr }

// interrupt ends receive, now and for ever.
func (l *packetListener) interrupt() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) }

// receive waits for datagrams and delivers what there is. It is not for concurrent use.
func (l *packetListener) receive(deliver func(f *fiveTuple, b []byte, truncated bool)) error {
	l.deliver, l.err = deliver, nil
	if err := l.raw.Read(l.try); err != nil {
		return err
	}
	return os.NewSyscallError("recvmmsg", l.err)
}

// tryReceive is called by the poller: false waits for datagrams. After a batch that is not full there are none,
// and what arrives from then on wakes the poller: that spares a system call that would only say so.
func (l *packetListener) tryReceive(fd uintptr) bool {
	l.receiving.Lock()
	defer l.receiving.Unlock()
	if !l.waited {
		// A config may open thousands of sockets at once, to which nobody has sent anything yet.
		if l.waited = true; l.empty(fd) {
			return false
		}
	}
	if l.batch == nil {
		l.batch = batches.Get().(*batch)
	}
	b := l.batch
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.messages)), batchSize, unix.MSG_DONTWAIT, 0, 0)
	if errno == 0 {
		l.deliverAll(b, int(n))
	} else if errno != unix.EAGAIN {
		l.err = errno
	}
	if errno == 0 && n == batchSize {
		return true
	}
	batches.Put(b)
	l.batch = nil
	return l.err != nil
}

// empty tells whether there is nothing to receive.
func (l *packetListener) empty(fd uintptr) bool {
	var first [1]byte
	_, errno := recvNow(int(fd), first[:], unix.MSG_PEEK)
	return errno == unix.EAGAIN
}

func (l *packetListener) deliverAll(b *batch, n int) {
	f := &l.tuple
	for i := range n {
		m := &b.messages[i]
		f.read(&b.names[i])
		if l.wildcard {
			f.local = b.controls[i].localAddress(int(m.Controllen))
		}
		l.deliver(f, b.buffers[i][:m.size], m.Flags&unix.MSG_TRUNC != 0)
		b.reset(i)
	}
}

// read takes the client from the address that a datagram came from.
func (f *fiveTuple) read(name *unix.RawSockaddrInet6) {
	port := (*[2]byte)(unsafe.Pointer(&name.Port)) // at the same place for IPv4
	f.port = uint32(port[0])<<8 | uint32(port[1])
	if name.Family == unix.AF_INET {
		f.client, f.zone = mapped((*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr), 0
		return
	}
	f.client, f.zone = name.Addr, name.Scope_id
}

func mapped(ip [4]byte) [16]byte {
	return [16]byte{10: 0xff, 11: 0xff, 12: ip[0], 13: ip[1], 14: ip[2], 15: ip[3]}
}

// leave makes the address free, though the descriptor is still in use: sessions send on it, by its number, until they are
// closed. It becomes one that nothing can be sent on.
func (l *packetListener) leave() error {
	if l.inherited { // Go's poller would know the socket by this number for ever, because another descriptor keeps it open
		return nil
	}
	dead, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil // there are no descriptors: the address becomes free with the last session
	}
	defer func() { _ = unix.Close(dead) }()
	return os.NewSyscallError("dup3", unix.Dup3(dead, l.fd, unix.O_CLOEXEC))
}

// close is called when no session sends any more.
func (l *packetListener) close() { _ = l.conn.Close() }
