package relay

import (
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How a loop shares its time between sessions that always have more to move and all others, and the processor with
// other goroutines.
const (
	// A session moves at most a quantum of bytes a round in each direction. It is large where nobody else waits, because
	// each splice wakes the receiver, and small where somebody does. A MiB takes 0.2 ms on an idle machine, and 2 ms on a
	// busy one, where the kernel also sends for both peers, in our time, what they could not send yet.
	largeQuantum = pipeSize
	smallQuantum = 64 << 10

	// sharedFor is how long the small quantum is used after a session had something that does not always have more.
	sharedFor = 100 * time.Millisecond

	// readyTime bounds how long the queued sessions are served in a round while others wait.
	readyTime = 500 * time.Microsecond

	// yieldAfter is how long a loop that never runs out of work keeps its processor from other goroutines. To yield
	// in every round would cost a lone exchange half of its speed.
	yieldAfter = time.Millisecond

	// starvedAfter is how old the round of another loop may be. The kernel sometimes puts the threads of two loops on one
	// processor, where each would run for a whole scheduler tick, up to 10 ms.
	starvedAfter = 500 * time.Microsecond
)

// isShared reports whether sessions that do not always have more to move were served lately.
func (l *loop) isShared() bool { return l.now-l.sharedAt < sharedFor }

// quantum is how many bytes a session may move in one direction in this round.
func (l *loop) quantum() int {
	if l.isShared() {
		return smallQuantum
	}
	return largeQuantum
}

// serveReady serves the sessions that were queued before this round, the longest waiting first, one quantum each. Where
// others wait it stops after readyTime; the rest is served in the next round.
func (l *loop) serveReady(before int) {
	done := 0
	for done < before && (done == 0 || !l.isShared() || time.Since(epoch)-l.now < readyTime) {
		l.current = l.ready[done]
		done++
		l.current.serve()
	}
	l.ready = slices.Delete(l.ready, 0, done)
}

// giveWay lets other goroutines, and the threads of other loops, run from time to time.
func (l *loop) giveWay() {
	if l.now-l.yielded > yieldAfter {
		runtime.Gosched()
		l.yielded = time.Since(epoch)
	}
	if l.now-l.lookedAtPeers > starvedAfter {
		l.lookedAtPeers = l.now
		if l.peerStarves() {
			_, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
	}
}

// peerStarves reports whether another loop is stuck in a round, probably because it does not get the processor.
func (l *loop) peerStarves() bool {
	return slices.ContainsFunc(l.peers, func(peer *loop) bool {
		began := time.Duration(peer.roundBegan.Load())
		return peer != l && began != 0 && l.now-began > starvedAfter
	})
}
