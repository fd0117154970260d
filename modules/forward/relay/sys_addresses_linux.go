package relay

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// watchAddresses begins to follow the addresses of this machine, for as long as the process runs. Where that is not allowed nothing is known
// of them.
var watchAddresses = sync.OnceFunc(func() {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return
	}
	changes := os.NewFile(uintptr(fd), "rtnetlink")
	groups := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR}
	if err := unix.Bind(fd, groups); err != nil {
		_ = changes.Close()
		return
	}
	go followAddresses(changes)
})

// addressPause is how long changes are gathered: interfaces of containers come and go by the dozen.
const addressPause = 50 * time.Millisecond

// followAddresses reads the addresses when the process begins to need them, and each time that the system tells of a change (rtnetlink(7)).
func followAddresses(changes *os.File) {
	raw, err := changes.SyscallConn()
	for err == nil {
		if found, err := machineAddresses(); err == nil {
			ownAddresses.Store(ownAddresses.Load().next(found))
		}
		err = raw.Read(func(fd uintptr) bool { return drainNetlink(int(fd)) })
		time.Sleep(addressPause)
	}
}

// drainNetlink reads what there is. It reports false where that is nothing. What the messages say does not matter, and neither does it
// that some were lost (ENOBUFS): all addresses are read again.
func drainNetlink(fd int) (some bool) {
	var message [8 << 10]byte
	for range 1000 {
		_, _, err := unix.Recvfrom(fd, message[:], 0)
		switch err {
		case unix.EAGAIN:
			return some
		case unix.EINTR:
		default:
			some = true
		}
	}
	return some
}

func machineAddresses() ([]netip.Addr, error) {
	found, err := net.InterfaceAddrs()
	var all []netip.Addr
	for _, addr := range found {
		if network, ok := addr.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(network.IP); ok {
				all = append(all, ip)
			}
		}
	}
	return all, err
}
