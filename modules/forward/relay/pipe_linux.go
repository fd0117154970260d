package relay

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// pipeSize is how much one splice may move: large enough to save calls, small enough that the
// 64 MiB that fs.pipe-user-pages-soft allows an unprivileged user serve 256 streams at once.
// Beyond that the kernel refuses to enlarge a pipe, and it keeps its 64 KiB or less.
const pipeSize = 256 << 10

type pipe struct{ r, w int }

// pipes outlive a stream's pause and go with the next garbage collections.
var pipes sync.Pool

func takePipe() (*pipe, error) {
	if p, ok := pipes.Get().(*pipe); ok {
		return p, nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	p := &pipe{fds[0], fds[1]}
	runtime.SetFinalizer(p, (*pipe).close)
	return p, nil
}

func (p *pipe) close() {
	runtime.SetFinalizer(p, nil)
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

const spliceFlags = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK

func splice(from, to, max int) (int, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, max, spliceFlags)
		if err != unix.EINTR {
			return int(n), err
		}
	}
}
