//go:build unix

package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// inherited returns the number of a descriptor that stays open until the test ends, as one that the process was started with.
func inherited(t *testing.T, socket interface{ File() (*os.File, error) }) int {
	t.Helper()
	file, err := socket.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return int(file.Fd())
}

func listenTCP(t *testing.T) (*net.TCPListener, int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fd := inherited(t, ln.(*net.TCPListener))
	_ = ln.Close() // what was inherited is all there is
	return ln.(*net.TCPListener), fd
}

// The socket of a descriptor serves one config after the other. What comes while no config has it waits.
func TestInheritedListenerOutlivesConfigs(t *testing.T) {
	t.Parallel()
	ln, fd := listenTCP(t)
	address, listen := ln.Addr().String(), fmt.Sprintf("gate+fd/%d", fd)
	for i := range 3 {
		waiting, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint("config ", i)
		g := listenOn(config(t), t, listen)
		done := serve(t, g, name)
		if got, err := io.ReadAll(waiting); string(got) != name || err != nil {
			t.Errorf("who has waited got %q, %v", got, err)
		}
		_ = waiting.Close()
		next := listenOn(config(t), t, listen)
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		<-done
		done = serve(t, next, "next")
		expectAnswer(t, address, "next")
		if err := next.Close(); err != nil {
			t.Error(err)
		}
		<-done
	}
}

func TestInheritedListenerKnowsItsName(t *testing.T) {
	t.Parallel()
	ln, fd := listenTCP(t)
	g := listenOn(config(t), t, fmt.Sprintf("gate+fd/%d", fd))
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	conn, err := g.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if got, want := conn.(*Conn).ListenerAddr(), fmt.Sprintf("fd/%d", fd); got != want || conn.LocalAddr().Network() != "tcp" {
		t.Errorf("accepted on %s %q, want %q", conn.LocalAddr().Network(), got, want)
	}
}

func TestInheritedPacketConnOutlivesConfigs(t *testing.T) {
	t.Parallel()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fd := inherited(t, socket.(*net.UDPConn))
	_ = socket.Close()
	client := dialUDP(t, socket.LocalAddr())
	for i := range 3 {
		question := fmt.Sprint("question ", i)
		if _, err := io.WriteString(client, question); err != nil { // waits for the config that comes
			t.Fatal(err)
		}
		g := listenOn(config(t), t, fmt.Sprintf("gate+fdgram/%d", fd))
		conn := accept(t, g)
		b := make([]byte, 100)
		if n, err := conn.Read(b); string(b[:n]) != question || err != nil {
			t.Errorf("got %q, %v, want %q", b[:n], err, question)
		}
		if _, err := io.WriteString(conn, "answer"); err != nil {
			t.Error(err)
		}
		_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := client.Read(b); string(b[:n]) != "answer" || err != nil {
			t.Errorf("got %q, %v", b[:n], err)
		}
		if got, want := conn.ListenerAddr(), fmt.Sprintf("fdgram/%d", fd); got != want {
			t.Errorf("accepted on %q, want %q", got, want)
		}
		if err := errors.Join(conn.Close(), g.Close()); err != nil {
			t.Error(err)
		}
	}
}

// What is no socket of that kind is refused, and not asked for connections for ever.
func TestDescriptorsThatAreNone(t *testing.T) {
	t.Parallel()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = udp.Close() }()
	unix, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close() }()
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	ln, fd := listenTCP(t)
	connected, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connected.Close() }()

	const listening, datagrams = "expected a listening socket, such as systemd opens for ListenStream=", "expected a socket of datagrams, such as systemd opens for ListenDatagram="
	for _, c := range []struct {
		network string
		fd      int
		want    string
	}{
		{"gate+fd", 99999, "bad file descriptor: expected one that the process was started with"},
		{"gate+fdgram", 99999, "bad file descriptor: expected one that the process was started with"},
		{"gate+fd", int(file.Fd()), listening},
		{"gate+fdgram", int(file.Fd()), datagrams},
		{"gate+fd", inherited(t, udp.(*net.UDPConn)), listening},
		{"gate+fd", inherited(t, connected.(*net.TCPConn)), listening},
		{"gate+fdgram", fd, datagrams},
		{"gate+fd", inherited(t, unix.(*net.UnixListener)), `has a socket of the network "unix": expected tcp, or the listen address fd/`},
	} {
		_, err := tryListen(config(t), t, fmt.Sprintf("%s/%d", c.network, c.fd))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s/%d: %v, want %q", c.network, c.fd, err, c.want)
		}
	}
}

// A listener on an inherited socket serves directly, too.
func TestInheritedListenerServesDirectly(t *testing.T) {
	ln, fd := listenTCP(t)
	t.Cleanup(func() { _ = caddy.Stop() })
	for range 3 {
		err := caddy.Load(fmt.Appendf(nil, `{"admin":{"disabled":true,"config":{"persist":false}},"logging":{"logs":{"default":{"writer":{"output":"discard"}}}},
			"apps":{"layer4":{"servers":{"s":{"listen":["gate+fd/%d"],"routes":[{"handle":[{"handler":"test_greeter"}]}]}}}}}`, fd), true)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if want := fmt.Sprintf("directly: %s on tcp fd/%d", conn.LocalAddr(), fd); string(got) != want || err != nil {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
		_ = conn.Close()
	}
}
