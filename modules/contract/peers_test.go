package contract

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// upstream starts a server and returns its address.
type upstream func(t *testing.T, network string) (address string)

// echo sends everything back.
func echo(t *testing.T, network string) string {
	if network == "udp" {
		return answering(func(b []byte) [][]byte { return [][]byte{b} })(t, network)
	}
	return streams(func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) })(t, network)
}

// greeting speaks first, and then ends its side.
func greeting(text string) upstream {
	return streams(func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, text)
		_ = conn.CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
	})
}

// silent takes everything and says nothing.
func silent(t *testing.T, network string) string {
	if network == "udp" {
		return answering(func([]byte) [][]byte { return nil })(t, network)
	}
	return streams(func(conn *net.TCPConn) { _, _ = io.Copy(io.Discard, conn) })(t, network)
}

// afterEnd answers when the client has ended its side.
func afterEnd(text string) upstream {
	return streams(func(conn *net.TCPConn) {
		_, _ = io.Copy(io.Discard, conn)
		_, _ = io.WriteString(conn, text)
	})
}

// resetting resets the connection at its first byte.
func resetting(t *testing.T, network string) string {
	return streams(func(conn *net.TCPConn) {
		_, _ = conn.Read(make([]byte, 1))
		_ = conn.SetLinger(0)
	})(t, network)
}

// streams is an upstream that does this with each connection.
func streams(do func(*net.TCPConn)) upstream {
	return func(t *testing.T, _ string) string {
		t.Helper()
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var (
			serving sync.WaitGroup
			mu      sync.Mutex
			open    []net.Conn
		)
		serving.Go(func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				mu.Lock()
				open = append(open, conn)
				mu.Unlock()
				serving.Go(func() {
					do(conn.(*net.TCPConn))
					_ = conn.Close()
				})
			}
		})
		t.Cleanup(func() {
			_ = listener.Close()
			mu.Lock()
			for _, conn := range open {
				_ = conn.Close()
			}
			mu.Unlock()
			serving.Wait()
		})
		return listener.Addr().String()
	}
}

// answering is an upstream of datagrams.
func answering(to func([]byte) [][]byte) upstream {
	return func(t *testing.T, _ string) string {
		t.Helper()
		conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		over := make(chan struct{})
		go func() {
			defer close(over)
			b := make([]byte, 64<<10)
			for {
				n, from, err := conn.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				for _, answer := range to(b[:n]) {
					_, _ = conn.WriteToUDPAddrPort(answer, from)
				}
			}
		}()
		t.Cleanup(func() {
			_ = conn.Close()
			<-over
		})
		return conn.LocalAddr().String()
	}
}

// actor is a client. It notes what it sees.
type actor struct {
	*stage
	conn  net.Conn // nil where connecting has ended in a reset
	began time.Time
	seen  []string
	later []func()
}

// play is what a client does.
type play func(*actor)

// plays does one after the other.
func plays(parts ...play) play {
	return func(a *actor) {
		a.t.Helper()
		for _, part := range parts {
			part(a)
		}
	}
}

// connect comes from 127.0.0.1.
func connect(a *actor) { connectFrom("127.0.0.1")(a) }

func connectFrom(ip string) play {
	return func(a *actor) {
		a.t.Helper()
		var local net.Addr = &net.TCPAddr{IP: net.ParseIP(ip)}
		if a.contract.network == "udp" {
			local = &net.UDPAddr{IP: net.ParseIP(ip)}
		}
		a.began = time.Now()
		conn, err := (&net.Dialer{LocalAddr: local, Timeout: patience}).Dial(a.contract.network, a.listen)
		if isReset(err) { // so early
			a.conn = nil
			return
		}
		if err != nil {
			a.t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		a.conn = conn
		a.later = append(a.later, func() { _ = conn.Close() })
	}
}

// say sends something. That it can't be sent is no part of what is seen: whether the end is known by then is chance.
func say(text string) play {
	return func(a *actor) {
		if a.conn != nil {
			_, _ = io.WriteString(a.conn, text)
		}
	}
}

// hear reads so many bytes, or a datagram.
func hear(n int) play {
	return func(a *actor) {
		b := make([]byte, 64<<10)
		if a.conn == nil {
			a.seen = append(a.seen, "reset")
			return
		}
		var err error
		if a.contract.network == "udp" {
			n, err = a.conn.Read(b)
		} else {
			n, err = io.ReadFull(a.conn, b[:n])
		}
		a.note(b[:n], err)
	}
}

// hearAll reads until the end.
func hearAll(a *actor) {
	if a.conn == nil {
		a.seen = append(a.seen, "reset")
		return
	}
	b, err := io.ReadAll(a.conn)
	if err == nil {
		err = io.EOF
	}
	a.note(b, err)
}

// note writes down what has been read, and the end.
func (a *actor) note(b []byte, err error) {
	if len(b) > 0 {
		a.seen = append(a.seen, string(b))
	}
	switch {
	case err == nil:
	case isReset(err):
		a.seen = append(a.seen, "reset")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		a.seen = append(a.seen, "end")
	case errors.Is(err, os.ErrDeadlineExceeded):
		a.seen = append(a.seen, "nothing")
	default:
		a.seen = append(a.seen, err.Error())
	}
}

// hearNothing waits a moment for what must not come.
func hearNothing(a *actor) {
	if a.conn == nil {
		a.seen = append(a.seen, "reset")
		return
	}
	_ = a.conn.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	n, err := a.conn.Read(make([]byte, 1))
	_ = a.conn.SetReadDeadline(time.Now().Add(patience))
	a.note(make([]byte, n), err)
}

// notBefore requires that so much time has passed since the client has connected.
func notBefore(least time.Duration) play {
	return func(a *actor) {
		if took := time.Since(a.began); took < least {
			a.t.Errorf("the end came after %v, want at least %v", took, least)
		}
	}
}

// finish ends the client's side.
func finish(a *actor) {
	if tcp, ok := a.conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
}

// reset resets the connection.
func reset(a *actor) {
	if tcp, ok := a.conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
		_ = tcp.Close()
	}
}

// beside plays another client meanwhile, and notes what that one sees.
func beside(play play) play {
	return func(a *actor) {
		a.t.Helper()
		other := &actor{stage: a.stage}
		play(other)
		other.leave()
		a.seen = append(a.seen, other.seen...)
	}
}

// untilQueued waits until so many sessions wait for an upstream.
func untilQueued(n float64) play {
	return func(a *actor) {
		a.t.Helper()
		a.eventually(func() error {
			for sample, value := range metrics(a.t) {
				if strings.HasPrefix(sample, "caddy_portgate_upstream_queued") && value == n {
					return nil
				}
			}
			return fmt.Errorf("not %v sessions wait", n)
		})
	}
}

// until waits for this many entries in the access log.
func until(entries int) play {
	return func(a *actor) {
		a.t.Helper()
		a.eventually(func() error {
			if got := a.entriesNow(); len(got) < entries {
				return errors.New("an entry is missing in the access log")
			}
			return nil
		})
	}
}

// untilDropped waits until a datagram is counted as dropped for this reason.
func untilDropped(reason string) play {
	return func(a *actor) {
		a.t.Helper()
		sample := fmt.Sprintf("caddy_portgate_datagrams_dropped_total listener=%q reason=%q", a.listen, reason)
		a.eventually(func() error {
			if metrics(a.t)[sample] == 0 {
				return fmt.Errorf("%s is 0", sample)
			}
			return nil
		})
	}
}

// reload replaces the handlers.
func reload(handlers ...object) play {
	return func(a *actor) {
		a.t.Helper()
		a.load(handlers)
	}
}

// leave closes what the client has open.
func (a *actor) leave() {
	for _, close := range a.later {
		close()
	}
}
