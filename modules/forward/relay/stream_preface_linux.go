package relay

import (
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// sendFirst sends what the upstream gets first: the preface and what was prefetched, or what the client has sent by now.
func (s *loopStream) sendFirst(cfg *Config) {
	preface := len(cfg.Preface)
	switch {
	case preface == 0 && len(cfg.Prefetched) > 0:
		s.send(&s.upstream, cfg.Prefetched, &s.up)
	case preface == 0:
	case len(cfg.Prefetched) > 0 || s.upstream.pauses():
		s.sendBehind(&s.upstream, slices.Concat(cfg.Preface, cfg.Prefetched), preface, &s.up)
	default:
		buf := s.loop.buffer[:]
		n := copy(buf, cfg.Preface)
		got, errno := recvFD(s.client.fd, buf[n:n+s.upstream.allowance(len(buf)-n)])
		if got <= 0 && errno != unix.EAGAIN {
			s.readEnded(&s.client, errno)
		}
		s.sendBehind(&s.upstream, buf[:n+max(got, 0)], preface, &s.up)
	}
}

// readNow reads what has arrived at a socket, without waiting. Where there is something, the caller gives the buffer back. An end is left to
// the next read, an error too, unless the kernel reports it once.
func readNow(raw syscall.RawConn) (buf *[bufferSize]byte, n int) {
	_ = raw.Read(func(fd uintptr) bool {
		buf = borrow()
		n, _ = recvFD(int(fd), buf[:])
		return true
	})
	if buf != nil && n <= 0 {
		giveBack(buf)
		buf = nil
	}
	return buf, n
}
