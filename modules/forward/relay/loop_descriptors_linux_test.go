package relay

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// What whoever counts descriptors is told of the event loops is what they have open.
func TestLoopDescriptors(t *testing.T) {
	want := 0
	for _, l := range loops() {
		for _, fd := range []int{l.epoll, l.wakeup} {
			if target, err := os.Readlink(filepath.Join("/proc/self/fd", strconv.Itoa(fd))); err != nil {
				t.Errorf("%d: %q, %v", fd, target, err)
			}
			want++
		}
	}
	if got := LoopDescriptors(); got != want || got == 0 {
		t.Errorf("%d, want %d", got, want)
	}
}
