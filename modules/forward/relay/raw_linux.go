package relay

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readsRaw: sources are read through their descriptor.
const readsRaw = true

// reader reads what a socket has into a buffer that it borrows once the socket has something.
type reader struct {
	try func(fd uintptr) bool
	buf *[bufferSize]byte
	n   int
	err error
}

func (rd *reader) init() { rd.try = rd.tryRead }

// tryRead is called by the poller. The descriptor does not block, so the scheduler need not know of the call.
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

// read returns a buffer with n > 0 bytes, which the caller gives back; n == 0 is the end, in order if err is nil.
func (rd *reader) read(raw syscall.RawConn) (buf *[bufferSize]byte, n int, err error) {
	if err := raw.Read(rd.try); err != nil {
		return nil, 0, err
	}
	return rd.buf, rd.n, rd.err
}

// A stream is small again after so many splices in a row that would have fitted into a buffer.
const smallAfter = 4

// splice moves the stream without a copy until it turns small, or there is something that only a read
// passes or tells: urgent data, the end. It holds a pipe only while there is data.
func (p *pump) splice() error {
	s := splicer{most: p.turn(pipeSize)}
	defer s.release()
	for small := 0; small < smallAfter; {
		if err := p.src.raw.Read(s.in); err != nil {
			return err
		}
		switch {
		case s.err == unix.EINVAL:
			p.noSplice = true // from now on through buffers
			return nil
		case s.pipe == nil:
			return nil // urgent data is next; or there is no pipe, and buffers have to do
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
	most   int   // bytes at once
	filled int   // bytes in pipe
	moved  int   // by the last out
	err    error
}

// in fills the empty pipe from the socket fd. It is called by the poller: false waits for data.
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

// out empties the pipe into the socket fd.
func (s *splicer) out(fd uintptr) bool {
	n, errno := spliceFD(s.pipe.r, int(fd), s.filled)
	if errno == unix.EAGAIN {
		return false
	}
	s.moved, s.err = max(n, 0), asError(errno)
	s.filled -= s.moved
	return true
}

// release gives the pipe back, or closes it if it could not be emptied.
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
