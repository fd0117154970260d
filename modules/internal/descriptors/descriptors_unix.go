//go:build unix

package descriptors

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// mostDescriptors is more than a process has any use for. Some systems set no limit.
const mostDescriptors = 1 << 24

// Limit returns how many descriptors the process may have. Go raises the soft limit to the hard one at start (os/rlimit.go).
var Limit = sync.OnceValue(func() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > mostDescriptors {
		return mostDescriptors
	}
	return int(limit.Cur)
})

// count returns how many descriptors are open. Since version 6.2 Linux tells without a list of them.
func count() (open int, ok bool) {
	const folder = "/proc/self/fd"
	info, err := os.Stat(folder)
	if err != nil {
		return 0, false
	}
	if size := int(info.Size()); size > 0 {
		return size, true
	}
	entries, err := os.ReadDir(folder)
	return len(entries), err == nil
}
