package relay

import (
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// waits reports whether there is something that could not be sent yet.
func (h *half) waits() bool { return h.left != nil || h.filled > 0 }

// resetOf names the reason for which h has gone.
func (f *flow) resetOf(h *half) Reason {
	if h == &f.client {
		return ClientReset
	}
	return UpstreamReset
}

// copy moves what one read gives through the loop's buffer.
func (f *flow) copy(src, dst *half, moved *atomic.Int64) int {
	buf := f.loop.buffer[:dst.turn(loopBuffer)]
	n, errno := recvFD(src.fd, buf)
	if n <= 0 {
		f.readEnded(src, errno)
		return 0
	}
	if n < len(buf) && !src.ending && !src.partial {
		src.readable = false // the socket is empty: an edge comes with whatever comes next
	}
	if n < largeRead || src.noSplice {
		src.streak = 0
	} else if src.streak++; src.streak == largeReads {
		src.bulk, src.streak = true, 0
	}
	f.send(dst, buf[:n], moved)
	return n
}

// readEnded sees to a read that gave nothing.
func (f *flow) readEnded(src *half, errno syscall.Errno) {
	switch errno {
	case unix.EAGAIN:
		src.readable = false
	case 0:
		src.eof = true
		if src.erred && !src.gone {
			f.lost(src) // the reset was there before the FIN was read
		}
	default:
		src.eof = true
		f.lost(src)
	}
}

// lost notes that h was reset. What it had sent before is still to be read.
func (f *flow) lost(h *half) {
	f.because(f.resetOf(h))
	h.gone, h.readable, h.ending = true, true, true
}

// send sends b to dst and keeps what dst does not take. Nothing is left for dst before.
func (f *flow) send(dst *half, b []byte, moved *atomic.Int64) {
	n, errno := sendFD(dst.fd, b)
	if n > 0 {
		f.sent(dst, moved, n)
	}
	switch {
	case errno == 0 && n == len(b):
	case errno == 0 || errno == unix.EAGAIN:
		dst.writable = false
		dst.keepLeft(b[max(n, 0):])
	default:
		f.lost(dst)
	}
}

// sent notes that dst has taken n bytes.
func (f *flow) sent(dst *half, moved *atomic.Int64, n int) {
	moved.Add(int64(n))
	f.touch(f.age())
	f.charge(dst, n)
}

// flush sends what was left for dst. It reports false while there still is something.
func (f *flow) flush(dst *half, moved *atomic.Int64) bool {
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
		f.sent(dst, moved, n)
		if dst.left != nil {
			dst.sentLeft(n)
		} else {
			f.spliced.Add(int64(n))
			dst.filled -= n
		}
		return f.flush(dst, moved)
	}
	if errno == unix.EAGAIN {
		dst.writable = false
		return false
	}
	f.lost(dst)
	return f.flush(dst, moved)
}

// spliceIn moves what src has, up to most bytes, into the pipe of dst, which is empty. flush takes it from there.
func (f *flow) spliceIn(src, dst *half, most int) int {
	if dst.pipe == nil {
		p, err := takePipe()
		if err != nil {
			src.bulk, src.streak = false, 0 // there may be one later
			return 0
		}
		dst.pipe = p
	}
	n, errno := spliceFD(src.fd, dst.pipe.w, dst.turn(most))
	if n <= 0 {
		dst.releasePipe()
		if errno == unix.EINVAL {
			src.bulk, src.noSplice = false, true
			return 0
		}
		if errno == 0 || (errno == unix.EAGAIN && src.ending) {
			// The end, or urgent data, which splice does not pass: a read tells.
			src.bulk, src.streak, src.ending = false, 0, true
			return 0
		}
		f.readEnded(src, errno)
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

// releasePipe gives the pipe back, or closes it if it is not empty.
func (h *half) releasePipe() {
	if h.pipe == nil {
		return
	}
	h.pipe.giveBack(h.filled == 0)
	h.pipe, h.filled = nil, 0
}
