package network

import (
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// replyPath is where the replies of a session go, and where they come from, as sendmsg(2) takes it.
type replyPath struct {
	name        unix.RawSockaddrInet6 // or an IPv4 address, in the same bytes
	nameSize    uint8
	controlSize uint8 // 0 where the socket has an address of its own
	control     controlMessage
}

func (l *packetListener) replyPath(f *fiveTuple) (p replyPath) {
	port := [2]byte{byte(f.port >> 8), byte(f.port)}
	if l.family == unix.AF_INET {
		name := (*unix.RawSockaddrInet4)(unsafe.Pointer(&p.name))
		*name = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: [4]byte(f.client[12:])}
		p.nameSize = unix.SizeofSockaddrInet4
	} else {
		p.name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: f.client, Scope_id: f.zone}
		p.nameSize = unix.SizeofSockaddrInet6
	}
	*(*[2]byte)(unsafe.Pointer(&p.name.Port)) = port // at the same place for both
	if f.local != [16]byte{} {
		p.controlSize = p.control.setLocalAddress(l.family, f)
	}
	return p
}

// ReplyPath returns how replies reach the client: sendmsg(2) on the non-blocking descriptor with this address
// and control message. Both are valid until Close.
func (c *PacketSession) ReplyPath() (fd int, name, control []byte) {
	p := &c.path
	name = unsafe.Slice((*byte)(unsafe.Pointer(&p.name)), p.nameSize)
	control = unsafe.Slice((*byte)(unsafe.Pointer(&p.control)), p.controlSize)
	return c.socket.listener.fd, name, control
}

// send reports whether the socket took the datagram.
func (l *packetListener) send(p *replyPath, b []byte) (sent bool, err error) {
	message := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&p.name)), Namelen: uint32(p.nameSize)}
	vector := unix.Iovec{Base: unsafe.SliceData(b)}
	vector.SetLen(len(b))
	message.Iov = &vector
	message.SetIovlen(1)
	if p.controlSize > 0 {
		message.Control = (*byte)(unsafe.Pointer(&p.control))
		message.SetControllen(int(p.controlSize))
	}
	var errno syscall.Errno
	failed := l.raw.Control(func(fd uintptr) {
		_, _, errno = syscall.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&message)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	switch {
	case failed != nil:
		return false, failed
	case errno == unix.EAGAIN || errno == unix.ENOBUFS:
		return false, nil
	case errno != 0:
		return false, os.NewSyscallError("sendmsg", errno)
	}
	return true, nil
}

// controlBuffer has room for what the kernel says of a datagram on a socket of either family. It is aligned
// as the headers in it are.
type controlBuffer [10]uint64

// controlMessage has room for one message with an address.
type controlMessage [5]uint64

// askForLocalAddress makes the socket tell of each datagram which address it was sent to (ip(7), ipv6(7)). An IPv6
// socket that accepts IPv4 too tells of the latter in both ways, of which IPv4's knows broadcasts.
func askForLocalAddress(fd, family int) error {
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1); err != nil {
			return err
		}
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
}

// localAddress returns the address to reply from: the one that was hit, or, for a broadcast, the one that the
// system would choose. It is zero for a multicast address, from which nobody can send.
func (c *controlBuffer) localAddress(size int) (local [16]byte) {
	rest := unsafe.Slice((*byte)(unsafe.Pointer(c)), len(c)*8)[:size]
	for len(rest) >= unix.SizeofCmsghdr {
		header := (*unix.Cmsghdr)(unsafe.Pointer(&rest[0]))
		end := int(header.Len)
		if end < unix.CmsgLen(0) || end > len(rest) {
			break
		}
		data := rest[unix.CmsgLen(0):end]
		switch {
		case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			return mapped((*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0])).Spec_dst)
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			local = (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0])).Addr
		}
		rest = rest[min(unix.CmsgSpace(end-unix.CmsgLen(0)), len(rest)):]
	}
	if netip.AddrFrom16(local).IsMulticast() {
		return [16]byte{}
	}
	return local
}

// setLocalAddress makes c say which address to send from, and returns the size of it. On an IPv6 socket the
// message is the same for IPv4.
func (c *controlMessage) setLocalAddress(family int, f *fiveTuple) (size uint8) {
	header := (*unix.Cmsghdr)(unsafe.Pointer(c))
	data := unsafe.Add(unsafe.Pointer(c), unix.CmsgLen(0))
	if family == unix.AF_INET {
		header.Level, header.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
		(*unix.Inet4Pktinfo)(data).Spec_dst = [4]byte(f.local[12:])
		header.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		return uint8(unix.CmsgSpace(unix.SizeofInet4Pktinfo))
	}
	header.Level, header.Type = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
	info := (*unix.Inet6Pktinfo)(data)
	info.Addr = f.local
	if netip.AddrFrom16(f.local).IsLinkLocalUnicast() {
		info.Ifindex = f.zone
	}
	header.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	return uint8(unix.CmsgSpace(unix.SizeofInet6Pktinfo))
}
