package relay

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A loop moves the bytes of many relays in one goroutine. It watches its sockets with an edge-triggered epoll
// instance of its own. The epoll descriptor is registered with Go's poller: while nothing is ready the
// goroutine is parked there and holds neither a thread nor a processor. All system calls on the sockets are
// non-blocking, so the loop makes them without telling the scheduler.
//
// The loop works in rounds, see run. A round serves each session at most once, with at most one quantum.
type loop struct {
	epoll  int
	poller syscall.RawConn // of the epoll descriptor
	file   *os.File        // keeps it open
	wakeup int             // an eventfd in the epoll instance

	mu     sync.Mutex
	inbox  [inboxes]inbox
	parked bool // post has to wake the loop

	peers      []*loop      // all loops
	roundBegan atomic.Int64 // when this round began, in the loop's time; 0 while parked
	longest    longestRounds

	// The fields below belong to the loop's goroutine.

	now           time.Duration // since epoch, as of this round
	sharedAt      time.Duration // when a session was last served that does not always have more to move
	yielded       time.Duration // when other goroutines last got the processor
	lookedAtPeers time.Duration // when peerStarves was last called
	alarm         *time.Timer   // wakes the loop for a time limit
	alarmAt       time.Duration
	sockets       slots
	ready         []loopSession // have more to move than a quantum; the first has waited longest
	ended         []loopSession // in this round
	wheel         wheel         // time limits
	paused        pausedStreams // by a pacer
	current       loopSession   // the one that is served, for explainPanic
	replies       *replies      // nil before the first reply
	waiting       int           // how many events poll has found
	pollFn        func(uintptr) bool
	events        [128]unix.EpollEvent
	buffer        [loopBuffer]byte
}

// loopBuffer is the size of one read. A session keeps what the other socket does not take of it, so this is also
// what a session holds whose peer does not read. Streams with larger reads use splice.
const loopBuffer = 64 << 10

// epoch is the zero of the loops' time.
var epoch = time.Now()

// loops returns the loops, one per processor. They are started for the first relay and run until the process ends.
var loops = sync.OnceValue(func() (all []*loop) {
	for range runtime.GOMAXPROCS(0) {
		l, err := newLoop()
		if err != nil {
			break // no descriptors: fewer loops serve all, and without any the goroutine engine does
		}
		all = append(all, l)
	}
	running.Store(&all)
	for _, l := range all {
		l.peers = all
		go l.run()
	}
	return all
})

// LoopDescriptors returns how many descriptors the event loops have open, which it starts for it. They belong to no session.
func LoopDescriptors() int { return 2 * len(loops()) }

var nextLoop atomic.Uint32

// pickLoop returns the loops one after the other, nil where there are none.
func pickLoop() *loop {
	all := loops()
	if len(all) == 0 {
		return nil
	}
	return all[nextLoop.Add(1)%uint32(len(all))]
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
		Events: unix.EPOLLIN | unix.EPOLLET, Fd: 0, // no slot
	})
	if err != nil {
		_ = unix.Close(wakeup)
		_ = file.Close()
		return nil, err
	}
	return l, nil
}

// wake starts a round of a parked loop. The eventfd is never read: each write is an edge.
func (l *loop) wake() {
	one := [8]byte{1}
	_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(l.wakeup), uintptr(unsafe.Pointer(&one)), uintptr(len(one)))
}

// The events that a loop watches for. A socket for datagrams is not watched for EPOLLOUT, which would come after every
// datagram.
const (
	streamEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET
	packetEvents = unix.EPOLLIN | unix.EPOLLET
)

// watch adds the socket fd to the epoll instance, and returns its slot. The generation distinguishes a late event of a closed
// socket from one of the next socket in the same slot.
func (l *loop) watch(fd int, sock loopSocket, events, generation uint32) (slot int32, err error) {
	slot = l.sockets.add(sock)
	event := unix.EpollEvent{Events: events, Fd: slot, Pad: int32(generation)}
	_, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(l.epoll), unix.EPOLL_CTL_ADD, uintptr(fd),
		uintptr(unsafe.Pointer(&event)), 0, 0)
	if errno != 0 {
		l.sockets.remove(slot)
		return 0, os.NewSyscallError("epoll_ctl", errno)
	}
	return slot, nil
}

// unwatch is called before a socket is closed, which may never have been watched: then its slot is 0. Close removes it from
// the epoll instance.
func (l *loop) unwatch(slot int32) {
	if slot > 0 {
		l.sockets.remove(slot)
	}
}

func (l *loop) run() {
	defer l.explainPanic()
	for {
		if l.mayPark() {
			l.arm()
			l.endRound(time.Since(epoch))
			l.roundBegan.Store(0)
			_ = l.poller.Read(l.pollFn) // the descriptor is never closed and has no deadline
		} else {
			l.poll(uintptr(l.epoll))
		}
		l.round()
		l.giveWay()
	}
}

// round serves the sessions that poll has found or that were queued. Then it opens and closes sockets.
func (l *loop) round() {
	l.now = time.Since(epoch)
	l.endRound(l.now)
	l.roundBegan.Store(int64(l.now))
	l.wheel.skip(l.now)
	ready := len(l.ready)
	l.dispatch()
	l.serveReady(ready)
	l.sendReplies()
	l.wheel.advance(l.now, l.expire)
	l.resume()
	l.handleMessages()
	l.reportEnded()
}

// endRound notes how long the round has taken that ends now, if there is one.
func (l *loop) endRound(now time.Duration) {
	if began := time.Duration(l.roundBegan.Load()); began != 0 {
		l.longest.note(now, now-began)
	}
}

// mayPark reports whether there is nothing to do before an event or a message comes. From then on post wakes the loop.
func (l *loop) mayPark() bool {
	if len(l.ready) > 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parked = !l.hasMessages()
	return l.parked
}

// poll fetches the events that are there. Go's poller calls it, too: where it returns false the goroutine is parked
// until the epoll descriptor is readable.
func (l *loop) poll(fd uintptr) bool {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, fd,
		uintptr(unsafe.Pointer(&l.events)), uintptr(len(l.events)), 0, 0, 0)
	if errno != 0 {
		n = 0 // EINTR
	}
	l.waiting = int(n)
	return n > 0
}

func (l *loop) dispatch() {
	for i := range l.events[:l.waiting] {
		event := &l.events[i]
		if sock := l.sockets.get(event.Fd); sock != nil {
			sock.onEvents(event.Events, uint32(event.Pad))
		}
	}
}

func (l *loop) expire(s loopSession) {
	l.current = s
	s.checkLimits()
}

// reportEnded tells the owners of the sessions that ended in this round, in a goroutine because that may block.
func (l *loop) reportEnded() {
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
	next := min(l.wheel.next(), l.paused.next())
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

// explainPanic adds the session to the stack of a panic, which then ends the process.
func (l *loop) explainPanic() {
	if p := recover(); p != nil {
		if l.current != nil {
			panic(fmt.Sprintf("relay: session %v: %v", l.current.title(), p))
		}
		panic(p)
	}
}
