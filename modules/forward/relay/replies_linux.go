package relay

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// replies are datagrams of upstreams on their way to clients. What comes in one turn of a loop is sent at its
// end, of all sessions together: one call for each listening socket.
type replies struct {
	count   int
	flows   [repliesMax]*packetFlow // nil where the datagram was dropped
	in, out [repliesMax]mmsghdr
	inIov   [repliesMax]unix.Iovec
	outIov  [repliesMax]unix.Iovec
	sending [repliesMax]*packetFlow
	buffers [repliesMax * replyStride]byte // only pages that were ever used take memory
}

// repliesMax are gathered at most before they are sent. They lie a bit further apart than the largest takes, because
// memory at the same place of every page shares few lines of the processor's cache.
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

// read reads up to most datagrams from fd behind those that there are. There has to be room.
func (r *replies) read(fd, most int) (int, syscall.Errno) {
	return mmsgCall(unix.SYS_RECVMMSG, fd, r.in[r.count:r.count+most])
}

// size is that of the i-th datagram.
func (r *replies) size(i int) int { return int(r.in[i].size) }

// send sends everything.
func (r *replies) send() {
	for i, f := range r.flows[:r.count] {
		if f != nil {
			r.sendGathered(f.replyFD, r.gather(f.replyFD, i))
		}
	}
	r.count = 0
}

// gather makes those from the first on that leave through fd ready to be sent.
func (r *replies) gather(fd, first int) (n int) {
	for i := first; i < r.count; i++ {
		f := r.flows[i]
		if f == nil || f.replyFD != fd {
			continue
		}
		out := &r.out[n]
		out.Name, out.Namelen = unsafe.SliceData(f.peer), uint32(len(f.peer))
		out.Control = unsafe.SliceData(f.control)
		out.SetControllen(len(f.control))
		r.outIov[n].Base = r.inIov[i].Base
		r.outIov[n].SetLen(r.size(i))
		r.sending[n], r.flows[i] = f, nil
		n++
	}
	return n
}

// sendGathered sends them. One that can't be sent is at nobody else's expense.
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
			for ; i < n; i++ { // there is no room for any
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

// sendReplies ends a turn.
func (l *loop) sendReplies() {
	if l.replies != nil && l.replies.count > 0 {
		l.replies.send()
	}
}
