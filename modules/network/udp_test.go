package network

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// listenUDPOn opens a listener as Caddy does.
func listenUDPOn(ctx context.Context, t testing.TB, address string) *generation {
	t.Helper()
	addr, err := caddy.ParseNetworkAddress("gate+udp/" + address)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := addr.Listen(ctx, 0, net.ListenConfig{})
	if err != nil {
		t.Fatal(err)
	}
	g := ln.(*generation)
	t.Cleanup(func() { _ = g.Close() })
	return g
}

// dialUDP returns a client of the listener.
func dialUDP(t testing.TB, to net.Addr) *net.UDPConn {
	t.Helper()
	conn, err := net.Dial("udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
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

func TestExchange(t *testing.T) {
	t.Parallel()
	g := listenUDPOn(config(t), t, "127.0.0.1:0")
	client := dialUDP(t, g.Addr())
	say(t, client, "one")
	say(t, client, "two")
	conn, err := g.Accept()
	if err != nil {
		t.Fatal(err)
	}
	hear(t, conn, "one")
	hear(t, conn, "two")
	say(t, conn, "three")
	hear(t, client, "three")
	session, _ := conn.(*PacketConn).Detach()
	got := make(chan string, 10)
	if !session.(*PacketSession).Attach(func(b []byte) { got <- string(b) }, func(string) {}) {
		t.Fatal("not attached")
	}
	say(t, client, "four")
	for _, want := range []string{"one", "two", "four"} {
		if s := <-got; s != want {
			t.Fatalf("got %q, want %q", s, want)
		}
	}
	_ = session.Close()
}
