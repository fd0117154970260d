//go:build !linux

package forward

import "net"

type socket struct{ *net.TCPConn }

func detachable(c *net.TCPConn) net.Conn { return socket{c} }
