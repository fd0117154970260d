//go:build !linux

// Package hangup notices clients that leave while nobody reads from them, such as those that wait for their turn.
package hangup

import "net"

// Watch notices clients that leave. On this system it does not: they are missed when somebody reads from them.
type Watch struct{}

// Add does nothing.
func (*Watch) Add(net.Conn, bool, func(reset bool)) (remove func()) { return func() {} }
