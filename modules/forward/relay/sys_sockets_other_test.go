//go:build !linux

package relay

import (
	"net"
	"syscall"
	"testing"
)

func urgent(t testing.TB, _ net.Conn) { t.Skip("Linux only") }

func listenDeaf(t testing.TB) net.Listener {
	t.Skip("only Linux drops what does not fit into the queue")
	return nil
}

func unread(testing.TB, syscall.Conn) int { return 1 }

// shared and reserve do nothing here: others might get the port meanwhile.
func shared(_, _ string, _ syscall.RawConn) error { return nil }

func reserve(_ testing.TB, holder *net.UDPConn) { holder.Close() }

func disconnect(t testing.TB, _ *packetSession) { t.Skip("Linux only") }
