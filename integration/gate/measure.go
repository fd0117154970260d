package gate

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CPUTime returns the processor time that the process has used so far, user and system, in nanoseconds.
func (p *Process) CPUTime() time.Duration {
	p.tb.Helper()
	const schedClock = 2 // the id of a process's clock, see clock_getcpuclockid(3)
	var spent unix.Timespec
	if err := unix.ClockGettime(int32(^p.PID()<<3|schedClock), &spent); err != nil {
		p.tb.Fatalf("clock of process %d: %v", p.PID(), err)
	}
	return time.Duration(spent.Nano())
}

var heapAlloc = regexp.MustCompile(`# HeapAlloc = (\d+)`)

// HeapKiB returns the reachable heap, after two garbage collections.
func (p *Process) HeapKiB() int {
	p.tb.Helper()
	var profile string
	for range 2 {
		profile = p.MustGet("/debug/pprof/heap?gc=1&debug=1")
	}
	found := heapAlloc.FindStringSubmatch(profile)
	if found == nil {
		p.tb.Fatal("no HeapAlloc in the heap profile")
	}
	bytes, _ := strconv.Atoi(found[1])
	return bytes >> 10
}

// Socket has the options of a TCP socket of the process (tcp(7)).
type Socket struct {
	KeepAlive                        bool
	KeepAliveIdle, KeepAliveInterval time.Duration
	KeepAliveCount                   int
	UserTimeout                      time.Duration
}

// SocketOf returns the options of the process's end of a connection.
func (p *Process) SocketOf(conn net.Conn) Socket {
	p.tb.Helper()
	pidfd, err := unix.PidfdOpen(p.PID(), 0)
	if err != nil {
		p.tb.Fatalf("pidfd_open: %v", err)
	}
	defer unix.Close(pidfd)
	dir := "/proc/" + strconv.Itoa(p.PID()) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		p.tb.Fatal(err)
	}
	for _, entry := range entries {
		if target, err := os.Readlink(filepath.Join(dir, entry.Name())); err != nil || !strings.HasPrefix(target, "socket:") {
			continue
		}
		number, _ := strconv.Atoi(entry.Name())
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if err == unix.EBADF {
			continue // closed meanwhile
		}
		if err != nil {
			p.tb.Fatalf("pidfd_getfd: %v: this test looks into another process, run it as root", err)
		}
		socket, ok := p.otherEnd(fd, conn)
		unix.Close(fd)
		if ok {
			return socket
		}
	}
	p.tb.Fatalf("the process has no socket for %v - %v", conn.LocalAddr(), conn.RemoteAddr())
	return Socket{}
}

// otherEnd reports whether fd is the other end of conn, and returns its options.
func (p *Process) otherEnd(fd int, conn net.Conn) (s Socket, ok bool) {
	local, err := unix.Getsockname(fd)
	if err != nil || ipv4(local) != conn.RemoteAddr().String() {
		return s, false
	}
	remote, err := unix.Getpeername(fd)
	if err != nil || ipv4(remote) != conn.LocalAddr().String() {
		return s, false
	}
	option := func(level, name int) int {
		value, err := unix.GetsockoptInt(fd, level, name)
		if err != nil {
			p.tb.Fatalf("getsockopt: %v", err)
		}
		return value
	}
	return Socket{
		KeepAlive:         option(unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 0,
		KeepAliveIdle:     time.Duration(option(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)) * time.Second,
		KeepAliveInterval: time.Duration(option(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL)) * time.Second,
		KeepAliveCount:    option(unix.IPPROTO_TCP, unix.TCP_KEEPCNT),
		UserTimeout:       time.Duration(option(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)) * time.Millisecond,
	}, true
}

// ipv4 is the address as the net package writes it; empty for other families.
func ipv4(sa unix.Sockaddr) string {
	if sa4, ok := sa.(*unix.SockaddrInet4); ok {
		return (&net.TCPAddr{IP: sa4.Addr[:], Port: sa4.Port}).String()
	}
	return ""
}
