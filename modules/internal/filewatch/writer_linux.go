package filewatch

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// OpenForWriting tells whether anybody has the file open for writing. A read lease (fcntl(2)) is given only where nobody
// has, to the owner of the file and to processes with CAP_LEASE; it is given back at once. known is false where the
// system does not tell.
func OpenForWriting(f *os.File) (open, known bool) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false, false
	}
	failed := raw.Control(func(fd uintptr) {
		if _, err = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_RDLCK); err == nil {
			_, _ = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK)
		}
	})
	if failed != nil {
		return false, false
	}
	return errors.Is(err, unix.EAGAIN), err == nil || errors.Is(err, unix.EAGAIN)
}

// changeTime is when the file or what is known of it was changed last, in nanoseconds (st_ctim in inode(7)).
func changeTime(info os.FileInfo) int64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Ctim.Nano()
	}
	return 0
}
