package hops

import (
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// refreshAfter is how old the list of this machine's addresses may become. It is read in the background: nobody waits for it.
const refreshAfter = 5 * time.Second

// addresses are those of this machine's interfaces, without zones.
type addresses struct {
	all  map[netip.Addr]struct{}
	read time.Time
}

var (
	known      atomic.Pointer[addresses]
	refreshing atomic.Bool
)

// IsLocal reports whether an address leads to this machine, by a list of its addresses that is a few seconds old at most.
func IsLocal(ip netip.Addr) bool {
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	a := known.Load()
	if a == nil {
		a = readAddresses()
	}
	if time.Since(a.read) > refreshAfter && refreshing.CompareAndSwap(false, true) {
		go func() {
			defer refreshing.Store(false)
			readAddresses()
		}()
	}
	_, found := a.all[ip.Unmap().WithZone("")]
	return found
}

// readAddresses reads the addresses of this machine. Where it can't, it keeps those that are known.
func readAddresses() *addresses {
	next := &addresses{all: make(map[netip.Addr]struct{}), read: time.Now()}
	found, err := net.InterfaceAddrs()
	if before := known.Load(); err != nil && before != nil {
		next.all = before.all
	}
	for _, addr := range found {
		if network, ok := addr.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(network.IP); ok {
				next.all[ip.Unmap()] = struct{}{}
			}
		}
	}
	known.Store(next)
	return next
}

// Where tells whether some of a list of addresses lead to this machine, and finds out anew only when the list of this
// machine's addresses was read again.
type Where struct{ last atomic.Pointer[answer] }

type answer struct {
	of    *addresses
	local bool
}

// AnyLocal calls each with a function that takes the addresses of the list one by one.
func (w *Where) AnyLocal(each func(take func(netip.Addr))) bool {
	IsLocal(netip.Addr{}) // has the list read again if it is old
	now := known.Load()
	if last := w.last.Load(); last != nil && last.of == now {
		return last.local
	}
	found := false
	each(func(ip netip.Addr) { found = found || IsLocal(ip) })
	w.last.Store(&answer{now, found})
	return found
}
