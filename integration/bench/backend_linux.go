package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
)

// The first byte of a connection says what the backend does with it, and that of a datagram. Those have modeEcho and modeSink only.
const (
	modeEcho   = 'e' // send everything back
	modeSink   = 's' // send this one byte back, and throw away all that follows; a datagram is thrown away
	modeSource = 'g' // send this one byte back, and, once there is another one, send without an end
	modeFlow   = 'f' // what modeSource becomes then
	modeOnce   = 'o' // send this one byte back, and close
)

// chunk is what one system call of a bulk transfer may move.
const chunk = 128 << 10

// backendCounts is what the backend tells.
type backendCounts struct {
	open      atomic.Int64 // connections
	datagrams atomic.Int64 // of modeSink that have arrived
}

// runBackend is the backend process. It prints the ports that it listens on, a TCP and a UDP port for each target so that
// targets don't compete for each other's addresses in TIME_WAIT, then answers each line on stdin with its counts, and
// ends with stdin.
func runBackend(loops, ports int, stdin io.Reader, stdout io.Writer) error {
	var listeners, sockets []int
	var names []string
	for range ports {
		fd, port, err := listen()
		if err != nil {
			return err
		}
		socket, datagramPort, err := listenDatagrams()
		if err != nil {
			return err
		}
		listeners, sockets = append(listeners, fd), append(sockets, socket)
		names = append(names, fmt.Sprint(port), fmt.Sprint(datagramPort))
	}
	counts := new(backendCounts)
	failed := make(chan error, loops)
	for range loops {
		l, err := newBackendLoop(listeners, sockets, counts)
		if err != nil {
			return err
		}
		go func() { failed <- l.run() }()
	}
	fmt.Fprintln(stdout, strings.Join(names, " "))

	over := make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(stdin)
		for lines.Scan() {
			fmt.Fprintln(stdout, counts.open.Load(), counts.datagrams.Load())
		}
		over <- lines.Err()
	}()
	select {
	case err := <-failed:
		return err
	case err := <-over:
		return err
	}
}

// backendLoop serves its share of the connections.
type backendLoop struct {
	*poller
	listeners map[int32]bool
	modes     []byte // by descriptor; 0: no byte received yet
	buffer    []byte
	counts    *backendCounts
}

// modeDatagrams is the mode of a UDP socket, whose datagrams each say their own.
const modeDatagrams = 'd'

func newBackendLoop(listeners, sockets []int, counts *backendCounts) (*backendLoop, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	l := &backendLoop{p, make(map[int32]bool), make([]byte, 1<<16), make([]byte, chunk), counts}
	for _, fd := range listeners {
		if errno := p.add(fd, int32(fd), readable|oneWakes); errno != 0 {
			return nil, os.NewSyscallError("epoll_ctl", errno)
		}
		l.listeners[int32(fd)] = true
	}
	for _, fd := range sockets {
		if errno := p.add(fd, int32(fd), readable|oneWakes); errno != 0 {
			return nil, os.NewSyscallError("epoll_ctl", errno)
		}
		l.modes[fd] = modeDatagrams
	}
	return l, nil
}

func (l *backendLoop) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		for _, event := range l.wait() {
			switch {
			case event.Fd < int32(len(l.modes)) && l.modes[event.Fd] != 0:
				l.serve(event.Fd, l.modes[event.Fd])
			case l.listeners[event.Fd]:
				if err := l.accept(event.Fd); err != nil {
					return err
				}
			default:
				l.first(event.Fd)
			}
		}
	}
}

func (l *backendLoop) accept(listener int32) error {
	fd, errno := accept(int(listener))
	switch errno {
	case 0:
	case syscall.EAGAIN, syscall.ECONNABORTED, syscall.EINTR: // another loop was faster, or the client has left
		return nil
	default:
		return os.NewSyscallError("accept4", errno)
	}
	if fd >= len(l.modes) {
		return fmt.Errorf("descriptor %d: expected less than %d", fd, len(l.modes))
	}
	l.modes[fd] = 0
	l.counts.open.Add(1)
	if errno := l.add(fd, int32(fd), readable); errno != 0 {
		return os.NewSyscallError("epoll_ctl", errno)
	}
	return nil
}

// first reads what says the mode, and serves it.
func (l *backendLoop) first(fd int32) {
	n, errno := receive(int(fd), l.buffer)
	if errno == syscall.EAGAIN {
		return
	}
	if errno != 0 || n == 0 {
		l.end(fd)
		return
	}
	l.modes[fd] = l.buffer[0]
	answer := l.buffer[:n]
	if l.modes[fd] != modeEcho {
		answer = answer[:1]
	}
	l.answer(fd, answer)
	if l.modes[fd] == modeOnce {
		l.end(fd)
	}
}

func (l *backendLoop) serve(fd int32, mode byte) {
	if mode == modeDatagrams {
		l.datagrams(int(fd))
		return
	}
	var n int
	var errno syscall.Errno
	switch mode {
	case modeFlow:
		n, errno = send(int(fd), l.buffer)
	case modeSink:
		n, errno = discard(int(fd), chunk)
	default:
		n, errno = receive(int(fd), l.buffer)
	}
	switch {
	case errno == syscall.EAGAIN:
	case errno != 0 || n == 0:
		l.end(fd)
	case mode == modeEcho:
		l.answer(fd, l.buffer[:n])
	case mode == modeSource:
		l.modes[fd] = modeFlow
		if errno := l.modify(int(fd), fd, writable); errno != 0 {
			l.end(fd)
		}
	}
}

// datagrams takes those that are there, but for a time that leaves the other sockets theirs.
func (l *backendLoop) datagrams(fd int) {
	const most = 64
	var from syscall.RawSockaddrInet4
	sunk := 0
	for range most {
		n, errno := receiveFrom(fd, l.buffer, &from)
		if errno != 0 { // nothing more, or an ICMP error that concerns one client
			break
		}
		switch {
		case n > 0 && l.buffer[0] == modeEcho:
			sendTo(fd, l.buffer[:n], &from)
		case n == oneWayBytes && l.buffer[0] == modeSink: // what is cut has not arrived
			sunk++
		}
	}
	l.counts.datagrams.Add(int64(sunk))
}

// answer sends all at once or gives the connection up: nobody has more than one small message on its way.
func (l *backendLoop) answer(fd int32, data []byte) {
	if n, errno := send(int(fd), data); errno != 0 || n < len(data) {
		l.end(fd)
	}
}

func (l *backendLoop) end(fd int32) {
	l.modes[fd] = 0
	closeSocket(int(fd))
	l.counts.open.Add(-1)
}
