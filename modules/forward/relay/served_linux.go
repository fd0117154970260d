package relay

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// served is a session of a loop, of whatever kind. Its methods are called by the loop's goroutine.
type served interface {
	// obey does what another goroutine has told the loop.
	obey(*message)
	// step is its turn again, for which it is in loop.ready.
	step()
	// check is called when a limit may have passed.
	check()
	// end closes the sockets and leaves the loop.
	end()
	// report tells the owner that the session has ended. It may block, and has a goroutine for that.
	report()
	// name is for the stack of a panic.
	name() fmt.Stringer
}

// watched is a socket of a session, as the loop knows it by its descriptor.
type watched interface {
	// hear is told what epoll says of the descriptor, and of the socket of which generation.
	hear(events, generation uint32)
}

// message is what other goroutines tell a loop.
type message struct {
	to     served
	what   order
	addr   net.Addr
	err    error
	reason Reason
}

type order uint8

const (
	orderConnect order = iota // to addr
	orderFail                 // there is no upstream to be reached: err
	orderCut                  // because of reason
	orderTime                 // look at the limits
	orderAsk                  // the upstream refuses datagrams
)

func (f *flow) name() fmt.Stringer { return f.cfg.Name }

func (f *flow) report() { f.done(f.reason, f.failed) }

func (f *flow) obey(m *message) {
	switch m.what {
	case orderConnect:
		f.connectTo(m.addr)
	case orderFail:
		f.fail(m.err)
	case orderCut:
		f.close(m.reason)
	case orderTime:
		f.setTimer()
	}
}

// broken is what epoll says, unasked, of a socket of which both directions are done.
const broken = unix.EPOLLHUP | unix.EPOLLERR

func (h *half) hear(events, generation uint32) {
	if h.generation != generation {
		return // it was closed in this turn
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|broken) != 0 {
		h.readable = true
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLPRI|broken) != 0 {
		h.ending = true
	}
	if events&(unix.EPOLLOUT|broken) != 0 {
		h.writable = true
	}
	f := h.flow
	f.loop.current = f
	bulk := f.client.bulk || f.upstream.bulk
	if !bulk {
		f.loop.waitedAt = f.loop.now
	}
	if events&unix.EPOLLERR != 0 {
		h.erred = true
		if h.eof && !h.gone {
			f.lost(h) // a reset after the FIN, which no read finds
		}
	}
	if f.queued {
		return // runReady gives it its turn; more would be at the expense of others
	}
	if f.phase == phaseConnecting && h == &f.upstream && h.writable {
		f.connected()
		return
	}
	if bulk {
		f.queue() // those who want little come first
	} else {
		f.step()
	}
}
