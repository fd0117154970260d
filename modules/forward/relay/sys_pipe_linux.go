package relay

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// pipeSize is how many bytes one splice may move: the default of fs.pipe-max-size, because each splice wakes the receiver.
const pipeSize = 1 << 20

// maxPipes bounds what peers that read nothing can hold: 64 pipes are what fs.pipe-user-pages-soft allows an unprivileged user
// (64 MiB). While all are taken, further bulk is moved through buffers.
var maxPipes = sync.OnceValue(func() int64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1
	}
	return pipesFor(limit.Cur)
})

// pipesFor returns how many pipes a process with so many descriptors may have. They take no more than a 64th of them, which
// whoever counts the descriptors of sessions need not know of.
func pipesFor(descriptors uint64) int64 { return int64(min(max(descriptors/128, 1), 64)) }

type pipe struct{ r, w int }

// idlePipes are for the next stream. The garbage collector closes those that are not used.
var idlePipes sync.Pool

// pipesTaken counts the pipes in use.
var pipesTaken atomic.Int64

var errNoPipe = errors.New("all pipes are taken")

func takePipe() (*pipe, error) {
	if pipesTaken.Add(1) > maxPipes() {
		pipesTaken.Add(-1)
		return nil, errNoPipe
	}
	if p, ok := idlePipes.Get().(*pipe); ok {
		return p, nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		pipesTaken.Add(-1)
		return nil, err
	}
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	p := &pipe{fds[0], fds[1]}
	runtime.SetFinalizer(p, (*pipe).close)
	return p, nil
}

// giveBack keeps an empty pipe for the next stream, and closes any other.
func (p *pipe) giveBack(empty bool) {
	pipesTaken.Add(-1)
	if empty {
		idlePipes.Put(p)
	} else {
		p.close()
	}
}

func (p *pipe) close() {
	runtime.SetFinalizer(p, nil)
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

const spliceFlags = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK
