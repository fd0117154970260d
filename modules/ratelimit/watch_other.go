//go:build !linux

package ratelimit

import "net"

// watch notices clients that go while they wait. On this system it does not: they keep their places until their turn comes.
type watch struct{}

func (*watch) add(net.Conn, bool, *waiter) (remove func()) { return func() {} }
