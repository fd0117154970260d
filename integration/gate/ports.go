package gate

import (
	"context"
	"math/rand/v2"
	"net"
	"strconv"
	"syscall"
	"testing"
)

// Reserved ports are below Linux's default range of client ports (32768 and up). Within that range, a load test's thousands of
// connections in TIME_WAIT leave hardly two free ports in a row.
const lowestPort, highestPort = 12000, 32000

// ReservePort returns a port that nobody else gets until the test is over, see the package comment. The test may use it for UDP too: it was
// free, no other test gets it, and the ports of UDP clients are in another range.
func ReservePort(tb testing.TB) int {
	tb.Helper()
	return ReserveRange(tb, 1)
}

// ReserveRange reserves n ports in a row and returns the first.
func ReserveRange(tb testing.TB, n int) int {
	tb.Helper()
	const attempts = 1000 // a handful is enough if some ports are in use
	for range attempts {
		first := lowestPort + rand.IntN(highestPort-lowestPort-n)
		if reserveRange(tb, first, n) {
			return first
		}
	}
	tb.Fatalf("no %d free ports in a row after %d attempts", n, attempts)
	return 0
}

func reserveRange(tb testing.TB, first, n int) bool {
	tb.Helper()
	var reserved []int
	release := func() {
		for _, fd := range reserved {
			syscall.Close(fd)
		}
	}
	for port := first; port < first+n; port++ {
		if !freeForUDP(port) {
			release()
			return false
		}
		fd, err := reserve(port)
		if err != nil {
			release()
			return false
		}
		reserved = append(reserved, fd)
	}
	tb.Cleanup(release)
	return true
}

// reserve binds a port of 127.0.0.1 without listening on it, and returns the descriptor that holds it.
func reserve(port int) (fd int, err error) {
	fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	// Set before the bind, SO_REUSEADDR would let this take a port that another reservation holds.
	if err = syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err == nil {
		err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	}
	if err != nil {
		syscall.Close(fd)
	}
	return fd, err
}

func freeForUDP(port int) bool {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// Loopback returns 127.0.0.1:port.
func Loopback(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// ReserveAddr returns a reserved address on 127.0.0.1.
func ReserveAddr(tb testing.TB) string {
	tb.Helper()
	return Loopback(ReservePort(tb))
}

// TakePort listens on a port, so that the process under test cannot.
func TakePort(tb testing.TB) string {
	tb.Helper()
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { ln.Close() })
	return ln.Addr().String()
}
