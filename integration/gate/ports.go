package gate

import (
	"context"
	"net"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

// ReservePort returns a TCP port that nobody else gets until the test is over. See the package comment.
func ReservePort(tb testing.TB) int {
	tb.Helper()
	return ReserveRange(tb, 1)
}

// ReserveRange reserves n ports in a row and returns the first.
func ReserveRange(tb testing.TB, n int) int {
	tb.Helper()
	const attempts = 100 // each needs n-1 further ports to be free, which few listeners ever take
	for range attempts {
		if first, ok := reserveRange(tb, n); ok {
			return first
		}
	}
	tb.Fatalf("no %d free ports in a row after %d attempts", n, attempts)
	return 0
}

func reserveRange(tb testing.TB, n int) (int, bool) {
	tb.Helper()
	first, release, err := reserve(0)
	if err != nil {
		tb.Fatalf("reserving a port: %v", err)
	}
	releases := []func(){release}
	for port := first + 1; port < first+n; port++ {
		_, release, err := reserve(port)
		if err != nil {
			for _, release := range releases {
				release()
			}
			return 0, false
		}
		releases = append(releases, release)
	}
	for _, release := range releases {
		tb.Cleanup(release)
	}
	return first, true
}

// reserved are the ports that this process holds: with SO_REUSEADDR on both sockets the kernel would give one out twice.
var reserved = struct {
	sync.Mutex
	ports map[int]bool
}{ports: make(map[int]bool)}

// reserve binds port (0: one that the kernel picks) on 127.0.0.1 without listening on it.
func reserve(port int) (int, func(), error) {
	reserved.Lock()
	defer reserved.Unlock()
	if reserved.ports[port] {
		return 0, nil, syscall.EADDRINUSE
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, err
	}
	port, err = bind(fd, port)
	if err != nil {
		syscall.Close(fd)
		return 0, nil, err
	}
	reserved.ports[port] = true
	release := func() {
		reserved.Lock()
		defer reserved.Unlock()
		delete(reserved.ports, port)
		syscall.Close(fd)
	}
	return port, release, nil
}

func bind(fd, port int) (int, error) {
	addr := &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	share := func() error { return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) }
	steps := []func() error{share, func() error { return syscall.Bind(fd, addr) }}
	if port == 0 {
		slices.Reverse(steps) // or the kernel would pick a port that somebody shares
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return 0, err
		}
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	return name.(*syscall.SockaddrInet4).Port, nil
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
