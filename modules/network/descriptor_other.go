//go:build !unix

package network

import (
	"errors"
	"net"
	"syscall"
)

var errNoDescriptors = errors.New("this system's processes inherit no sockets by their number")

func inheritListener(int, func(network, address string, conn syscall.RawConn) error) (*net.TCPListener, error) {
	return nil, errNoDescriptors
}

func inheritPacketConn(int, func(network, address string, conn syscall.RawConn) error) (*net.UDPConn, error) {
	return nil, errNoDescriptors
}
