package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portgate/caddy-portgate/integration/gate"
)

// peerTimeout bounds everything that a peer does; no test gets near it unless something hangs.
const peerTimeout = 3 * time.Minute

// connTimeout ends what a connection of a test waits for, however many messages it exchanges until then.
const connTimeout = 10 * peerTimeout

const mib = 1 << 20

// serve is an upstream: handle runs for each connection, which is closed when it returns. Everything is closed with the test.
func serve(t testing.TB, handle func(*net.TCPConn)) string {
	t.Helper()
	return serveAt(t, "127.0.0.1:0", handle)
}

func serveAt(t testing.TB, addr string, handle func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, ln, func(conn net.Conn) { handle(conn.(*net.TCPConn)) })
	return ln.Addr().String()
}

func serveOn(t testing.TB, ln net.Listener, handle func(net.Conn)) {
	var (
		mu    sync.Mutex
		conns = make(map[net.Conn]bool)
		done  sync.WaitGroup
	)
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		done.Wait()
	})
	done.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(connTimeout))
			mu.Lock()
			conns[conn] = true
			mu.Unlock()
			done.Go(func() {
				handle(conn)
				conn.Close()
				mu.Lock()
				delete(conns, conn)
				mu.Unlock()
			})
		}
	})
}

// echo sends back what it gets, and its FIN after the other's.
func echo(conn *net.TCPConn) { io.Copy(conn, conn) }

// greet is an echo that says its name first.
func greet(name string) func(*net.TCPConn) {
	return func(conn *net.TCPConn) {
		if _, err := io.WriteString(conn, name+"\n"); err == nil {
			echo(conn)
		}
	}
}

// dial connects to the process; the connection is closed with the test.
func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, peerTimeout)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(connTimeout))
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// port is the client's port, by which the access log is searched.
func port(conn net.Conn) int {
	if udp, ok := conn.LocalAddr().(*net.UDPAddr); ok {
		return udp.Port
	}
	return conn.LocalAddr().(*net.TCPAddr).Port
}

// messageSize is how many bytes an exchange sends each way.
const messageSize = len("message ") + 16

// exchange sends a message that no other call sends and requires it back.
func exchange(conn net.Conn) error {
	message := fmt.Appendf(nil, "message %016x", rand.Uint64())
	if _, err := conn.Write(message); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	answer := make([]byte, len(message))
	if n, err := io.ReadFull(conn, answer); err != nil {
		return fmt.Errorf("after %d bytes of the answer: %w", n, err)
	}
	if !bytes.Equal(answer, message) {
		return fmt.Errorf("got %q, want %q", answer, message)
	}
	return nil
}

func mustExchange(t testing.TB, conn net.Conn) {
	t.Helper()
	if err := exchange(conn); err != nil {
		t.Fatal(err)
	}
}

// mustRead reads exactly what is wanted.
func mustRead(t testing.TB, conn io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("read %q (%v), want %q", got[:n], err, want)
	}
}

func mustWrite(t testing.TB, conn io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mustEnd reads until the connection is over, by a FIN or by a reset.
func mustEnd(t testing.TB, conn net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("got %v, want the end of the connection", err)
	}
}

// mustReset requires that the connection is reset and brings no byte before.
func mustReset(t testing.TB, conn net.Conn) {
	t.Helper()
	if n, err := io.Copy(io.Discard, conn); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("got %d bytes and %v, want a reset", n, err)
	}
}

// mustBeReset opens a connection that is reset without an answer, and returns its entry in the access log. It has to be the only new
// connection meanwhile: a reset may come so early that connecting fails with it, and then nobody knows the client's port.
func mustBeReset(t testing.TB, p *gate.Process, addr, send string) gate.Session {
	t.Helper()
	before := len(p.Sessions())
	conn, err := net.DialTimeout("tcp", addr, peerTimeout)
	if err == nil {
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(peerTimeout))
		if _, err = io.WriteString(conn, send); err == nil {
			mustReset(t, conn)
		}
	}
	if err != nil && !errors.Is(err, syscall.ECONNRESET) { // reported once: to the write, of no bytes too, or to the read
		t.Fatal(err)
	}
	return p.WaitSessions(before+1, nil)[before]
}

// reset closes the connection with RST.
func reset(conn *net.TCPConn) {
	conn.SetLinger(0)
	conn.Close()
}

// stream is a generated sequence of bytes in which no block equals another. Equal sums of what was sent and
// what was received prove that nothing was lost, repeated or moved.
type stream struct {
	bytes int64
	sum   [sha256.Size]byte
}

const streamBlock = 256 << 10

// send writes n generated bytes.
func send(w io.Writer, n int64) (stream, error) {
	block := make([]byte, streamBlock)
	for i := range block {
		block[i] = byte(rand.Uint32())
	}
	var sent stream
	hash := sha256.New()
	var err error
	for sent.bytes < n && err == nil {
		binary.BigEndian.PutUint64(block, uint64(sent.bytes))
		part := block[:min(n-sent.bytes, streamBlock)]
		var wrote int
		wrote, err = w.Write(part)
		hash.Write(part[:wrote])
		sent.bytes += int64(wrote)
	}
	hash.Sum(sent.sum[:0])
	if err != nil {
		err = fmt.Errorf("sending after %d bytes: %w", sent.bytes, err)
	}
	return sent, err
}

// receive reads until the end.
func receive(r io.Reader) (stream, error) {
	var got stream
	var err error
	hash := sha256.New()
	got.bytes, err = io.CopyBuffer(hash, struct{ io.Reader }{r}, make([]byte, streamBlock))
	hash.Sum(got.sum[:0])
	if err != nil {
		err = fmt.Errorf("receiving after %d bytes: %w", got.bytes, err)
	}
	return got, err
}

// result is what a peer reports at its end.
type result struct {
	stream
	err error
}

// mustArrive requires that a stream was sent and received whole.
func mustArrive(t testing.TB, direction string, sent, received result, n int64) {
	t.Helper()
	if sent.err != nil || received.err != nil {
		t.Fatalf("%s: sender: %v; receiver: %v", direction, sent.err, received.err)
	}
	if sent.bytes != n || received.stream != sent.stream {
		t.Fatalf("%s: sent %d bytes (sha256 %x), received %d (sha256 %x)", direction, sent.bytes, sent.sum, received.bytes, received.sum)
	}
}

// within fails the test unless something comes through the channel in time.
func within[T any](t testing.TB, timeout time.Duration, what string, from <-chan T) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(timeout):
		t.Fatalf("%s: not within %v", what, timeout)
		panic("unreachable")
	}
}
