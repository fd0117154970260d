package forward

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portgate/caddy-portgate/modules/forward/upstream"
	"github.com/portgate/caddy-portgate/modules/internal/hops"
	"github.com/portgate/caddy-portgate/modules/internal/logqueue"
	"github.com/portgate/caddy-portgate/modules/internal/session"
)

// ownAddress returns an address of this machine that is not a loopback one.
func ownAddress(t *testing.T) string {
	t.Helper()
	found, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range found {
		if ip := addr.(*net.IPNet).IP; ip.To4() != nil && !ip.IsLoopback() {
			return ip.String()
		}
	}
	t.Fatal("this machine has no address but 127.0.0.1")
	return ""
}

func TestForwardToItself(t *testing.T) {
	t.Parallel()
	own := ownAddress(t)
	for _, c := range []struct {
		to, listen string
		loop       bool
	}{
		{"127.0.0.1:7000", "gate+tcp/127.0.0.1:7000", true},
		{"127.0.0.1:7000", "tcp/127.0.0.1:7000", true},
		{"127.0.0.1:7001", "tcp/127.0.0.1:7000", false},
		{"127.0.0.2:7000", "tcp/127.0.0.1:7000", false},
		{"127.0.0.1:7000", "tcp/:7000", true},
		{"127.0.0.2:7000", "tcp/:7000", true},
		{"[::1]:7000", "tcp/:7000", true},
		{"[::1]:7000", "tcp/0.0.0.0:7000", false},
		{"[::1]:7000", "tcp/[::]:7000", true},
		{"127.0.0.1:7000", "tcp/[::]:7000", true},
		{"127.0.0.1:7000", "gate+tcp6/:7000", false},
		{"127.0.0.1:7000", "gate+tcp4/:7000", true},
		{"0.0.0.0:7000", "tcp/127.0.0.1:7000", true},
		{":7000", "tcp/127.0.0.1:7000", true},
		{"localhost:7000", "tcp/127.0.0.1:7000", true},
		{"LOCALHOST:7000", "tcp/:7000", true},
		{"127.0.0.1:7000", "tcp/localhost:7000", true},
		{"name.example:7000", "tcp/:7000", false},
		{own + ":7000", "tcp/:7000", true},
		{own + ":7000", "tcp/127.0.0.1:7000", false},
		{own + ":7000", "tcp/" + own + ":7000", true},
		{"198.51.100.7:7000", "tcp/:7000", false},
		{"127.0.0.1:7000", "gate+udp/:7000", true},
		{"udp/127.0.0.1:7000", "gate+udp/:7000", true},
		{"udp/127.0.0.1:7000", "gate+tcp/:7000", false},
		{"127.0.0.1:7000-7002", "gate+tcp/:7000-7002", true},
		{"127.0.0.1:7001-7003", "gate+tcp/:7000-7002", false},
		{"127.0.0.1:7001", "gate+tcp/:7000-7002", true},
		{"127.0.0.1:7003", "gate+tcp/:7000-7002", false},
		{"unix//run/a", "unix//run/a", true},
		{"unix//run/b", "unix//run/a", false},
		{"unix//run/a", "unix//run/a|0222", true},
	} {
		addr, err := caddy.ParseNetworkAddress(c.listen)
		if err != nil {
			t.Fatal(err)
		}
		to, err := upstream.Parse(c.to)
		if err != nil {
			t.Fatal(err)
		}
		if got := leadsTo(to, addr); got != c.loop {
			t.Errorf("%s at %s: %t", c.to, c.listen, got)
		}
	}
}

// forgetSessions waits until no session lives, and takes all entries out of the access log: of the sessions of a chain a test
// knows the first one's client only.
func forgetSessions(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		n := 0
		session.EachLiving(func(*session.Session) { n++ })
		if n > 0 {
			return fmt.Errorf("%d sessions live", n)
		}
		return nil
	})
	if n := logqueue.Flush(time.Minute); n > 0 {
		t.Errorf("%d entries are not written", n)
	}
	for found := true; found; {
		_, found, _ = accessLog.take(func(entry) bool { return true })
	}
}

// Two ports that lead to each other: whoever connects is turned away, after a few hops.
func TestLoopOfTwoPorts(t *testing.T) {
	defer forgetSessions(t)
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			one, other := newHost()+":7000", newHost()+":7000"
			mustLoad(t, object{
				"a": server(to([]string{other}), network+"/"+one),
				"b": server(to([]string{one}), network+"/"+other),
			})
			for range 20 {
				client, err := net.Dial("tcp", one) // the reset may come before it returns
				if err == nil {
					_, err = client.Read(make([]byte, 1))
					client.Close()
				}
				if !errors.Is(err, syscall.ECONNRESET) && err != io.EOF {
					t.Fatalf("got %v, want a reset, or the end where the last hop was found out after it had begun", err)
				}
				if got := accessLog.wait(t, func(e entry) bool { return e.Reason == "loop" }); got.Status != 508 {
					t.Errorf("%+v", got)
				}
			}
		})
	}
}

// A chain of as many hops as there may be works.
func TestChainOfHops(t *testing.T) {
	defer forgetSessions(t)
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			servers := make(object)
			next := echo(t)
			for i := range hops.Max + 1 {
				addr := newHost() + ":7000"
				servers[fmt.Sprint(i)] = server(to([]string{next}), network+"/"+addr)
				next = addr
			}
			mustLoad(t, servers)
			for range 20 {
				client := dial(t, next)
				exchange(t, client, "ping")
				if got := finish(t, client); got.Status != 200 {
					t.Errorf("%+v", got)
				}
			}
		})
	}
}
