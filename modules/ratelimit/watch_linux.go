package ratelimit

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
)

// watch notices clients that go while they wait. One goroutine watches all sockets with an epoll instance, which is itself in
// Go's poller. It reads nothing: what a client sends while it waits stays in its socket. The goroutine lives while there is
// something to watch.
type watch struct {
	mu      sync.Mutex
	epoll   int
	file    *os.File // of the epoll descriptor, nil while nothing is watched
	waiters map[int]*watched
}

// watched is a waiter's socket.
type watched struct {
	waiter *waiter
	spoken bool // the client has sent something that was read
}

// hangups are what is watched for. Edge-triggered: what a client has left unread does not wake the goroutine again.
const hangups = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR | unix.EPOLLET

// add watches the client of a waiter until the function that it returns is called, which must be before the connection is
// closed. Where the connection has no socket, or it can't be watched, the client is not missed before its turn.
func (w *watch) add(conn net.Conn, spoken bool, waiter *waiter) (remove func()) {
	fd := -1
	err := control(conn, func(socket int) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if err := w.open(); err != nil {
			return err
		}
		// The socket may have hung up already: epoll tells that, too.
		if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, socket, &unix.EpollEvent{Events: hangups, Fd: int32(socket)}); err != nil {
			w.closeIfIdle()
			return err
		}
		fd = socket
		w.waiters[fd] = &watched{waiter, spoken}
		return nil
	})
	if err != nil {
		return func() {}
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.waiters, fd)
		_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, fd, nil)
		w.closeIfIdle()
	}
}

// open starts the goroutine unless it runs. It needs mu.
func (w *watch) open() error {
	if w.file != nil {
		return nil
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	_ = unix.SetNonblock(epoll, true) // lets os.NewFile put it into the poller
	file := os.NewFile(uintptr(epoll), "epoll")
	poller, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return err
	}
	descriptors.Opened(1)
	w.epoll, w.file, w.waiters = epoll, file, make(map[int]*watched)
	go w.run(file, poller)
	return nil
}

// closeIfIdle ends the goroutine when there is nothing to watch. It needs mu.
func (w *watch) closeIfIdle() {
	if len(w.waiters) == 0 {
		_ = w.file.Close()
		descriptors.Opened(-1)
		w.file = nil
	}
}

func (w *watch) run(file *os.File, poller syscall.RawConn) {
	var events [128]unix.EpollEvent
	for {
		n := 0
		err := poller.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events[:], 0)
			return n > 0
		})
		if err != nil {
			return // the file is closed
		}
		w.mu.Lock()
		for _, event := range events[:n] {
			if one := w.waiters[int(event.Fd)]; w.file == file && one != nil && hasGone(int(event.Fd), one.spoken) {
				one.waiter.hasGone(reasonGone)
			}
		}
		w.mu.Unlock()
	}
}

// hasGone tells whether nobody waits at the other end of a socket any more.
//
// A reset, or an error of the network, is the end. A FIN says only that the client sends no more, which a client may say that
// has sent its request and waits for the answer, as netcat does: it keeps its place. One that has sent a FIN and nothing
// before it has asked for nothing. That is how a client looks that has given up: it is taken for gone, and so is one that
// would have waited in silence for a greeting.
func hasGone(fd int, spoken bool) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	if n, err := unix.Poll(fds, 0); err != nil || n == 0 {
		return false
	}
	switch events := fds[0].Revents; {
	case events&(unix.POLLERR|unix.POLLHUP) != 0:
		return true
	case events&unix.POLLRDHUP == 0 || spoken:
		return false
	}
	n, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err == nil && n == 0 || err != nil && !errors.Is(err, unix.EAGAIN)
}

// control calls f with the socket of a connection, which stays out of Go's poller if it has not been in it.
func control(conn net.Conn, f func(socket int) error) error {
	switch c := conn.(type) {
	case interface {
		Control(func(fd int) error) error
	}:
		return c.Control(f)
	case syscall.Conn:
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		if failed := raw.Control(func(fd uintptr) { err = f(int(fd)) }); failed != nil {
			return failed
		}
		return err
	}
	return errors.ErrUnsupported
}
