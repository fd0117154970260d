package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/mholt/caddy-l4/modules/l4echo"
	_ "github.com/mholt/caddy-l4/modules/l4regexp"

	"github.com/portgate/caddy-portgate/modules/internal/listeners"
)

// listenUDPOn opens a listener as Caddy does.
func listenUDPOn(ctx context.Context, t testing.TB, address string) *generation {
	t.Helper()
	g, err := tryListenUDP(ctx, t, address)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func tryListenUDP(ctx context.Context, t testing.TB, address string) (*generation, error) {
	t.Helper()
	if !strings.Contains(address, "/") {
		address = "gate+udp/" + address
	}
	return tryListen(ctx, t, address)
}

// freeUDPAddress returns an address that nobody listens on, of a host that is no client's.
func freeUDPAddress(t testing.TB) string {
	t.Helper()
	n := lastHost.Add(1)
	conn, err := net.ListenPacket("udp", netip.AddrFrom4([4]byte{127, 1, byte(n >> 8), byte(n)}).String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.LocalAddr().String()
}

func accept(t testing.TB, g *generation) *PacketConn {
	t.Helper()
	conn, err := g.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*PacketConn)
}

// port is the port of an address, on its own.
func port(addr net.Addr) uint16 { return addr.(*net.UDPAddr).AddrPort().Port() }

// dialUDP returns a client of the listener.
func dialUDP(t testing.TB, to net.Addr) *net.UDPConn {
	t.Helper()
	conn, err := net.Dial("udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	return conn.(*net.UDPConn)
}

func say(t testing.TB, conn net.Conn, s string) {
	t.Helper()
	if _, err := conn.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
}

func hear(t testing.TB, conn net.Conn, want string) {
	t.Helper()
	b := make([]byte, 1<<16)
	n, err := conn.Read(b)
	if err != nil || string(b[:n]) != want {
		t.Fatalf("got %q, %v, want %q", b[:n], err, want)
	}
}

// Datagrams of all sizes pass both ways, whole, on sockets of all kinds, and replies come from where the
// client has sent to: its socket is connected, and takes them from nowhere else.
func TestDatagramsPassWhole(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ listen, dial, local string }{
		{"127.0.0.1:0", "127.0.0.1", "127.0.0.1"},
		{"[::1]:0", "::1", "::1"},
		{":0", "127.0.0.1", "127.0.0.1"},
		{"0.0.0.0:0", "127.0.0.2", "127.0.0.2"},
		{"[::]:0", "::1", "::1"},
	} {
		t.Run(c.listen+" "+c.dial, func(t *testing.T) {
			t.Parallel()
			g := listenUDPOn(config(t), t, c.listen)
			to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.dial), port(g.Addr())))
			client := dialUDP(t, to)
			say(t, client, "hello")
			conn := accept(t, g)
			hear(t, conn, "hello")
			if conn.RemoteAddr().String() != client.LocalAddr().String() {
				t.Errorf("remote %v, want %v", conn.RemoteAddr(), client.LocalAddr())
			}
			if want := fmt.Sprint(to); conn.LocalAddr().String() != want {
				t.Errorf("local %v, want %v", conn.LocalAddr(), want)
			}
			if got := conn.ListenerAddr(); got != caddyAddress(c.listen) {
				t.Errorf("listener %q", got)
			}
			for _, size := range []int{0, 1, 1472, 1473, 8999, 9001, 32769, 65507} {
				b := make([]byte, size)
				_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(b)
				say(t, client, string(b))
				hear(t, conn, string(b))
				say(t, conn, string(b))
				hear(t, client, string(b))
			}
		})
	}
}

// caddyAddress is what Caddy makes of a listen address.
func caddyAddress(listen string) string {
	host, port, _ := net.SplitHostPort(listen)
	return net.JoinHostPort(host, port)
}

// One that talks to two addresses of a wildcard socket from one port has two sessions.
func TestSessionsPerLocalAddress(t *testing.T) {
	t.Parallel()
	g := listenUDPOn(config(t), t, ":0")
	client, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	_ = client.SetDeadline(time.Now().Add(time.Minute))
	for _, host := range []byte{2, 3} {
		to := &net.UDPAddr{IP: net.IPv4(127, 0, 0, host), Port: int(port(g.Addr()))}
		if _, err := client.WriteTo([]byte{host}, to); err != nil {
			t.Fatal(err)
		}
		conn := accept(t, g)
		hear(t, conn, string([]byte{host}))
		say(t, conn, "reply")
		if _, from, err := client.ReadFrom(make([]byte, 10)); err != nil || from.String() != to.String() {
			t.Errorf("a reply from %v, %v, want it from %v", from, err, to)
		}
	}
}

// A session that nobody reads, and one that is accepted by nobody, delay no other one.
func TestReceiveLoopNeverBlocks(t *testing.T) {
	t.Parallel()
	g := listenUDPOn(config(t), t, freeUDPAddress(t))
	silent, pending := dialUDP(t, g.Addr()), dialUDP(t, g.Addr())
	say(t, silent, "x")
	_ = accept(t, g)
	say(t, pending, "x")
	client := dialUDP(t, g.Addr())
	say(t, client, "x")
	_ = accept(t, g) // the pending one, which nobody reads either
	conn := accept(t, g)
	hear(t, conn, "x")
	for i := range 200 {
		say(t, silent, "x")
		say(t, pending, "x")
		want := fmt.Sprint(i)
		say(t, client, want)
		hear(t, conn, want)
	}
	if dropped := g.settings.counts.Dropped[listeners.DropQueueFull].Load(); dropped != 2*(201-maxWaiting) {
		t.Errorf("%d were dropped", dropped)
	}
}

func TestUDPGenerations(t *testing.T) {
	t.Parallel()
	address := freeUDPAddress(t)
	first := listenUDPOn(config(t), t, address)
	old := dialUDP(t, first.Addr())
	say(t, old, "old")
	kept := accept(t, first)

	ctx, reject := context.WithCancel(config(t))
	rejected := listenUDPOn(ctx, t, address)
	var rejectedAccept sync.WaitGroup
	rejectedAccept.Go(func() {
		if conn, err := rejected.Accept(); err == nil {
			t.Errorf("the rejected config accepted %v", conn.RemoteAddr())
		}
	})
	second := listenUDPOn(config(t), t, address)
	var queued []*net.UDPConn
	for i := range 10 {
		client := dialUDP(t, first.Addr())
		say(t, client, fmt.Sprint("queued ", i))
		queued = append(queued, client)
	}
	reject()
	rejectedAccept.Wait()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if conn, err := first.Accept(); conn != nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("the closed one accepted %v, %v", conn, err)
	}
	for i := range queued {
		conn := accept(t, second)
		hear(t, conn, fmt.Sprint("queued ", i))
		say(t, conn, "reply")
		hear(t, queued[i], "reply")
	}
	// A session belongs to the socket, whatever becomes of the config that accepted it.
	hear(t, kept, "old")
	say(t, old, "more")
	hear(t, kept, "more")
	say(t, kept, "reply")
	hear(t, old, "reply")
}

func TestUDPAddressTwice(t *testing.T) {
	t.Parallel()
	ctx := config(t)
	address := freeUDPAddress(t)
	_ = listenUDPOn(ctx, t, address)
	_, err := tryListenUDP(ctx, t, address)
	want := fmt.Sprintf("listening on %q: this config listens there already, as %q: expected each address once", address, address)
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}

	// The same port may be TCP's as well.
	g, err := tryListen(ctx, t, address)
	if err != nil {
		t.Fatal(err)
	}
	_ = g.Close()
}

func TestUDPAddressInUse(t *testing.T) {
	t.Parallel()
	other, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	address := other.LocalAddr().String()
	_, err = tryListenUDP(config(t), t, address)
	want := fmt.Sprintf("listening on %q: listen udp %s: bind: address already in use", address, address)
	if !errors.Is(err, syscall.EADDRINUSE) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

const quietConfig = `"admin":{"disabled":true,"config":{"persist":false}},"logging":{"logs":{"default":{"writer":{"output":"discard"}}}}`

// TestLayer4ServesSessions has layer4's own matchers and handlers do what they do, and the settings hold. It is not
// parallel, because there is one running config.
func TestLayer4ServesSessions(t *testing.T) {
	address := freeUDPAddress(t)
	t.Cleanup(func() { _ = caddy.Stop() })
	load := func(maxSessions int) {
		err := caddy.Load(fmt.Appendf(nil, `{%s,"apps":{"portgate":{"udp_max_sessions":%d},"layer4":{"servers":{"s":{
			"listen":["gate+udp/%s"],"routes":[{"match":[{"regexp":{"pattern":"^hello","count":5}}],"handle":[{"handler":"echo"}]}]}}}}}`,
			quietConfig, maxSessions, address), true)
		if err != nil {
			t.Fatal(err)
		}
	}
	load(100)
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address))
	exchange := func(client *net.UDPConn) {
		for _, s := range []string{"hello", "hello " + string(bytes.Repeat([]byte("x"), 9000)), "you"} {
			say(t, client, s)
			hear(t, client, s)
		}
	}
	first := dialUDP(t, to)
	exchange(first)
	load(1) // the same socket has the new limit
	say(t, first, "still the same session")
	hear(t, first, "still the same session")
	second := dialUDP(t, to)
	say(t, second, "hello")
	counts := listeners.DatagramsOf(address)
	for counts.Dropped[listeners.DropSessionLimit].Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if up, down := counts.Up.Load(), counts.Down.Load(); up != 5 || down != 4 {
		t.Errorf("%d datagrams up, %d down", up, down)
	}
}

// Datagrams that come in bursts, larger than a batch, stay in order.
func TestBurstsStayInOrder(t *testing.T) {
	t.Parallel()
	g := listenUDPOn(config(t), t, freeUDPAddress(t))
	client := dialUDP(t, g.Addr())
	say(t, client, "\x00")
	detached, _ := accept(t, g).Detach()
	defer func() { _ = detached.Close() }()
	got := make(chan byte, 1000)
	detached.(*PacketSession).Attach(func(b []byte) bool { got <- b[0]; return true }, func(string) {})
	var want, received []byte
	for i := range 200 {
		want = append(want, byte(i))
		if i > 0 {
			say(t, client, string([]byte{byte(i)}))
		}
	}
	for range want {
		select {
		case b := <-got:
			received = append(received, b)
		case <-time.After(time.Minute):
			t.Fatalf("only %v arrived", received)
		}
	}
	if !slices.Equal(received, want) {
		t.Errorf("got %v", received)
	}
}
