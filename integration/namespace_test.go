package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace at the other end of a cable.
type namespace struct {
	id              int
	name            string
	near            string // the end of the cable that is not in the namespace
	outside, inside string // addresses of both ends
}

// newNamespace makes one. It needs root, as the package comment says of everything that a test needs.
func newNamespace(t testing.TB) namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a network namespace: run it as root")
	}
	// 198.18.0.0/16 is for tests of network devices (RFC 2544), so it is nobody's real address.
	id := rand.IntN(64 << 8)
	third, fourth := id>>6, id&63<<2
	name := fmt.Sprintf("gate%d", id)
	n := namespace{
		id: id, name: name, near: name + "a", // at most 15 characters
		outside: fmt.Sprintf("198.18.%d.%d", third, fourth+1), inside: fmt.Sprintf("198.18.%d.%d", third, fourth+2),
	}
	ip, far := program(t, "ip"), name+"b"
	run(t, ip, "netns", "add", name)
	t.Cleanup(func() { run(t, ip, "netns", "delete", name) })
	run(t, ip, "link", "add", n.near, "type", "veth", "peer", "name", far, "netns", name)
	t.Cleanup(func() { run(t, ip, "link", "delete", n.near) })
	run(t, ip, "address", "add", n.outside+"/30", "dev", n.near)
	run(t, ip, "link", "set", n.near, "up")
	run(t, ip, "-n", name, "address", "add", n.inside+"/30", "dev", far)
	run(t, ip, "-n", name, "link", "set", far, "up")
	return n
}

// do runs f in the namespace. A socket that f opens stays in it.
func (n namespace) do(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		// The thread is given back as it was. One that ended here would take along the programs that were started by it
		// (Pdeathsig in prctl(2)); one that can't be given back ends with the goroutine, and nobody else gets it.
		runtime.LockOSThread()
		own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer func() {
			if unix.Setns(own, unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			_ = unix.Close(own)
		}()
		fd, err := unix.Open("/run/netns/"+n.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	must(t, <-done)
}
