package relay

import (
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// dataSegments is how many segments with data have come to a TCP socket.
func dataSegments(t *testing.T, conn *net.TCPConn) (n uint32) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			t.Error(err)
			return
		}
		n = info.Data_segs_in
	})
	return n
}

// The upstream gets the preface and the client's first bytes in one segment.
func TestPrefaceIsInTheFirstSegment(t *testing.T) {
	over(t, engines, func(t *testing.T, p pair) {
		for prefetched, sent := range map[string]string{"": "hello", "hello": ""} {
			ln := p.listen(t)
			s := p.prepare(t, only(ln.Addr()), prefaced, func(c *Config) { c.Prefetched = []byte(prefetched) })
			_, _ = io.WriteString(s.client, sent)
			s.run()
			s.acceptFrom(ln)
			s.reads(s.upstream, preface+"hello")
			if n := dataSegments(t, s.upstream.(*net.TCPConn)); n != 1 {
				t.Errorf("prefetched %q: %d segments", prefetched, n)
			}
		}
	})
}

// What a socket does not take at once is counted without the preface.
func TestLeftoverOfAPreface(t *testing.T) {
	t.Parallel()
	var h half
	h.keepLeft([]byte("headerdata"))
	h.left.preface = len("header")
	for i, want := range []int{0, 0, 1, 3} {
		if moved := h.sentLeft([]int{2, 3, 2, 3}[i]); moved != want {
			t.Errorf("send %d: counts %d, want %d", i, moved, want)
		}
	}
	if h.left != nil {
		t.Error("there is something left")
	}
}
