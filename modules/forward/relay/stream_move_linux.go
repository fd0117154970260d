package relay

import (
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// waits reports whether something that was read for h could not be sent yet.
func (h *half) waits() bool { return h.left != nil || h.filled > 0 }

// resetOf returns the reason for a reset of h.
func (s *loopStream) resetOf(h *half) Reason {
	if h == &s.client {
		return ClientReset
	}
	return UpstreamReset
}

// copy moves the bytes of one read through the loop's buffer. It returns how many.
func (s *loopStream) copy(src, dst *half, moved *atomic.Int64) int {
	buf := s.loop.buffer[:dst.allowance(loopBuffer)]
	n, errno := recvFD(src.fd, buf)
	if n <= 0 {
		s.readEnded(src, errno)
		return 0
	}
	if s.first != nil && src == &s.upstream {
		s.first.tell(s.age(), "")
		s.first = nil // may keep much memory alive
	}
	if n < len(buf) && !src.ending && !src.partial {
		src.readable = false // the socket is empty; epoll reports what comes next
	}
	if n < largeRead || src.noSplice {
		src.streak = 0
	} else if src.streak++; src.streak == largeReads {
		src.bulk, src.streak = true, 0
	}
	s.send(dst, buf[:n], moved)
	return n
}

// readEnded handles a read that has returned no bytes.
func (s *loopStream) readEnded(src *half, errno syscall.Errno) {
	switch errno {
	case unix.EAGAIN:
		src.readable = false
	case 0:
		src.eof = true
		if src.erred && !src.gone {
			s.lost(src) // it was reset before we read the FIN
		}
	default:
		src.eof = true
		s.lost(src)
	}
}

// lost notes that h was reset. What it had sent before can still be read.
func (s *loopStream) lost(h *half) {
	s.setReason(s.resetOf(h))
	h.gone, h.readable, h.ending = true, true, true
}

// send sends b to dst, and keeps what dst does not take. Nothing waits for dst before.
func (s *loopStream) send(dst *half, b []byte, moved *atomic.Int64) { s.sendBehind(dst, b, 0, moved) }

// sendBehind is send where the first bytes of b, preface of them, are a [Config.Preface].
func (s *loopStream) sendBehind(dst *half, b []byte, preface int, moved *atomic.Int64) {
	n, errno := sendFD(dst.fd, b)
	if n > preface {
		s.sent(dst, moved, n-preface)
	}
	switch {
	case errno == 0 && n == len(b):
	case errno == 0 || errno == unix.EAGAIN:
		dst.writable = false
		n = max(n, 0)
		dst.keepLeft(b[n:])
		dst.left.preface = max(preface-n, 0)
	default:
		s.lost(dst)
	}
}

// sent notes that dst has taken n bytes.
func (s *loopStream) sent(dst *half, moved *atomic.Int64, n int) {
	moved.Add(int64(n))
	s.touch(s.age())
	s.charge(dst, n)
	if s.first != nil && dst == &s.upstream {
		s.setTimer() // a byte may be late from now on
	}
}

// flush sends what waits for dst. It reports false while there is more.
func (s *loopStream) flush(dst *half, moved *atomic.Int64) bool {
	if !dst.waits() {
		return true
	}
	if dst.gone {
		dst.dropLeft()
		dst.releasePipe()
		return true
	}
	if !dst.writable {
		return false
	}
	var n int
	var errno syscall.Errno
	if dst.left != nil {
		n, errno = sendFD(dst.fd, dst.left.data)
	} else {
		n, errno = spliceFD(dst.pipe.r, dst.fd, dst.filled)
	}
	if n > 0 {
		if dst.left != nil {
			s.sent(dst, moved, dst.sentLeft(n))
		} else {
			s.sent(dst, moved, n)
			s.spliced.Add(int64(n))
			dst.filled -= n
		}
		return s.flush(dst, moved)
	}
	if errno == unix.EAGAIN {
		dst.writable = false
		return false
	}
	s.lost(dst)
	return s.flush(dst, moved)
}

// spliceIn moves up to most bytes from src into the pipe of dst, which is empty. flush sends them.
func (s *loopStream) spliceIn(src, dst *half, most int) int {
	if dst.pipe == nil {
		p, err := takePipe()
		if err != nil {
			src.bulk, src.streak = false, 0 // try again after the next large reads
			return 0
		}
		dst.pipe = p
	}
	n, errno := spliceFD(src.fd, dst.pipe.w, dst.allowance(most))
	if n <= 0 {
		dst.releasePipe()
		if errno == unix.EINVAL {
			src.bulk, src.noSplice = false, true
			return 0
		}
		if errno == 0 || (errno == unix.EAGAIN && src.ending) {
			// Either the end or urgent data, which splice does not pass on: a read shows which.
			src.bulk, src.streak, src.ending = false, 0, true
			return 0
		}
		s.readEnded(src, errno)
		return 0
	}
	dst.filled = n
	if n >= smallSplice {
		src.streak = 0
	} else if src.streak++; src.streak == smallReads {
		src.bulk, src.streak = false, 0
	}
	return n
}

// releasePipe returns the pipe to the pool, or closes it if it is not empty.
func (h *half) releasePipe() {
	if h.pipe == nil {
		return
	}
	h.pipe.giveBack(h.filled == 0)
	h.pipe, h.filled = nil, 0
}
