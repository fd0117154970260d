package forward

import (
	"encoding/json"
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// deaf returns the address of a listener whose queue is full: it drops what wants to connect to it.
func deaf(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		t.Cleanup(func() { _ = unix.Close(fd) })
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = unix.Listen(fd, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: at.(*unix.SockaddrInet4).Port}
	dial(t, addr.String()) // there is room for one
	return addr.String()
}

// A client that leaves while its upstream does not answer ends the session, long before the attempt times out.
func TestClientLeavesBeforeThereIsAnUpstream(t *testing.T) {
	t.Parallel()
	upstream := deaf(t)
	for reason, leave := range map[string]func(*net.TCPConn){
		"client_reset": func(c *net.TCPConn) { _, _ = io.WriteString(c, "hello"); _ = c.SetLinger(0); c.Close() },
		"client_fin":   func(c *net.TCPConn) { c.Close() },
	} {
		t.Run(reason, func(t *testing.T) {
			overKinds(t, func(t *testing.T, k kind) {
				if k.name == "wrapped" {
					return // nobody knows its socket
				}
				config, _ := json.Marshal(object{"to": []string{upstream}, "connect_timeout": "1h"})
				h, _, _ := provision(t, string(config))
				client := k.client(t, h)
				leave(client)
				if got := logged(t, client); got.Reason != reason || got.Status != 499 || got.Upstream != upstream || got.Error != "" {
					t.Errorf("%+v", got)
				}
			})
		})
	}
}
