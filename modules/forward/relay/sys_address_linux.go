package relay

import (
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawSockaddr is a socket address in the kernel's form.
type rawSockaddr struct {
	any  unix.RawSockaddrAny
	size uintptr
}

func (r *rawSockaddr) family() uint16 { return r.any.Addr.Family }

// port is the port of an IPv4 or IPv6 address, which is at the same place in both.
func (r *rawSockaddr) port() int {
	return int(uint8(r.any.Addr.Data[0]))<<8 | int(uint8(r.any.Addr.Data[1]))
}

// get asks the kernel for an address of fd: getsockname(2) or getpeername(2).
func (r *rawSockaddr) get(call uintptr, fd int) {
	size := uint32(unsafe.Sizeof(r.any))
	_, _, _ = syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&r.any)), uintptr(unsafe.Pointer(&size)))
	r.size = uintptr(size)
}

// localAddr returns the address that a socket of IPv4 or IPv6 is bound to.
func localAddr(fd int) netip.AddrPort {
	var local rawSockaddr
	local.get(unix.SYS_GETSOCKNAME, fd)
	port := uint16(local.port())
	if local.family() == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&local.any)).Addr), port)
	}
	ip := netip.AddrFrom16((*unix.RawSockaddrInet6)(unsafe.Pointer(&local.any)).Addr)
	return netip.AddrPortFrom(ip.Unmap(), port)
}

func (r *rawSockaddr) set(addr net.Addr) error {
	switch a := addr.(type) {
	case *net.TCPAddr:
		if r.setIP(a.IP, a.Port, a.Zone) {
			return nil
		}
	case *net.UDPAddr:
		if r.setIP(a.IP, a.Port, a.Zone) {
			return nil
		}
	case *net.UnixAddr:
		return r.setUnix(a)
	}
	return &net.AddrError{Err: "unexpected address", Addr: addr.String()}
}

func (r *rawSockaddr) setIP(ip net.IP, number int, zone string) bool {
	port := [2]byte{byte(number >> 8), byte(number)}
	if ip4 := ip.To4(); ip4 != nil {
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&r.any))
		sa.Family, sa.Port, sa.Addr = unix.AF_INET, *(*uint16)(unsafe.Pointer(&port)), [4]byte(ip4)
		r.size = unix.SizeofSockaddrInet4
		return true
	}
	if ip = ip.To16(); ip != nil {
		sa := (*unix.RawSockaddrInet6)(unsafe.Pointer(&r.any))
		sa.Family, sa.Port, sa.Addr = unix.AF_INET6, *(*uint16)(unsafe.Pointer(&port)), [16]byte(ip)
		sa.Scope_id = zoneID(zone)
		r.size = unix.SizeofSockaddrInet6
		return true
	}
	return false
}

// setUnix sets a path, or a name in Linux's abstract namespace if it begins with @ (unix(7)).
func (r *rawSockaddr) setUnix(a *net.UnixAddr) error {
	sa := (*unix.RawSockaddrUnix)(unsafe.Pointer(&r.any))
	if len(a.Name) == 0 || len(a.Name) >= len(sa.Path) {
		return &net.AddrError{Err: "path is empty or too long for a unix socket", Addr: a.Name}
	}
	sa.Family = unix.AF_UNIX
	for i := range len(a.Name) {
		sa.Path[i] = int8(a.Name[i])
	}
	r.size = unsafe.Offsetof(sa.Path) + uintptr(len(a.Name))
	if a.Name[0] == '@' {
		sa.Path[0] = 0
	} else {
		r.size++ // the terminating zero
	}
	return nil
}

func zoneID(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index)
	}
	n, _ := strconv.ParseUint(zone, 10, 32)
	return uint32(n)
}
