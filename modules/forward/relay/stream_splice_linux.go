package relay

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readsRaw reports whether reader and splice work on this system.
const readsRaw = true

// reader reads from a socket. It takes a buffer only when the socket has something to read.
type reader struct {
	try func(fd uintptr) bool
	buf *[bufferSize]byte
	n   int
	err error
}

func (rd *reader) init() { rd.try = rd.tryRead }

// tryRead is called by Go's poller; false waits. The descriptor is non-blocking, so the scheduler is not told of the call.
func (rd *reader) tryRead(fd uintptr) bool {
	buf := borrow()
	n, _, errno := syscall.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(buf)), bufferSize)
	for errno == syscall.EINTR {
		n, _, errno = syscall.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(buf)), bufferSize)
	}
	if errno == 0 && n > 0 {
		rd.buf, rd.n, rd.err = buf, int(n), nil
		return true
	}
	giveBack(buf)
	rd.buf, rd.n, rd.err = nil, 0, nil
	if errno == syscall.EAGAIN {
		return false
	}
	if errno != 0 {
		rd.err = errno
	}
	return true
}

// read returns a buffer with n > 0 bytes, which the caller gives back, or n == 0 at the end: a FIN if err is nil.
func (rd *reader) read(raw syscall.RawConn) (buf *[bufferSize]byte, n int, err error) {
	if err := raw.Read(rd.try); err != nil {
		return nil, 0, err
	}
	return rd.buf, rd.n, rd.err
}

// smallAfter is after how many splices in a row of less than a buffer the stream is not bulk any more.
const smallAfter = 4

// splice moves the stream without a copy until it is not bulk any more, or until there is something that needs a read: urgent
// data, or the end. It holds a pipe only while there is data.
func (p *pump) splice() error {
	s := splicer{most: p.allowance(pipeSize)}
	defer s.release()
	for small := 0; small < smallAfter; {
		if err := p.src.raw.Read(s.in); err != nil {
			return err
		}
		switch {
		case s.err == unix.EINVAL:
			p.noSplice = true // use buffers from now on
			return nil
		case s.pipe == nil:
			return nil // urgent data is next, or all pipes are taken
		case s.err != nil:
			return s.err
		case s.filled == 0:
			return nil
		}
		if s.filled < bufferSize {
			small++
		} else {
			small = 0
		}
		for s.filled > 0 {
			if err := p.dst.raw.Write(s.out); err != nil {
				return writeError{err}
			}
			if s.err != nil {
				return writeError{s.err}
			}
			p.engine.spliced.Add(int64(s.moved))
			p.sent(s.moved)
		}
	}
	return nil
}

// splicer is the pipe between the two sockets of a direction.
type splicer struct {
	pipe   *pipe // nil while there is nothing to move
	most   int   // bytes to move at once
	filled int   // bytes in pipe
	moved  int   // bytes that the last out has moved
	err    error
}

// in fills the empty pipe from the socket fd. Go's poller calls it; false waits for data.
func (s *splicer) in(fd uintptr) bool {
	if s.pipe == nil {
		if s.pipe, s.err = takePipe(); s.err != nil {
			return true
		}
	}
	n, errno := spliceFD(int(fd), s.pipe.w, s.most)
	if errno == unix.EAGAIN {
		s.release()
		s.filled, s.err = 0, nil
		urgent, _ := unix.IoctlGetInt(int(fd), unix.SIOCATMARK)
		return urgent != 0
	}
	s.filled, s.err = max(n, 0), asError(errno)
	return true
}

// out moves the pipe's content to the socket fd. Go's poller calls it; false waits for room.
func (s *splicer) out(fd uintptr) bool {
	n, errno := spliceFD(s.pipe.r, int(fd), s.filled)
	if errno == unix.EAGAIN {
		return false
	}
	s.moved, s.err = max(n, 0), asError(errno)
	s.filled -= s.moved
	return true
}

// release returns the pipe to the pool, or closes it if it is not empty.
func (s *splicer) release() {
	if s.pipe == nil {
		return
	}
	s.pipe.giveBack(s.filled == 0)
	s.pipe = nil
}

func asError(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}
