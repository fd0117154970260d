package forward

import (
	"fmt"
	"net"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// silent returns the address of a server that answers no further client: its queue is full, so the kernel drops each SYN.
func silent(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*unix.SockaddrInet4).Port))
	for range 16 {
		conn, err := net.DialTimeout("tcp", address, 100*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Fatal("the queue of the server is not full after 16 connections")
	return ""
}

// Of two upstreams one answers no SYN: three sessions wait for it, and no more.
func TestSilentUpstreamIsLeftAlone(t *testing.T) {
	t.Parallel()
	overKinds(t, func(t *testing.T, k kind) {
		dead := silent(t)
		h, ctx, _ := provision(t, fmt.Sprintf(`{"to": [%q, %q], "connect_timeout": "1s", "fail_duration": "1h"}`, dead, echo(t)))
		waited := 0
		for range 12 {
			client := k.client(t, h)
			exchange(t, client, "ping")
			if got := finish(t, client); got.Failed != "" {
				waited++
			}
		}
		if waited != 3 {
			t.Errorf("%d of 12 sessions have waited", waited)
		}
		if n := sum(t, ctx, "connect_duration_seconds", dead); n != 3 {
			t.Errorf("%v attempts are booked to it", n)
		}
	})
}
