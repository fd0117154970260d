package relay

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// replies are datagrams of upstreams on their way to clients. At the end of each round the loop sends those of all sessions
// together, with one system call for each listening socket.
type replies struct {
	count    int
	sessions [repliesMax]*loopPackets // of each datagram; nil where it was dropped
	in, out  [repliesMax]mmsghdr
	inIov    [repliesMax]unix.Iovec
	outIov   [repliesMax]unix.Iovec
	sending  [repliesMax]*loopPackets
	buffers  [repliesMax * replyStride]byte // only pages that were ever used take memory
}

// repliesMax is how many replies are gathered before they are sent. Their buffers lie a bit further apart than the largest
// datagram takes: buffers that all begin at the same place of a page would share few lines of the processor's cache.
const (
	repliesMax  = 64
	replyStride = packetSize + 64
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	size uint32
}

func newReplies() *replies {
	r := new(replies)
	for i := range r.in {
		r.inIov[i].Base = &r.buffers[i*replyStride]
		r.inIov[i].SetLen(packetSize)
		r.in[i].Iov = &r.inIov[i]
		r.in[i].SetIovlen(1)
		r.out[i].Iov = &r.outIov[i]
		r.out[i].SetIovlen(1)
	}
	return r
}

// read adds up to most datagrams from fd. The caller sees that there is room.
func (r *replies) read(fd, most int) (int, syscall.Errno) {
	return mmsgCall(unix.SYS_RECVMMSG, fd, r.in[r.count:r.count+most])
}

// size is that of the i-th datagram.
func (r *replies) size(i int) int { return int(r.in[i].size) }

// send sends everything.
func (r *replies) send() {
	for i, s := range r.sessions[:r.count] {
		if s != nil {
			r.sendGathered(s.replyFD, r.gather(s.replyFD, i))
		}
	}
	r.count = 0
}

// gather prepares the replies from index first on that leave through fd.
func (r *replies) gather(fd, first int) (n int) {
	for i := first; i < r.count; i++ {
		s := r.sessions[i]
		if s == nil || s.replyFD != fd {
			continue
		}
		out := &r.out[n]
		out.Name, out.Namelen = unsafe.SliceData(s.peer), uint32(len(s.peer))
		out.Control = unsafe.SliceData(s.control)
		out.SetControllen(len(s.control))
		r.outIov[n].Base = r.inIov[i].Base
		r.outIov[n].SetLen(r.size(i))
		r.sending[n], r.sessions[i] = s, nil
		n++
	}
	return n
}

// sendGathered sends the n replies that gather has prepared. One that can't be sent does not keep back the others.
func (r *replies) sendGathered(fd, n int) {
	for i := 0; i < n; {
		sent, errno := mmsgCall(unix.SYS_SENDMMSG, fd, r.out[i:n])
		switch {
		case errno == 0:
			for range sent {
				r.sending[i].replied(int(r.outIov[i].Len))
				i++
			}
		case errno == unix.EAGAIN:
			for ; i < n; i++ { // the socket has no room
				r.sending[i].unsent()
			}
		default:
			r.sending[i].unsent()
			i++
		}
	}
	clear(r.sending[:n])
}

func mmsgCall(call uintptr, fd int, messages []mmsghdr) (int, syscall.Errno) {
	return retried(func() (uintptr, uintptr, syscall.Errno) {
		return syscall.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(messages))),
			uintptr(len(messages)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	})
}

// sendReplies sends what the sessions have read in this round.
func (l *loop) sendReplies() {
	if l.replies != nil && l.replies.count > 0 {
		l.replies.send()
	}
}
