//go:build unix

package gate

import "golang.org/x/sys/unix"

// socketOf returns the network and the address of a socket that the process was started with; no network where it has none by that
// number, as under `caddy validate`.
func socketOf(fd int) (network, local string) {
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return "", ""
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return "", ""
	}
	network = "tcp"
	if kind == unix.SOCK_DGRAM {
		network = "udp"
	}
	switch a := addr.(type) {
	case *unix.SockaddrInet4:
		return network, portOf(uint(a.Port))
	case *unix.SockaddrInet6:
		return network, portOf(uint(a.Port))
	case *unix.SockaddrUnix:
		if kind == unix.SOCK_DGRAM {
			return "unixgram", a.Name
		}
		return "unix", a.Name
	}
	return "", ""
}
