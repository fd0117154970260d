package relay

import (
	"maps"
	"net/netip"
	"sync/atomic"
)

// A socket that is connected to an upstream keeps its source address when this machine loses it: DHCP gives another one, or another
// machine takes it over. Linux then refuses to send for IPv4, see errorEffects, but goes on sending for IPv6, to which no reply can come. So it is
// asked for the addresses of this machine.

// addressBook is the addresses of this machine. It is never changed, and nil before it was first read.
type addressBook struct {
	there map[netip.Addr]struct{}
	gone  map[netip.Addr]struct{} // were there before
}

// goneMax bounds the addresses that are remembered though they are gone: temporary addresses of IPv6 change every day (RFC 8981). A session whose
// address is forgotten goes on as if nothing could be known.
const goneMax = 1024

// ownAddresses is what is known now. Sessions compare it with what they have seen before, which costs nothing while no address changes.
var ownAddresses atomic.Pointer[addressBook]

// lost reports whether ip was an address of this machine, and is none any more.
func (b *addressBook) lost(ip netip.Addr) bool {
	if b == nil {
		return false
	}
	_, gone := b.gone[ip.WithZone("")]
	return gone
}

// next returns the book that follows when these addresses were found; b itself where nothing has changed.
func (b *addressBook) next(found []netip.Addr) *addressBook {
	next := &addressBook{there: make(map[netip.Addr]struct{}, len(found)), gone: make(map[netip.Addr]struct{})}
	for _, ip := range found {
		next.there[ip.Unmap().WithZone("")] = struct{}{}
	}
	if b == nil {
		return next
	}
	if maps.Equal(b.there, next.there) {
		return b
	}
	remember := func(before map[netip.Addr]struct{}) {
		for ip := range before {
			if _, there := next.there[ip]; !there && len(next.gone) < goneMax {
				next.gone[ip] = struct{}{}
			}
		}
	}
	remember(b.there) // first those that have just gone
	remember(b.gone)
	return next
}
