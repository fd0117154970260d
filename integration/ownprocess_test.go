package integration

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Some peers are processes of their own: what thousands of connections take in descriptors, and what moving bulk takes of Go's
// scheduler, must not be taken from the test that measures. The process is this test binary once more, which then is one of these and
// no test. Their loops make raw system calls, so that the race detector, with which the tests are built, does not slow them down.
var ownProcesses = map[string]func(args []string){
	"echo":   func([]string) { echoForever(listenAndTell()) },
	"chat":   chatWhenTold,
	"source": func([]string) { sourceForever(listenAndTell()) },
	"drain":  func(args []string) { drainForever(args) },
	"ender":  func([]string) { endForever(listenAndTell()) },
	"cycles": cycle,
	"denied": beDenied,
}

const ownProcessEnv = "GATE_OWN_PROCESS"

// An own process may run before or after all others that want a processor, see chrt(1).
var (
	first = []string{"chrt", "--fifo", "1"}
	last  = []string{"chrt", "--idle", "0"}
)

func init() {
	if role := strings.Fields(os.Getenv(ownProcessEnv)); len(role) > 0 {
		ownProcesses[role[0]](role[1:])
		os.Exit(0)
	}
}

// ownProcess is a peer that runs.
type ownProcess struct {
	t     testing.TB
	role  []string
	in    io.Writer
	lines chan string // that it says
	stop  func()
}

// startOwnProcess starts a peer and returns the line that it says it is ready with: the address that it listens on, if it does.
func startOwnProcess(t testing.TB, name string, args ...string) (ready string, stop func()) {
	t.Helper()
	p := startProcess(t, nil, name, args...)
	return p.listen(), p.stop
}

// startProcess starts a peer with a program in front that makes it first or last, if there is one.
func startProcess(t testing.TB, with []string, name string, args ...string) *ownProcess {
	t.Helper()
	role := append([]string{name}, args...)
	command := append(slices.Clone(with), os.Args[0])
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), ownProcessEnv+"="+strings.Join(role, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	p := &ownProcess{t: t, role: role, in: in, lines: make(chan string)}
	over := make(chan struct{})
	p.stop = sync.OnceFunc(func() {
		close(over)
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(p.stop)
	go func() {
		defer close(p.lines)
		for text := bufio.NewScanner(out); text.Scan(); {
			select {
			case p.lines <- text.Text():
			case <-over:
				return
			}
		}
	}()
	return p
}

// listen returns the next line that the peer says.
func (p *ownProcess) listen() string {
	p.t.Helper()
	line := within(p.t, peerTimeout, "a word of "+strings.Join(p.role, " "), p.lines)
	if line == "" {
		p.t.Fatalf("%v has ended", p.role)
	}
	return line
}

// ask tells the peer something and returns its answer.
func (p *ownProcess) ask(question string) (answer string) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, question); err != nil {
		p.t.Fatalf("%v: %v", p.role, err)
	}
	return p.listen()
}

// startEchoProcess is an echo in a process of its own, for thousands of connections.
func startEchoProcess(t testing.TB) (addr string) {
	t.Helper()
	addr, _ = startOwnProcess(t, "echo")
	return addr
}

// check ends a peer process that can't go on; the test then fails for what it does not get.
func check(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s: %v\n", os.Getenv(ownProcessEnv), what, err)
		os.Exit(1)
	}
}

// listenAndTell listens on a port that the kernel picks, and returns the blocking descriptor.
func listenAndTell() int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check("socket", err)
	check("bind", unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	check("listen", unix.Listen(fd, unix.SOMAXCONN))
	bound, err := unix.Getsockname(fd)
	check("getsockname", err)
	fmt.Printf("127.0.0.1:%d\n", bound.(*unix.SockaddrInet4).Port)
	return fd
}

// onEachEvent calls accepted for each connection, and readable for each that has something to read, in one thread without a goroutine
// for each: the race detector allows no more than 8,128 of those.
func onEachEvent(listening int, accepted, readable func(fd int)) {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	check("epoll_create", err)
	watch := func(fd int) {
		check("epoll_ctl", unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}))
	}
	watch(listening)
	events := make([]unix.EpollEvent, 512)
	for {
		n, err := unix.EpollWait(poll, events, -1)
		if err != unix.EINTR {
			check("epoll_wait", err)
		}
		for _, event := range events[:max(n, 0)] {
			if int(event.Fd) != listening {
				readable(int(event.Fd))
				continue
			}
			fd, _, err := unix.Accept4(listening, unix.SOCK_CLOEXEC)
			if err == unix.ECONNABORTED {
				continue
			}
			check("accept", err)
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
			watch(fd)
			accepted(fd)
		}
	}
}

// echoForever is the echo for thousands of connections, with messages of up to 4 KiB.
func echoForever(listening int) {
	message := make([]byte, 4<<10)
	onEachEvent(listening, func(int) {}, func(fd int) {
		n, errno := rawIO(unix.SYS_READ, fd, message)
		if errno == 0 && n > 0 {
			_, errno = rawIO(unix.SYS_WRITE, fd, message[:n])
		}
		if errno != 0 || n == 0 {
			_ = unix.Close(fd)
		}
	})
}

// chatWhenTold opens so many connections to an address. For each line that it is told they exchange messages for a second, one each 100 ms
// in each connection, evenly spread; then it says how many exchanges there were, and p50, p99 and the most of how long they took, in ns. An
// exchange that takes longer than that makes the connection leave out its next, so that the others show it too.
func chatWhenTold(args []string) {
	const (
		every, total = 100 * time.Millisecond, time.Second
		message      = 64
	)
	n, err := strconv.Atoi(args[1])
	check("number", err)
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	check("epoll_create", err)
	type client struct {
		fd, got int
		since   time.Time // of the exchange that is under way
	}
	clients := make([]client, n)
	for i := range clients {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		check("socket", err)
		check("connect", unix.Connect(fd, sockaddr(args[0])))
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		check("epoll_ctl", unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}))
		clients[i].fd = fd
	}
	question, answer, events := make([]byte, message), make([]byte, message), make([]unix.EpollEvent, 512)
	for told := bufio.NewScanner(os.Stdin); told.Scan(); {
		var (
			took                 = make([]time.Duration, 0, n*int(total/every))
			next, left, underWay = 0, cap(took), 0
		)
		for start := time.Now(); left > 0 || underWay > 0; {
			for ; left > 0 && time.Since(start) >= every*time.Duration(next)/time.Duration(n); next, left = next+1, left-1 {
				c := &clients[next%n]
				if !c.since.IsZero() {
					continue
				}
				c.since, c.got = time.Now(), 0
				underWay++
				_, errno := rawIO(unix.SYS_WRITE, c.fd, question)
				check("write", orNil(errno))
			}
			ready, err := unix.EpollWait(poll, events, 1)
			if err != unix.EINTR {
				check("epoll_wait", err)
			}
			for _, event := range events[:max(ready, 0)] {
				c := &clients[event.Fd]
				read, errno := rawIO(unix.SYS_READ, c.fd, answer)
				check("read", orNil(errno))
				if read == 0 {
					check("read", io.ErrUnexpectedEOF)
				}
				if c.got += read; c.got == message {
					took = append(took, time.Since(c.since))
					c.since = time.Time{}
					underWay--
				}
			}
		}
		slices.Sort(took)
		fmt.Println(len(took), int64(percentile(took, 50)), int64(percentile(took, 99)), int64(took[len(took)-1]))
	}
}

// orNil makes an error of a number that may be none.
func orNil(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// rawIO is read or write without the race detector's look at every byte.
func rawIO(call uintptr, fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), errno
}

// bulkWindow is how much may be under way at each end of a bulk connection: what 10 Gbit/s have in a millisecond. On loopback the system
// would make it several times as much, and each of its own turns, which nobody can interrupt, several times as long.
const bulkWindow = 1 << 20

// sourceForever sends without end to whoever connects. It sends a file from memory, which costs it no copy: what it takes of the
// processors would be taken from what is measured.
func sourceForever(listening int) {
	const size = 16 << 20
	file, err := unix.MemfdCreate("source", unix.MFD_CLOEXEC)
	check("memfd_create", err)
	check("ftruncate", unix.Ftruncate(file, size))
	for {
		fd, _, err := unix.Accept4(listening, unix.SOCK_CLOEXEC)
		check("accept", err)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, bulkWindow)
		go func() {
			defer unix.Close(fd)
			for err := error(nil); err == nil; {
				var offset int64
				_, err = unix.Sendfile(fd, file, &offset, size)
			}
		}()
	}
}

// drainForever opens a connection to each of the addresses and takes what comes as fast as it can, without a copy either (MSG_TRUNC,
// tcp(7)), until one of them ends.
func drainForever(addrs []string) {
	over := make(chan struct{}, len(addrs))
	for _, addr := range addrs {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		check("socket", err)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bulkWindow)
		check("connect", unix.Connect(fd, sockaddr(addr)))
		go func() {
			for {
				n, _, errno := syscall.Syscall6(unix.SYS_RECVFROM, uintptr(fd), 0, 1<<20, unix.MSG_TRUNC, 0, 0)
				if n == 0 || errno != 0 {
					over <- struct{}{}
					return
				}
			}
		}()
	}
	fmt.Println("ready")
	<-over
}

func sockaddr(addr string) *unix.SockaddrInet4 {
	to, err := netip.ParseAddrPort(addr)
	check("address", err)
	return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
}

// blockingRead is read without the race detector's look at every byte.
func blockingRead(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := syscall.Syscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), errno
}
