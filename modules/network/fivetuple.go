package network

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// fiveTuple tells one UDP session of a socket from another. It has no pointers and no gaps, so that it makes a
// map key that is cheap to hash. IPv4 addresses are in their IPv6-mapped form.
type fiveTuple struct {
	client [16]byte
	local  [16]byte // the address that was hit; zero where the socket has an address of its own
	zone   uint32   // interface of a link-local client
	port   uint32   // the client's
}

// clientKey is what the sessions of one client have in common: an IPv4 address, or the prefix of an IPv6
// address that is handed out to one subscriber or host (RFC 6177, RFC 7934).
type clientKey [16]byte

func (f *fiveTuple) clientKey() clientKey {
	key := clientKey(f.client)
	if !netip.AddrFrom16(f.client).Is4In6() {
		binary.NativeEndian.PutUint64(key[8:], 0)
	}
	return key
}

// addrPort returns the client without the interface of a link-local one.
func (f *fiveTuple) addrPort() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(f.client).Unmap(), uint16(f.port))
}

func (f *fiveTuple) remoteAddr() *net.UDPAddr {
	addr := netip.AddrFrom16(f.client).Unmap()
	if f.zone != 0 {
		if ifi, err := net.InterfaceByIndex(int(f.zone)); err == nil {
			addr = addr.WithZone(ifi.Name)
		}
	}
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, uint16(f.port)))
}

// localAddr returns the address that was hit on a socket that is bound to the given one.
func (f *fiveTuple) localAddr(bound *net.UDPAddr) *net.UDPAddr {
	if f.local == [16]byte{} {
		return bound
	}
	addr := netip.AddrFrom16(f.local).Unmap()
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, uint16(bound.Port)))
}
