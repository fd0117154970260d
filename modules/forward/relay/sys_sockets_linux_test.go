package relay

import (
	"net"
	"os"
	"syscall"
	"testing"
	"unsafe"

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

// listenDeaf opens a TCP listener in whose queue there is room for one connection.
func listenDeaf(t testing.TB) net.Listener {
	t.Helper()
	return listenWithoutQueue(t, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
}

func listenWithoutQueue(t testing.TB, addr unix.Sockaddr) net.Listener {
	t.Helper()
	family := unix.AF_INET
	if _, ok := addr.(*unix.SockaddrUnix); ok {
		family = unix.AF_UNIX
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	defer file.Close()
	if err := unix.Bind(fd, addr); err != nil {
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

// shared lets several sockets have a port.
func shared(_, _ string, raw syscall.RawConn) (err error) {
	if failed := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}); failed != nil {
		return failed
	}
	return err
}

// reserve keeps a port that a socket has from others, but not from sockets that are shared.
func reserve(t testing.TB, holder *net.UDPConn) {
	t.Helper()
	t.Cleanup(func() { holder.Close() })
	raw, err := holder.SyscallConn()
	if err == nil {
		// Not before it has its port: the kernel might give it one that others share.
		err = shared("", "", raw)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// disconnect makes the socket to the upstream useless, as ss -K does.
func disconnect(t testing.TB, s *packetSession) {
	t.Helper()
	s.relay.mu.Lock()
	e := s.relay.engine
	s.relay.mu.Unlock()
	nowhere := func(fd uintptr) {
		none := unix.RawSockaddr{Family: unix.AF_UNSPEC}
		_, _, errno := syscall.Syscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none))
		if errno != 0 {
			t.Error(errno)
		}
	}
	if l, ok := e.(*loopPackets); ok {
		l.mu.Lock()
		defer l.mu.Unlock()
		nowhere(uintptr(l.fd))
		return
	}
	raw, err := e.(*goroutinePackets).upstream().SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(nowhere)
}
