// Package hangup notices clients that leave while nobody reads from them, such as those that wait for their turn.
package hangup

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/portgate/caddy-portgate/modules/internal/descriptors"
)

// Watch notices clients that leave. One goroutine watches all sockets with an epoll instance, which is itself in
// Go's poller. It reads nothing: what a client sends stays in its socket. The goroutine lives while there is
// something to watch. The zero value is ready to use.
type Watch struct {
	mu      sync.Mutex
	epoll   int
	file    *os.File // of the epoll descriptor, nil while nothing is watched
	last    int32    // number of the socket that was added last
	watched map[int32]*watched
}

// watched is a client's socket.
type watched struct {
	fd     int
	spoken bool // the client has sent something that was read
	gone   func(reset bool)
}

// hangups are what is watched for. Edge-triggered: what a client has left unread does not wake the goroutine again.
const hangups = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR | unix.EPOLLET

// Add watches a client until the function that it returns is called. gone is called when the client has left, perhaps again: it must
// neither block nor use the watch. reset tells whether the client has reset the connection. spoken says that the client has sent something
// which was read. A client whose connection has no socket, or can't be watched, is not missed.
func (w *Watch) Add(conn net.Conn, spoken bool, gone func(reset bool)) (remove func()) {
	id := int32(0)
	err := control(conn, func(fd int) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if err := w.open(); err != nil {
			return err
		}
		next := w.last + 1
		// The socket may have hung up already: epoll tells that, too.
		if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: hangups, Fd: next}); err != nil {
			w.closeIfIdle()
			return err
		}
		id, w.last = next, next
		w.watched[id] = &watched{fd, spoken, gone}
		return nil
	})
	if err != nil {
		return func() {}
	}
	return sync.OnceFunc(func() { w.remove(conn, id) })
}

// remove ends the watch of a socket. One that was closed meanwhile has left the epoll instance by itself, and its descriptor may be another
// socket's by now: then there is no control of it.
func (w *Watch) remove(conn net.Conn, id int32) {
	_ = control(conn, func(fd int) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.watched[id] != nil {
			_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, fd, nil)
		}
		return nil
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.watched, id)
	w.closeIfIdle()
}

// open starts the goroutine unless it runs. It needs mu.
func (w *Watch) open() error {
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
	w.epoll, w.file, w.watched = epoll, file, make(map[int32]*watched)
	go w.run(file, poller)
	return nil
}

// closeIfIdle ends the goroutine when there is nothing to watch. It needs mu.
func (w *Watch) closeIfIdle() {
	if len(w.watched) == 0 && w.file != nil {
		_ = w.file.Close()
		descriptors.Opened(-1)
		w.file = nil
	}
}

func (w *Watch) run(file *os.File, poller syscall.RawConn) {
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
			one := w.watched[event.Fd]
			if w.file != file || one == nil {
				continue
			}
			if gone, reset := hasGone(one.fd, event.Events, one.spoken); gone {
				one.gone(reset)
			}
		}
		w.mu.Unlock()
	}
}

// hasGone tells whether nobody waits at the other end of a socket any more.
//
// A reset, or an error of the network, is the end. A FIN says only that the client sends no more, which a client may say that
// has sent its request and waits for the answer, as netcat does: it stays. One that has sent a FIN and nothing
// before it has asked for nothing. That is how a client looks that has given up: it is taken for gone, and so is one that
// would have waited in silence for a greeting.
func hasGone(fd int, events uint32, spoken bool) (gone, reset bool) {
	switch {
	case events&unix.EPOLLERR != 0:
		return true, true
	case events&(unix.EPOLLRDHUP|unix.EPOLLHUP) == 0 || spoken:
		return false, false
	}
	n, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	reset = err != nil && !errors.Is(err, unix.EAGAIN)
	return reset || err == nil && n == 0, reset
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
