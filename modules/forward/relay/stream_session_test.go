package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	flag.Parse()
	heldFor = 5 * time.Second // for a busy machine
	// Most tests wait more than they compute, so more of them run at once than there are cores.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("8")
	}
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/portgate/caddy-portgate/modules/forward/relay.(*loop).run"),
		goleak.IgnoreAnyFunction("github.com/portgate/caddy-portgate/modules/forward/relay.followAddresses"))
}

// patience is how long a test waits for what has to happen.
const patience = 30 * time.Second

// testOver is the reason of a relay that a test has left running.
const testOver Reason = "test_over"

// session is a relay between two ends that the test holds.
type session struct {
	testing.TB
	relay    *Relay
	client   stream
	upstream stream // nil until it is accepted

	ended   chan Result
	dones   atomic.Int32
	running sync.WaitGroup
}

// start runs a relay to wherever next says.
func (p pair) start(t testing.TB, next func(context.Context, error) (net.Addr, error), with ...func(*Config)) *session {
	t.Helper()
	s := p.prepare(t, next, with...)
	s.run()
	return s
}

// prepare makes a relay that does not run yet.
func (p pair) prepare(t testing.TB, next func(context.Context, error) (net.Addr, error), with ...func(*Config)) *session {
	t.Helper()
	s := &session{TB: t, ended: make(chan Result, 1)}
	cfg := Config{Next: next, Name: sessionName(t.Name()), Done: func(r Result) {
		if s.dones.Add(1) > 1 {
			t.Error("Done was called twice")
			return
		}
		s.ended <- r
	}}
	cfg.Client, s.client = p.accept(t)
	cfg.Unwrap = wrapped
	_ = s.client.SetDeadline(time.Now().Add(patience))
	for _, set := range with {
		set(&cfg)
	}
	if p.configure != nil {
		p.configure(&cfg)
	}
	s.relay = New(cfg)
	t.Cleanup(func() { s.client.Close() })
	return s
}

// wrapped returns what the wrappers of the pairs wrap.
func wrapped(conn net.Conn) net.Conn {
	switch c := conn.(type) {
	case interface{ NetConn() net.Conn }:
		return c.NetConn()
	case struct{ net.Conn }:
		return c.Conn
	}
	return nil
}

func (s *session) run() {
	s.Helper()
	s.running.Go(s.relay.Run)
	s.Cleanup(func() {
		s.relay.Close(testOver)
		s.running.Wait()
		eventually(s, "Done", func() bool { return s.dones.Load() == 1 })
	})
}

// open runs a relay that is connected to an upstream.
func (p pair) open(t testing.TB, with ...func(*Config)) *session {
	t.Helper()
	ln := p.listen(t)
	s := p.start(t, only(ln.Addr()), with...)
	s.acceptFrom(ln)
	return s
}

// acceptFrom takes the relay's connection to ln for the upstream.
func (s *session) acceptFrom(ln net.Listener) {
	s.Helper()
	_ = ln.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(patience))
	conn, err := ln.Accept()
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	s.upstream = conn.(stream)
}

// result waits for Done.
func (s *session) result() Result {
	s.Helper()
	select {
	case r := <-s.ended:
		return r
	case <-time.After(patience):
		s.Fatal("Done was not called")
		panic("not reached")
	}
}

// want waits for Done and checks the reason.
func (s *session) want(reason Reason) Result {
	s.Helper()
	r := s.result()
	if r.Reason != reason {
		s.Errorf("reason: got %s, want %s", r.Reason, reason)
	}
	return r
}

type sessionName string

func (n sessionName) String() string { return string(n) }

// errNoMore ends a Next that has no further address.
var errNoMore = errors.New("no more upstreams")

// only gives the addresses one after the other, and then the error of the last.
func only(addrs ...net.Addr) func(context.Context, error) (net.Addr, error) {
	return func(_ context.Context, failed error) (net.Addr, error) {
		if len(addrs) == 0 {
			return nil, errors.Join(errNoMore, failed)
		}
		addr := addrs[0]
		addrs = addrs[1:]
		return addr, nil
	}
}

// limits sets a relay's limits.
func limits(l Limits) func(*Config) { return func(c *Config) { c.Limits = l } }

// eventually waits until ok. What has no event to wait for is looked at again and again.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// data gives n bytes that look random and are the same for the same seed.
func data(seed byte, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

// bytesOf is data at once.
func bytesOf(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = io.ReadFull(data(seed, int64(n)), b)
	return b
}

// send writes data to w.
func send(w io.Writer, seed byte, n int64) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, data(seed, n), make([]byte, 256<<10))
	return err
}

// inflow compares what arrives with data.
type inflow struct {
	from      io.Reader
	want      *rand.ChaCha8
	got       int64
	buf, same []byte
}

func receiver(from io.Reader, seed byte) *inflow {
	return &inflow{from: from, want: rand.NewChaCha8([32]byte{seed})}
}

// read reads until the stream ends or n more bytes have come.
func (in *inflow) read(n int64) (err error) {
	if size := min(n, 256<<10); int64(len(in.buf)) < size {
		in.buf, in.same = make([]byte, size), make([]byte, size)
	}
	for end := in.got + n; in.got < end && err == nil; {
		var m int
		m, err = in.from.Read(in.buf[:min(int64(len(in.buf)), end-in.got)])
		_, _ = in.want.Read(in.same[:m])
		if !bytes.Equal(in.buf[:m], in.same[:m]) {
			return fmt.Errorf("%d bytes after byte %d differ", m, in.got)
		}
		in.got += int64(m)
	}
	return err
}

// mustSend and mustReceive are for what has to go well.
func (s *session) mustSend(w io.Writer, seed byte, n int64) {
	s.Helper()
	if err := send(w, seed, n); err != nil {
		s.Errorf("send: %v", err)
	}
}

func (s *session) mustReceive(r io.Reader, seed byte, n int64) {
	s.Helper()
	s.mustRead(receiver(r, seed), n)
}

func (s *session) mustRead(in *inflow, n int64) {
	s.Helper()
	before := in.got
	if err := in.read(n); err != nil || in.got != before+n {
		s.Errorf("received %d of %d bytes: %v", in.got-before, n, err)
	}
}

// exchange passes one message from each side to the other.
func (s *session) exchange(n int64) {
	s.Helper()
	s.mustSend(s.client, 1, n)
	s.mustReceive(s.upstream, 1, n)
	s.mustSend(s.upstream, 2, n)
	s.mustReceive(s.client, 2, n)
}

// wantEOF checks that nothing but a FIN comes.
func (s *session) wantEOF(conn stream) {
	s.Helper()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		s.Errorf("read: got %d bytes and %v, want a FIN", n, err)
	}
}

// wantReset checks that nothing but a reset comes.
func (s *session) wantReset(conn stream) {
	s.Helper()
	n, err := conn.Read(make([]byte, 1))
	if _, ok := conn.(*net.UnixConn); ok && err == io.EOF {
		err = syscall.ECONNRESET // it knows no reset
	}
	if n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		s.Errorf("read: got %d bytes and %v, want a reset", n, err)
	}
}

// reset closes the test's end with a RST. Of a unix socket the other side learns the same if there was
// something unread.
func (s *session) reset(conn stream) {
	s.Helper()
	switch c := conn.(type) {
	case *tls.Conn:
		s.reset(c.NetConn().(stream))
		return
	case *underTLS:
		_ = c.SetLinger(0)
	case *net.TCPConn:
		_ = c.SetLinger(0)
	case *net.UnixConn:
		if unread(s, c) == 0 {
			s.mustSend(s.client, 0, 1)
			eventually(s, "a byte for the upstream", func() bool { return unread(s, c) > 0 })
		}
	}
	conn.Close()
}

// sent waits until the relay's system has all that was written to conn.
func (s *session) sent(conn stream) {
	s.Helper()
	if c, ok := conn.(*tls.Conn); ok {
		conn = c.NetConn().(stream)
	}
	raw, err := conn.(socket).SyscallConn()
	if err != nil {
		s.Fatal(err)
	}
	eventually(s, "acknowledgement", func() bool { return queued(raw) == 0 })
}
