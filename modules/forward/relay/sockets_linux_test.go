package relay

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// urgent sends a byte of urgent data.
func urgent(t testing.TB, conn net.Conn) {
	t.Helper()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendto(int(fd), []byte{'!'}, unix.MSG_OOB, nil)
		return sendErr != unix.EAGAIN
	})
	if err != nil || sendErr != nil {
		t.Error(err, sendErr)
	}
}

// listenWithoutQueue opens a listener for one connection at a time.
func listenWithoutQueue(t testing.TB) net.Listener {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	defer file.Close()
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	ln, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// connecting reports whether somebody waits for the first answer of a TCP address.
func connecting(t testing.TB, to net.Addr) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	addr := to.(*net.TCPAddr)
	ip := addr.IP.To4()
	const synSent = 2
	// proc(5): the remote address and the state are the third and fourth field.
	want := fmt.Sprintf(" %02X%02X%02X%02X:%04X %02X ", ip[3], ip[2], ip[1], ip[0], addr.Port, synSent)
	return strings.Contains(string(table), want)
}

// unread is how much waits to be read from conn.
func unread(t testing.TB, conn syscall.Conn) (n int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if err != nil {
		t.Fatal(err)
	}
	return n
}
