package relay

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A loop moves the bytes of many relays in one goroutine. It watches its sockets with an epoll
// instance of its own, edge-triggered. The epoll descriptor is itself in Go's poller: while nothing
// is ready the goroutine is parked there and holds neither a thread nor a processor. All calls on
// the sockets are non-blocking, so they are made without telling the scheduler.
type loop struct {
	epoll  int
	poller syscall.RawConn // of the epoll descriptor
	file   *os.File        // keeps it open
	wakeup int             // an eventfd in the epoll instance

	mu     sync.Mutex
	inbox  []message
	parked bool // and to be woken for a message

	// All below belongs to the loop's goroutine.

	now     time.Duration // since epoch, as of this turn
	alarm   *time.Timer   // wakes the loop for a time limit
	alarmAt time.Duration
	letters []message // the inbox of this turn
	halves  []*half   // by descriptor
	ready   []*flow   // had more to move than a turn allows
	serving []*flow   // the same, of the last turn
	ended   []*flow   // of this turn
	wheel   wheel
	current *flow // for the stack of a panic
	waiting int   // what poll has found
	pollFn  func(uintptr) bool
	events  [128]unix.EpollEvent
	buffer  [loopBuffer]byte
}

// loopBuffer is as much as one read takes. What a socket does not take of it is kept until it does, so
// this is also what a session whose peer does not read holds. Larger reads are left to splice.
const loopBuffer = 64 << 10

// epoch is what loops count time from.
var epoch = time.Now()

// loops are started with the first relay, one per processor, and stay.
var loops = sync.OnceValue(func() (all []*loop) {
	for range runtime.GOMAXPROCS(0) {
		l, err := newLoop()
		if err != nil {
			break // no descriptors: what there is has to do, if nothing then goroutines
		}
		go l.run()
		all = append(all, l)
	}
	return all
})

var turn atomic.Uint32

// pickLoop deals relays out in turn. It returns nil where there are no loops.
func pickLoop() *loop {
	all := loops()
	if len(all) == 0 {
		return nil
	}
	return all[turn.Add(1)%uint32(len(all))]
}

func newLoop() (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	_ = unix.SetNonblock(epoll, true) // lets os.NewFile put it into the poller
	file := os.NewFile(uintptr(epoll), "epoll")
	poller, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	wakeup, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	l := &loop{epoll: epoll, file: file, poller: poller, wakeup: wakeup}
	l.alarmAt = never
	l.alarm = time.AfterFunc(never, l.wake)
	l.pollFn = l.poll
	l.wheel.init(time.Since(epoch))
	err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wakeup, &unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(wakeup),
	})
	if err != nil {
		_ = unix.Close(wakeup)
		_ = file.Close()
		return nil, err
	}
	return l, nil
}

// message is what other goroutines tell a loop.
type message struct {
	to     *flow
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
)

// post leaves a message for the loop's next turn.
func (l *loop) post(m message) {
	l.mu.Lock()
	l.inbox = append(l.inbox, m)
	wake := l.parked
	l.parked = false
	l.mu.Unlock()
	if wake {
		l.wake()
	}
}

// wake makes a parked loop take a turn. Nobody reads the eventfd: each write is an edge.
func (l *loop) wake() {
	one := [8]byte{1}
	_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(l.wakeup), uintptr(unsafe.Pointer(&one)), uintptr(len(one)))
}

// watch lets the loop hear of fd. The generation tells a late event for a descriptor that was
// closed from one for its successor.
func (l *loop) watch(fd int, generation uint32) error {
	event := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET,
		Fd:     int32(fd), Pad: int32(generation),
	}
	_, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(l.epoll), unix.EPOLL_CTL_ADD, uintptr(fd),
		uintptr(unsafe.Pointer(&event)), 0, 0)
	if errno != 0 {
		return os.NewSyscallError("epoll_ctl", errno)
	}
	return nil
}

// yieldAfter is how long a loop that always finds something to do keeps its processor. Giving way in every
// turn costs a lone exchange half of its time.
const yieldAfter = time.Millisecond

func (l *loop) run() {
	defer l.explainPanic()
	yielded := time.Since(epoch)
	for {
		if l.mayPark() {
			l.arm()
			_ = l.poller.Read(l.pollFn) // the descriptor is never closed and has no deadline
		} else {
			l.poll(uintptr(l.epoll))
		}
		l.now = time.Since(epoch)
		l.wheel.skip(l.now)
		l.readInbox()
		l.dispatch()
		l.runReady()
		l.wheel.advance(l.now, l.expire)
		l.endAll()
		if l.now-yielded > yieldAfter {
			runtime.Gosched()
			yielded = time.Since(epoch)
		}
	}
}

// mayPark reports whether there is nothing to do but what poll finds.
func (l *loop) mayPark() bool {
	if len(l.ready) > 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parked = len(l.inbox) == 0
	return l.parked
}

// poll fetches what is ready. It is called by Go's poller too: false parks the goroutine until
// something is.
func (l *loop) poll(fd uintptr) bool {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, fd,
		uintptr(unsafe.Pointer(&l.events)), uintptr(len(l.events)), 0, 0, 0)
	if errno != 0 {
		n = 0 // EINTR
	}
	l.waiting = int(n)
	return n > 0
}

func (l *loop) readInbox() {
	l.mu.Lock()
	l.letters, l.inbox = l.inbox, l.letters[:0]
	l.parked = false
	l.mu.Unlock()
	for i := range l.letters {
		m := &l.letters[i]
		l.current = m.to
		switch m.what {
		case orderConnect:
			m.to.connectTo(m.addr)
		case orderFail:
			m.to.fail(m.err)
		case orderCut:
			m.to.close(m.reason)
		case orderTime:
			m.to.setTimer()
		}
	}
	clear(l.letters)
}

func (l *loop) dispatch() {
	for i := range l.events[:l.waiting] {
		event := &l.events[i]
		if int(event.Fd) == l.wakeup {
			continue
		}
		if int(event.Fd) >= len(l.halves) {
			continue
		}
		h := l.halves[event.Fd]
		if h == nil || h.generation != uint32(event.Pad) {
			continue // closed in this turn
		}
		const broken = unix.EPOLLHUP | unix.EPOLLERR
		if event.Events&(unix.EPOLLIN|unix.EPOLLRDHUP|broken) != 0 {
			h.readable = true
		}
		if event.Events&(unix.EPOLLRDHUP|unix.EPOLLPRI|broken) != 0 {
			h.ending = true
		}
		if event.Events&(unix.EPOLLOUT|broken) != 0 {
			h.writable = true
		}
		l.current = h.flow
		if event.Events&unix.EPOLLERR != 0 && h.eof && !h.gone {
			h.flow.lost(h) // a reset after the FIN, which no read finds
		}
		if !h.flow.queued { // else runReady gives it its turn; more would be at the expense of others
			h.flow.step(h)
		}
	}
}

// runReady gives each flow that has more to move one more turn.
func (l *loop) runReady() {
	l.serving, l.ready = l.ready, l.serving[:0]
	for _, f := range l.serving {
		f.queued = false
		l.current = f
		f.step(nil)
	}
	clear(l.serving)
}

func (l *loop) expire(f *flow) {
	l.current = f
	f.check()
}

// endAll reports the flows that have ended to their owners, in a goroutine because that may block.
func (l *loop) endAll() {
	l.current = nil
	if len(l.ended) == 0 {
		return
	}
	ended := l.ended
	l.ended = nil
	go func() {
		for _, f := range ended {
			f.done(f.reason, f.failed)
		}
	}()
}

// arm sets the alarm for the next time limit.
func (l *loop) arm() {
	next := l.wheel.next()
	if next == l.alarmAt {
		return
	}
	l.alarmAt = next
	if next == never {
		l.alarm.Stop()
		return
	}
	l.alarm.Reset(next - time.Since(epoch))
}

// add makes h known by its descriptor.
func (l *loop) add(h *half) {
	if h.fd >= len(l.halves) {
		l.halves = append(l.halves, make([]*half, h.fd+1-len(l.halves)+64)...)
	}
	l.halves[h.fd] = h
}

// explainPanic adds the session to the stack of a panic, which then ends the process.
func (l *loop) explainPanic() {
	if p := recover(); p != nil {
		if l.current != nil {
			panic(fmt.Sprintf("relay: session %v: %v", l.current.cfg.Name, p))
		}
		panic(p)
	}
}
