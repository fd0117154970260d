package relay

import (
	"fmt"
	"os"
	"runtime"
	"slices"
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

	peers   []*loop      // all loops
	turnsAt atomic.Int64 // the begin of this turn, as now; 0 while parked

	// All below belongs to the loop's goroutine.

	now      time.Duration // since epoch, as of this turn
	waitedAt time.Duration // when one that does not always have more to move last had something
	yielded  time.Duration // when it last let other goroutines run
	gave     time.Duration // when it last looked after its peers
	alarm    *time.Timer   // wakes the loop for a time limit
	alarmAt  time.Duration
	letters  []message // the inbox of this turn
	watches  []watched // by descriptor
	ready    []served  // have more to move than a turn allows; the first has waited for longest
	ended    []served  // of this turn
	wheel    wheel
	paces    paced
	current  served   // for the stack of a panic
	replies  *replies // nil before there was one
	waiting  int      // what poll has found
	pollFn   func(uintptr) bool
	events   [128]unix.EpollEvent
	buffer   [loopBuffer]byte
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
		all = append(all, l)
	}
	for _, l := range all {
		l.peers = all
		go l.run()
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

// What a loop hears of. Of a socket for datagrams it is not told that it can be written again: that is so after
// every datagram.
const (
	streamEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET
	packetEvents = unix.EPOLLIN | unix.EPOLLET
)

// watch lets the loop hear of fd. The generation tells a late event for a descriptor that was
// closed from one for its successor.
func (l *loop) watch(fd int, events, generation uint32) error {
	event := unix.EpollEvent{Events: events, Fd: int32(fd), Pad: int32(generation)}
	_, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(l.epoll), unix.EPOLL_CTL_ADD, uintptr(fd),
		uintptr(unsafe.Pointer(&event)), 0, 0)
	if errno != 0 {
		return os.NewSyscallError("epoll_ctl", errno)
	}
	return nil
}

func (l *loop) run() {
	defer l.explainPanic()
	for {
		if l.mayPark() {
			l.arm()
			l.turnsAt.Store(0)
			_ = l.poller.Read(l.pollFn) // the descriptor is never closed and has no deadline
		} else {
			l.poll(uintptr(l.epoll))
		}
		l.now = time.Since(epoch)
		l.turnsAt.Store(int64(l.now))
		l.wheel.skip(l.now)
		l.readInbox()
		ready := len(l.ready)
		l.dispatch()
		l.runReady(ready)
		l.sendReplies()
		l.wheel.advance(l.now, l.expire)
		l.resume()
		l.endAll()
		l.giveWay()
	}
}

const (
	// yieldAfter is how long a loop that always finds something to do keeps its processor from other goroutines. Giving
	// way in every turn costs a lone exchange half of its time.
	yieldAfter = time.Millisecond
	// starvedAfter is how long a loop may be kept from its turn by another one. The system puts the threads of both on
	// one processor at times, and there each would have it for a whole tick, of up to 10 ms.
	starvedAfter = 500 * time.Microsecond
)

const (
	// A session that always has more to move takes a quantum of it in each turn: as much as a pipe has, because each
	// splice wakes the receiver, or far less where others would have to wait for it. A MiB takes 0.2 ms of an idle machine,
	// and 2 ms of a busy one, where the system sends in our stead for both ends what they could not yet.
	largeQuantum = pipeSize
	smallQuantum = 64 << 10
	// sharedFor is for how long others are expected to come again.
	sharedFor = 100 * time.Millisecond
	// readyTime is how long a turn may be, about, when there are more sessions to have a quantum than fit.
	readyTime = 500 * time.Microsecond
)

// isShared reports whether there are sessions that do not always have more to move.
func (l *loop) isShared() bool { return l.now-l.waitedAt < sharedFor }

// quantum is how much a session may move in one direction in this turn.
func (l *loop) quantum() int {
	if l.isShared() {
		return smallQuantum
	}
	return largeQuantum
}

func (l *loop) giveWay() {
	if l.now-l.yielded > yieldAfter {
		runtime.Gosched()
		l.yielded = time.Since(epoch)
	}
	if l.now-l.gave > starvedAfter {
		l.gave = l.now
		if l.peerStarves() {
			_, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
	}
}

// peerStarves reports whether another loop is in a turn that it does not get on with.
func (l *loop) peerStarves() bool {
	return slices.ContainsFunc(l.peers, func(peer *loop) bool {
		at := time.Duration(peer.turnsAt.Load())
		return peer != l && at != 0 && l.now-at > starvedAfter
	})
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
		m.to.obey(m)
	}
	clear(l.letters)
}

func (l *loop) dispatch() {
	for i := range l.events[:l.waiting] {
		event := &l.events[i]
		if fd := int(event.Fd); fd < len(l.watches) && l.watches[fd] != nil {
			l.watches[fd].hear(event.Events, uint32(event.Pad))
		}
	}
}

// runReady gives the first of those a quantum that have more to move, each at most one: as many as there were before this turn, or,
// while others have something too, as many as there is time for.
func (l *loop) runReady(before int) {
	served := 0
	for served < before && (served == 0 || !l.isShared() || time.Since(epoch)-l.now < readyTime) {
		l.current = l.ready[served]
		served++
		l.current.step()
	}
	l.ready = slices.Delete(l.ready, 0, served)
}

func (l *loop) expire(s served) {
	l.current = s
	s.check()
}

// endAll reports the sessions that have ended to their owners, in a goroutine because that may block.
func (l *loop) endAll() {
	l.current = nil
	if len(l.ended) == 0 {
		return
	}
	ended := l.ended
	l.ended = nil
	go func() {
		for _, s := range ended {
			s.report()
		}
	}()
}

// arm sets the alarm for the next time limit.
func (l *loop) arm() {
	next := min(l.wheel.next(), l.paces.next())
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

// add makes w known by its descriptor.
func (l *loop) add(fd int, w watched) {
	if fd >= len(l.watches) {
		l.watches = append(l.watches, make([]watched, fd+1-len(l.watches)+64)...)
	}
	l.watches[fd] = w
}

// forget is for a descriptor that is to be closed, and may never have been watched.
func (l *loop) forget(fd int, w watched) {
	if fd < len(l.watches) && l.watches[fd] == w {
		l.watches[fd] = nil
	}
}

// explainPanic adds the session to the stack of a panic, which then ends the process.
func (l *loop) explainPanic() {
	if p := recover(); p != nil {
		if l.current != nil {
			panic(fmt.Sprintf("relay: session %v: %v", l.current.name(), p))
		}
		panic(p)
	}
}
