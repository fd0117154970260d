package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// overTLS has the relay's upstreams wrapped in TLS.
func overTLS(c *Config) {
	preface := c.Preface
	c.Wraps = true
	c.Way = func() Way { return Way{Preface: preface, Wrap: wrapTLS} }
}

func wrapTLS(ctx context.Context, conn net.Conn) (net.Conn, error) {
	client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	return client, client.HandshakeContext(ctx)
}

// tlsListener is an upstream that speaks TLS. What comes in clear before the handshake, which is a preface, its connections return from
// their first Read.
type tlsListener struct{ *net.TCPListener }

func listenTLS(t testing.TB) net.Listener {
	t.Helper()
	return tlsListener{listenTCP(t).(*net.TCPListener)}
}

func (l tlsListener) Accept() (net.Conn, error) {
	conn, err := l.TCPListener.Accept()
	if err != nil {
		return nil, err
	}
	return shakeHands(conn)
}

func shakeHands(conn net.Conn) (net.Conn, error) {
	_ = conn.SetDeadline(time.Now().Add(patience))
	under := &underTLS{TCPConn: conn.(*net.TCPConn), in: bufio.NewReader(conn)}
	inClear := ""
	if first, err := under.in.Peek(1); err == nil && first[0] == preface[0] {
		if inClear, err = under.in.ReadString('\n'); err != nil {
			return nil, err
		}
	}
	server := tls.Server(under, &tls.Config{Certificates: []tls.Certificate{certificate()}})
	if err := server.Handshake(); err != nil {
		return nil, err
	}
	if inClear == "" {
		return server, nil
	}
	return &behindClear{server, strings.NewReader(inClear)}, nil
}

// underTLS is the socket that TLS is spoken over, of which some bytes were read already.
type underTLS struct {
	*net.TCPConn
	in *bufio.Reader
}

func (u *underTLS) Read(b []byte) (int, error) { return u.in.Read(b) }

// behindClear returns what came in clear first.
type behindClear struct {
	*tls.Conn
	inClear *strings.Reader
}

func (b *behindClear) Read(p []byte) (int, error) {
	if b.inClear.Len() > 0 {
		return b.inClear.Read(p)
	}
	return b.Conn.Read(p)
}

// wrapping is a relay whose upstreams are wrapped by this function.
func wrapping(wrap func(context.Context, net.Conn) (net.Conn, error)) func(*Config) {
	return func(c *Config) {
		c.Wraps = true
		c.Way = func() Way { return Way{Wrap: wrap} }
	}
}

// An upstream with which the handshake fails is one that can't be reached: the next one is tried, and the error names it.
func TestWrapFails(t *testing.T) {
	t.Parallel()
	p, first, second := engines[0], listenTCP(t), listenTCP(t)
	broken, tries := errors.New("broken"), 0
	attempts := make(chan error, 2)
	s := p.start(t, only(first.Addr(), second.Addr()), wrapping(func(_ context.Context, conn net.Conn) (net.Conn, error) {
		if tries++; tries == 1 {
			return nil, broken
		}
		return conn, nil
	}), func(c *Config) { c.Attempt = func(_ net.Addr, _ time.Duration, err error) { attempts <- err } })
	failed, err := first.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer failed.Close()
	s.acceptFrom(second)
	s.exchange(10)
	_ = failed.SetReadDeadline(time.Now().Add(patience))
	if _, err := failed.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the first connection: %v, want it closed", err)
	}
	want := "handshake tcp " + first.Addr().String() + ": broken"
	if err := <-attempts; err == nil || err.Error() != want || !errors.Is(err, broken) {
		t.Errorf("the first attempt: %v, want %s", err, want)
	}
	if err := <-attempts; err != nil {
		t.Errorf("the second attempt: %v", err)
	}
}

// A server that takes the connection and then says nothing has as long as one that does not take it.
func TestHandshakeTimeout(t *testing.T) {
	t.Parallel()
	ln := listenTCP(t)
	s := engines[0].start(t, only(ln.Addr()), overTLS, limits(Limits{Connect: 300 * time.Millisecond}))
	s.wantReset(s.client)
	if r := s.want(ConnectTimeout); r.Connect < 300*time.Millisecond || !errors.Is(r.Err, context.DeadlineExceeded) {
		t.Errorf("after %s: %v", r.Connect, r.Err)
	}
}

// A relay that is closed while it shakes hands leaves no connection.
func TestCloseInAHandshake(t *testing.T) {
	t.Parallel()
	ln := listenTCP(t)
	s := engines[0].start(t, only(ln.Addr()), overTLS)
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil { // the ClientHello is on its way
		t.Fatal(err)
	}
	s.relay.Close("stopped")
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection: %v, want it closed", err)
	}
	s.want("stopped")
}

// A client that sends while hands are shaken fills its socket, and nothing of ours.
func TestClientSendsBeforeTheHandshake(t *testing.T) {
	t.Parallel()
	ln, shake := listenTCP(t), make(chan struct{})
	s := engines[0].start(t, only(ln.Addr()), wrapping(func(_ context.Context, conn net.Conn) (net.Conn, error) {
		<-shake
		return conn, nil
	}))
	_ = s.client.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	sent, err := io.CopyN(s.client, zeros{}, 1<<30)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes were taken: %v", sent, err)
	}
	if up := s.relay.Stats().BytesUp; up != 0 {
		t.Errorf("%d bytes up before the handshake", up)
	}
	close(shake)
	s.acceptFrom(ln)
	s.client.CloseWrite()
	if got, err := io.Copy(io.Discard, s.upstream); err != nil || got != sent {
		t.Errorf("%d of %d bytes came: %v", got, sent, err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
